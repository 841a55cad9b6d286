//! Collects structured logs from the bus and over HTTP, stores them and serves them as JSON and as live streams. The
//! web page that shows them is in the crate `console`.
//!
//! The HTTP API is that of Logthon, the log server of the Django platform that this crate replaces: its clients work
//! unchanged.
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
//! let router = aggregator.router();
//! parts.add("http", |stop| async move { aggregator.serve(listener, router, stop).await });
//! parts.run().await;
//! # Ok(()) }
//! ```
//!
//! A record passes through these modules: `ingest` makes it from the submitted body or log batch, repairs it if
//! necessary, and queues it; one writer commits all queued records to the `store` in one transaction; after the
//! commit the sender receives its answer, and `live` passes the record to the viewers. `http` serves the API.
//!
//! Invariants: no sender receives a success before the fsync; the writer never waits for a viewer; every queue and
//! buffer is bounded in number and in bytes; a stored record is never changed.
//!
//! # Accepted bodies
//!
//! Logthon's fields are accepted and refused by Logthon's rules. In addition, over HTTP:
//! - One body may contain several records, separated by nothing, white space, a comma or RFC 7464's separator. Text
//!   after the last valid record is repaired into a record or, if that fails, kept in `raw` of the record before it.
//! - UTF-8, UTF-16 and UTF-32 are detected as Python's `json.loads` detects them, with and without a byte order mark.
//! - Field names are compared case-insensitively and without punctuation. The names that other loggers use for
//!   message, level, time, service and ids are recognised; a field that sets one of these is not an attribute, every
//!   other field is. If an attribute of that name exists already, the name gets a number: `stack_2`. An object with
//!   another logger's names may omit the service (then `app` or `name` is used, otherwise `unknown_service`) and the
//!   message.
//! - Attributes keep their order and every digit of their numbers ([`event_client::log::Attributes`]).
//!
//! # Time
//!
//! A record has an event time, from the sender's clock, and an arrival time. Records are ordered by time, and
//! selected by `since` and `until`, by the earlier of the two ([`store::place_of`]).
//!
//! # Requests from other sites
//!
//! This differs from Logthon on purpose. Logthon let any web page that a local browser displays read, add and clear
//! the logs. [`Aggregator::serve`] applies the rules of [`service_kit::http`] to every request. Nothing changes for
//! clients that address the server by `localhost`, by an IP address or by an allowed host name, and that send no
//! `Origin` header, as programs do.

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
pub use http::paths;
