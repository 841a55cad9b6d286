//! What a process tells about itself: log lines on standard error, further layers, metrics.
//!
//! On a terminal lines are for people, elsewhere each is one JSON object. `RUST_LOG` (`log.filter`) filters by
//! module; `LOG_LEVEL` (`log.level`) is one level for all and keeps chatty libraries at `info`.

mod level;
mod metrics;

use crate::{Error, Kind};
use serde::Deserialize;
use std::io::IsTerminal;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

pub use level::Level;
pub use metrics::Metrics;

/// A further destination of what is logged, such as the log shipper of event-client.
pub type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Libraries whose `debug` is about their own insides: shown when `log.filter` asks for them by name.
const CHATTY: &[&str] =
    &["h2", "hyper", "hyper_util", "mio", "reqwest", "rustls", "sqlx", "tower", "tungstenite"];

/// What is logged, and how.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The least level that is logged; default `info`. `WARNING`, `CRITICAL` and the like are understood.
    pub level: Level,
    /// Levels by module, `info,event_client=trace`; wins over `level`.
    pub filter: Option<String>,
    /// How lines look; default `auto`.
    pub format: Format,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `text` on a terminal, `json` elsewhere.
    #[default]
    Auto,
    /// For people; in colour on a terminal.
    Text,
    /// One JSON object a line.
    Json,
    /// No lines: further layers and metrics only.
    Off,
}

/// Sets up logging and metrics for the whole process, panics included: they are logged as errors and so reach
/// every layer. Call it once, before anything is logged.
///
/// # Errors
/// When `log.filter` cannot be read, or the process has a subscriber already.
pub fn init(settings: &Settings, layers: Vec<BoxedLayer>) -> Result<Metrics, Error> {
    let terminal = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match settings.format {
        Format::Text => Some(lines.with_ansi(terminal).boxed()),
        Format::Auto if terminal => Some(lines.boxed()),
        Format::Auto | Format::Json => Some(lines.json().flatten_event(true).boxed()),
        Format::Off => None,
    };
    // The filter lies over all: what it refuses costs nothing, and no layer sees it.
    let subscriber = tracing_subscriber::registry().with(layers).with(lines).with(filter(settings)?);
    tracing::subscriber::set_global_default(subscriber).map_err(|error| {
        Error::new(Kind::Telemetry, "logging was set up before in this process").because(error)
    })?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::capture(); // empty unless RUST_BACKTRACE asks for it
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
        let message =
            format!("log.filter: {directives:?} is no filter such as \"info,my_crate=debug\": {error}");
        Error::new(Kind::InvalidValue, message).because(error)
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
        assert_eq!(error.kind(), Kind::InvalidValue);
        assert!(error.to_string().starts_with("log.filter: \"mine=loud\""), "{error}");
    }
}
