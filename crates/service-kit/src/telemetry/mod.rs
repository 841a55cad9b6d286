//! Sets up the telemetry of a process: log lines on standard error, further `tracing` layers, and metrics.
//!
//! On a terminal the lines are text, elsewhere each line is one JSON object. `RUST_LOG` (`log.filter`) filters by
//! module; `LOG_LEVEL` (`log.level`) is one level for all modules, except that libraries with much debug output stay
//! at `info`.

mod level;
mod metrics;

use crate::{Error, ErrorKind};
use serde::Deserialize;
use std::io::IsTerminal;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

pub use level::Level;
pub use metrics::Metrics;

/// A further destination of log events, such as the log shipper of event-client.
pub type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Libraries whose `debug` lines describe only their internals: shown when `log.filter` names them.
const CHATTY: &[&str] =
    &["h2", "hyper", "hyper_util", "mio", "reqwest", "rustls", "sqlx", "tower", "tungstenite"];

/// Settings of the logging.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The minimum level that is logged; default `info`. `WARNING`, `CRITICAL` and similar names are accepted.
    pub level: Level,
    /// Levels by module, `info,event_client=trace`; overrides `level`.
    pub filter: Option<String>,
    /// Format of the lines; default `auto`.
    pub format: Format,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `text` on a terminal, `json` elsewhere.
    #[default]
    Auto,
    /// Text; in colour on a terminal.
    Text,
    /// One JSON object per line.
    Json,
    /// No lines, only further layers and metrics.
    Off,
}

/// Sets up logging and metrics for the whole process. Panics are logged as errors, so that every layer receives them.
/// Call it once, before the first log event.
///
/// # Errors
/// When `log.filter` is not valid, or the process already has a subscriber.
pub fn init(settings: &Settings, layers: Vec<BoxedLayer>) -> Result<Metrics, Error> {
    let terminal = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match settings.format {
        Format::Text => Some(lines.with_ansi(terminal).boxed()),
        Format::Auto if terminal => Some(lines.boxed()),
        Format::Auto | Format::Json => Some(lines.json().flatten_event(true).boxed()),
        Format::Off => None,
    };
    // The filter applies to all layers: an event that it refuses is never created.
    let subscriber = tracing_subscriber::registry().with(layers).with(lines).with(filter(settings)?);
    tracing::subscriber::set_global_default(subscriber).map_err(|error| {
        Error::new(ErrorKind::Telemetry, "logging is already set up in this process").because(error)
    })?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::capture(); // empty unless RUST_BACKTRACE is set
        tracing::error!(
            panic.place = place,
            "panicked: {}\n{backtrace}",
            panic.payload_as_str().unwrap_or("?")
        );
    }));
    Metrics::install()
}

fn filter(settings: &Settings) -> Result<EnvFilter, Error> {
    let directives = match &settings.filter {
        Some(filter) => filter.clone(),
        None if settings.level <= Level::Debug => {
            let quiet: String = CHATTY.iter().map(|library| format!(",{library}=info")).collect();
            format!("{}{quiet}", settings.level)
        }
        None => settings.level.to_string(),
    };
    EnvFilter::builder().parse(&directives).map_err(|error| {
        let message = format!("log.filter: {directives:?} is not a filter such as \"info,my_crate=debug\"");
        Error::new(ErrorKind::InvalidValue, message).because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(filter_text: Option<&str>, level: Level) -> Result<String, Error> {
        let settings = Settings { filter: filter_text.map(Into::into), level, format: Format::Auto };
        filter(&settings).map(|filter| filter.to_string())
    }

    #[test]
    fn a_filter_wins_over_the_level() {
        assert_eq!(shown(Some("warn,mine=trace"), Level::Debug).unwrap(), "mine=trace,warn");
        assert_eq!(shown(None, Level::Warn).unwrap(), "warn");
    }

    #[test]
    fn a_low_level_keeps_libraries_quiet() {
        let filter = shown(None, Level::Debug).unwrap();
        assert!(filter.contains("hyper=info") && filter.contains("debug"), "{filter}");
    }

    #[test]
    fn a_wrong_filter_is_named() {
        let error = shown(Some("mine=loud"), Level::Info).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidValue);
        assert!(error.to_string().starts_with("log.filter: \"mine=loud\""), "{error}");
    }
}
