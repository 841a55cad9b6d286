//! What every process does first and last: configuration, telemetry, health, shutdown.
//!
//! A process reads its settings once, sets up its telemetry, starts its parts, and drains them:
//!
//! ```no_run
//! use service_kit::{config::Loader, health::Health, http, shutdown::{Parts, Shutdown}, telemetry};
//!
//! #[derive(Debug, Default, serde::Deserialize)]
//! #[serde(default)]
//! struct Settings {
//!     http: http::Settings,
//!     log: telemetry::Settings,
//!     shutdown: service_kit::shutdown::Settings,
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<std::process::ExitCode, service_kit::Error> {
//!     let settings = Loader::new("billing").load::<Settings>()?.into_inner();
//!     let metrics = telemetry::init(&settings.log, Vec::new())?;
//!     let shutdown = Shutdown::on_signals()?;
//!     let health = Health::new("billing", env!("CARGO_PKG_VERSION")).metrics(metrics).watch(&shutdown);
//!     let listener = http::bind(&settings.http).await?;
//!
//!     let mut parts = Parts::new(shutdown, settings.shutdown);
//!     let router = health.router();
//!     parts.add("http", |stop| http::serve(listener, router, stop));
//!     let report = parts.run().await;
//!     tracing::info!("{report}");
//!     Ok(report.exit_code())
//! }
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | defaults, then file, then environment, then flags; errors name the key and where it came from |
//! | [`telemetry`] | log lines for people or machines, further layers, and metrics for Prometheus |
//! | [`health`] | `/health`, `/health/detailed`, `/ready`, `/metrics` as a router to merge |
//! | [`http`] | a listener with a clear error when it cannot be had, and a server that judges who asks, and drains |
//! | [`shutdown`] | the signal, and parts that stop in order within a bound |

pub mod config;
mod error;
pub mod health;
pub mod http;
pub mod shutdown;
pub mod telemetry;

pub use error::{Error, Kind};
