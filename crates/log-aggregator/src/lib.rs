//! Collects structured logs from the bus and over HTTP, stores and shows them.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use log_aggregator::{Aggregator, Config};
//!
//! use service_kit::{http, shutdown::{Parts, Shutdown}};
//!
//! let config = Config::from_env("data/logs")?;
//! let listener = http::bind(&config.http).await?;
//! let aggregator = Aggregator::open(config).await?;
//! let mut parts = Parts::new(Shutdown::on_signals()?, Default::default());
//! parts.add("http", |stop| async move { aggregator.serve(listener, axum::Router::new(), stop).await });
//! parts.run().await;
//! # Ok(()) }
//! ```
//!
//! A record takes this way: `ingest` makes it from what was sent, repairs it if need be, and queues it;
//! one writer commits everything that waits to the `store` at once; then the sender is answered and the
//! record is shown to those who watch, through `live`. `http` is the door for all of it.
//!
//! What holds everywhere: nobody is told "stored" before the fsync; the writer never waits for a viewer; every
//! queue and buffer is bounded in number and bytes; a record is never changed after it was stored.
//!
//! # What a body may be
//!
//! Logthon's fields are read and refused as Logthon does. Beyond that, over HTTP:
//! - Several records may follow one another, with nothing, white space, a comma or RFC 7464's separator between them.
//!   What follows the last and is no record is repaired as one, or kept as `raw` of the record before it.
//! - UTF-8, UTF-16 and UTF-32 are told apart as Python's `json.loads` does it, with and without a byte order mark.
//! - Names are compared without case and signs. Other loggers' names for message, level, time, service and ids are
//!   known; a field that became one of those is no attribute, every other is. A name that is an attribute already gets a
//!   number: `stack_2`. An object with another logger's names may leave out the service (`app` or `name` stand in for
//!   it, else it is `unknown_service`) and the message.
//! - Attributes keep their order and digits ([`event_client::log::Attributes`]).
//!
//! # Time
//!
//! A record has its event time, by the sender's clock, and its arrival time. It stands in the order of time, and is found
//! by `since` and `until`, at the earlier of both ([`store::place_of`]).
//!
//! # Pages of other sites
//!
//! A deliberate difference from Logthon, which let any page that a browser of the machine shows watch, add and clear
//! the logs: [`Aggregator::serve`] answers by the rules of [`service_kit::http`]. Clients that address the server by
//! `localhost`, by an address or by a name that the settings allow, and send no `Origin`, as programs do, notice
//! nothing.

mod aggregator;
mod config;
mod error;
mod http;
mod ingest;
mod live;
pub mod store;

pub use aggregator::Aggregator;
pub use config::Config;
pub use error::{Error, ErrorKind, Result};
