//! One scale for every logger's level words: OpenTelemetry's severity number.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How grave a record is: OpenTelemetry's severity number, 1 (trace) to 24 (fatal), four steps to each name.
///
/// The word that the logger itself used is kept beside it in [`LogRecord::level`](super::LogRecord::level).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(from = "u8", into = "u8")]
pub struct Severity(u8);

impl Severity {
    /// Finest detail.
    pub const TRACE: Self = Self(1);
    /// For the developer.
    pub const DEBUG: Self = Self(5);
    /// Normal operation; also what an unknown or missing level word counts as.
    pub const INFO: Self = Self(9);
    /// Something to look at.
    pub const WARN: Self = Self(13);
    /// Something failed.
    pub const ERROR: Self = Self(17);
    /// The process cannot go on.
    pub const FATAL: Self = Self(21);

    /// The severity of a level word, whatever its case; `None` for a word that no known logger uses.
    ///
    /// Knows the words of tracing, Python, syslog, winston, Java and the usual short forms: `WARN` and
    /// `WARNING` are the same, `CRITICAL` is fatal, winston's `http` lies between debug and info.
    pub fn from_word(word: &str) -> Option<Self> {
        let mut lower = [0_u8; 16];
        let word = word.trim().as_bytes();
        let lower = lower.get_mut(..word.len())?;
        lower.copy_from_slice(word);
        lower.make_ascii_lowercase();
        Some(match &*lower {
            b"trace" | b"finest" | b"all" => Self::TRACE,
            b"silly" | b"finer" => Self(3),
            b"debug" | b"dbg" | b"verbose" | b"fine" => Self::DEBUG,
            b"http" | b"config" => Self(8),
            b"info" | b"inf" | b"information" | b"informational" | b"log" => Self::INFO,
            b"notice" | b"success" => Self(10),
            b"warn" | b"warning" | b"wrn" => Self::WARN,
            b"error" | b"err" | b"severe" | b"failure" => Self::ERROR,
            b"fatal" | b"critical" | b"crit" | b"panic" => Self::FATAL,
            b"alert" => Self(22),
            b"emergency" | b"emerg" => Self(24),
            _ => return None,
        })
    }

    /// The number, 1 to 24.
    pub fn number(self) -> u8 {
        self.0
    }

    /// The name of the four steps that this severity lies in: `trace`, `debug`, `info`, `warn`, `error` or `fatal`.
    pub fn name(self) -> &'static str {
        match self.0 {
            0..=4 => "trace",
            5..=8 => "debug",
            9..=12 => "info",
            13..=16 => "warn",
            17..=20 => "error",
            _ => "fatal",
        }
    }
}

/// Numbers outside 1 to 24 come from senders that know no severity: they count as [`Severity::INFO`].
impl From<u8> for Severity {
    fn from(number: u8) -> Self {
        if (1..=24).contains(&number) { Self(number) } else { Self::INFO }
    }
}

impl From<Severity> for u8 {
    fn from(severity: Severity) -> Self {
        severity.0
    }
}

impl Default for Severity {
    fn default() -> Self {
        Self::INFO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_words_for_a_warning_are_one_severity() {
        assert_eq!(Severity::from_word("WARN"), Some(Severity::WARN));
        assert_eq!(Severity::from_word(" Warning "), Some(Severity::WARN));
    }

    #[test]
    fn words_of_other_loggers_have_their_place() {
        assert_eq!(Severity::from_word("CRITICAL"), Some(Severity::FATAL));
        let http = Severity::from_word("http").expect("winston's level is known");
        assert!(http > Severity::DEBUG && http < Severity::INFO);
    }

    #[test]
    fn unknown_and_endless_words_have_none() {
        assert_eq!(Severity::from_word("BANANA"), None);
        assert_eq!(Severity::from_word(&"warning".repeat(10)), None);
        assert_eq!(Severity::from_word(""), None);
    }

    #[test]
    fn numbers_outside_the_scale_are_info() {
        assert_eq!(Severity::from(0), Severity::INFO);
        assert_eq!(Severity::from(25), Severity::INFO);
        assert_eq!(Severity::from(24).name(), "fatal");
    }
}
