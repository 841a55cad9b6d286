//! The web pages of the backbone, embedded in the program and served in one router with the JSON API that they read.
//!
//! ```no_run
//! # async fn run(aggregator: log_aggregator::Aggregator) {
//! let settings = console::Settings::default();
//! let router = console::mount(aggregator.router(), &settings);
//! # }
//! ```
//!
//! Today there is one page, the log viewer. The pages load files from this server only, contain no inline code and
//! cannot be embedded in a frame. The router does not check the origin or host of a request; the server has to, as
//! [`service_kit::http`] does.

mod page;

pub use page::{Settings, mount};
