//! Log levels, with the names that other systems use.

use serde::Deserialize;
use std::fmt;

/// The minimum level that is logged. Parses the names of tracing, Python, winston and syslog, case-insensitively.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum Level {
    /// Everything.
    Trace,
    /// Messages for developers; also `http`, `verbose`, `silly`.
    Debug,
    /// Messages for operators; also `notice`. The default.
    #[default]
    Info,
    /// Unexpected conditions; also `warning`.
    Warn,
    /// Failures; also `critical`, `fatal`.
    Error,
}

impl TryFrom<String> for Level {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.trim().to_ascii_lowercase().as_str() {
            "trace" => Ok(Self::Trace),
            "debug" | "http" | "verbose" | "silly" => Ok(Self::Debug),
            "info" | "notice" => Ok(Self::Info),
            "warn" | "warning" => Ok(Self::Warn),
            "error" | "critical" | "fatal" => Ok(Self::Error),
            _ => Err(format!("expected trace, debug, info, warn or error, got {name:?}")),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_s_word_is_understood() {
        for (name, level) in [
            ("INFO", Level::Info),
            ("WARNING", Level::Warn),
            ("CRITICAL", Level::Error),
            ("http", Level::Debug),
        ] {
            assert_eq!(Level::try_from(name.to_owned()), Ok(level));
            assert_eq!(Level::try_from(level.to_string()), Ok(level));
        }
        assert!(Level::try_from("loud".to_owned()).unwrap_err().contains("\"loud\""));
    }
}
