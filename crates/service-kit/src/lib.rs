//! Provides the common start and end of a service process: configuration, telemetry, health checks, an HTTP server,
//! and shutdown.
//!
//! A process loads its settings once, sets up its telemetry, starts its parts, and drains them at shutdown:
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
//! | module | contents |
//! |---|---|
//! | [`config`] | defaults, overridden by a file, the environment and flags, in this order; errors name the key and the source of its value |
//! | [`telemetry`] | log lines as text or JSON, further `tracing` layers, and metrics for Prometheus |
//! | [`health`] | `/health`, `/health/detailed`, `/ready`, `/metrics` as a router to merge |
//! | [`http`] | a listener with a clear error when the address cannot be bound, and a server that checks host and origin of each request, and drains |
//! | [`shutdown`] | the signals that request a stop, and parts that stop in order within a time limit |

mod error;
pub mod health;
pub mod http;
pub mod shutdown;
pub mod telemetry;

pub use error::{Error, ErrorKind, chain};
pub use settings as config;
