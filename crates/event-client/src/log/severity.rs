//! Maps the level words of all loggers to one scale: OpenTelemetry's severity number.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The severity of a record: OpenTelemetry's severity number, 1 (trace) to 24 (fatal), four numbers for each name.
///
/// The level as the logger wrote it is kept in [`LogRecord::level`](super::LogRecord::level).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(from = "u8", into = "u8")]
pub struct Severity(u8);

impl Severity {
    /// The finest details.
    pub const TRACE: Self = Self(1);
    /// Details for developers.
    pub const DEBUG: Self = Self(5);
    /// Normal operation; also the severity of an unknown or missing level word.
    pub const INFO: Self = Self(9);
    /// A possible problem.
    pub const WARN: Self = Self(13);
    /// A failure.
    pub const ERROR: Self = Self(17);
    /// A failure after which the process cannot continue.
    pub const FATAL: Self = Self(21);

    /// Returns the severity of a level as loggers write it, in any letter case; `None` for a level that no known
    /// logger uses.
    ///
    /// Recognises the words of tracing, Python, syslog, winston, zap, Java and .NET, their short forms down to one
    /// letter (`E`, `W`), OpenTelemetry's steps (`ERROR3`), Go's offsets (`DEBUG-4`, `INFO+2`), names with a prefix
    /// or brackets (`SEVERITY_ERROR`, `[ERROR]`), words in terminal colours, and [numbers](Self::from_level_number).
    /// `WARN` and `WARNING` are the same, `CRITICAL` is fatal, and winston's `http` is between debug and info.
    pub fn from_word(word: &str) -> Option<Self> {
        let mut lower = [0_u8; LONGEST_WORD];
        let word = word.trim().as_bytes();
        let lower = lower.get_mut(..word.len())?;
        lower.copy_from_slice(word);
        lower.make_ascii_lowercase();
        named(lower).or_else(|| spelled(std::str::from_utf8(lower).ok()?))
    }

    /// Returns the severity of a numeric level: 0 to 7 are syslog's levels (0 is an emergency), 10 to 99 are those of
    /// pino and bunyan (30 is info, 50 is an error), and -99 to -1 are those of Go's loggers. `None` for all other
    /// numbers.
    pub fn from_level_number(number: i64) -> Option<Self> {
        Some(match number {
            0 => Self(24),
            1 => Self(22),
            2 => Self::FATAL,
            3 => Self::ERROR,
            4 => Self::WARN,
            5 => Self(10),
            6 => Self::INFO,
            7 => Self::DEBUG,
            10..=19 => Self::TRACE,
            20..=29 => Self::DEBUG,
            30..=39 => Self::INFO,
            40..=49 => Self::WARN,
            50..=59 => Self::ERROR,
            60..=99 => Self::FATAL,
            -4..=-1 => Self::DEBUG,
            -99..=-5 => Self::TRACE,
            _ => return None,
        })
    }

    /// Returns the number, 1 to 24.
    pub fn number(self) -> u8 {
        self.0
    }

    /// Returns the name of the four numbers to which this severity belongs: `trace`, `debug`, `info`, `warn`, `error`
    /// or `fatal`.
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

/// Longer words are no level. This leaves room for a name with a prefix, a step and colours.
const LONGEST_WORD: usize = 48;

/// Returns the severity of a plain name in lower case.
fn named(word: &[u8]) -> Option<Severity> {
    Some(match word {
        b"trace" | b"trc" | b"finest" | b"all" | b"t" => Severity::TRACE,
        b"silly" | b"finer" => Severity(3),
        b"debug" | b"dbg" | b"dbug" | b"verbose" | b"fine" | b"d" | b"v" => Severity::DEBUG,
        b"http" | b"config" => Severity(8),
        b"info" | b"inf" | b"information" | b"informational" | b"log" | b"i" => Severity::INFO,
        b"notice" | b"note" | b"success" | b"n" => Severity(10),
        b"warn" | b"warning" | b"wrn" | b"w" => Severity::WARN,
        b"error" | b"err" | b"eror" | b"severe" | b"failure" | b"fail" | b"e" => Severity::ERROR,
        b"fatal" | b"ftl" | b"critical" | b"crit" | b"panic" | b"dpanic" | b"f" | b"c" => Severity::FATAL,
        b"alert" => Severity(22),
        b"emergency" | b"emerg" => Severity(24),
        _ => return None,
    })
}

/// Returns the severity of a name with a prefix, brackets, colours or a step.
fn spelled(word: &str) -> Option<Severity> {
    const PREFIXES: [&str; 7] =
        ["severity_number_", "severity_", "loglevel.", "log_level_", "level.", "level_", "log_"];
    // Terminal colours: `ESC[31merrorESC[39m`.
    let word = match word.split_once("\u{1b}[") {
        Some(("", coloured)) => coloured.split_once('m')?.1.split('\u{1b}').next()?,
        _ => word,
    };
    let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-'));
    let word = PREFIXES.iter().find_map(|prefix| word.strip_prefix(prefix)).unwrap_or(word);
    if let Ok(number) = word.parse() {
        return Severity::from_level_number(number);
    }
    let end = word.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(word.len());
    let (name, step) = word.split_at(end);
    let base = named(name.as_bytes())?;
    if step.is_empty() {
        return Some(base);
    }
    let number: i64 = step.parse().ok()?;
    let distance = match number {
        // Go's `INFO+2`; the distance between two of Go's levels is the same as between two of OpenTelemetry's.
        _ if step.starts_with(['+', '-']) => number,
        // OpenTelemetry's `ERROR3` is two above `ERROR`.
        1..=4 => number - 1,
        // PostgreSQL's `DEBUG5` and similar: not a step of this scale.
        _ => 0,
    };
    let found = i64::from(base.0).saturating_add(distance).clamp(1, 24);
    u8::try_from(found).ok().map(Severity)
}

/// Numbers outside 1 to 24 come from senders that have no severity: they count as [`Severity::INFO`].
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
    fn every_loggers_spelling_is_understood() {
        let cases: [(Severity, &[&str]); 12] = [
            (
                Severity::TRACE,
                &["T", "trc", "TRACE", "10", "DEBUG-4", "DEBUG-99", "-8", "SEVERITY_NUMBER_TRACE"],
            ),
            (Severity(3), &["silly", "TRACE3", "finer"]),
            (Severity::DEBUG, &["D", "V", "DBG", "7", "20", "-4", "D1", "debug5", "LOG_DEBUG", "DEBUG:"]),
            (Severity(8), &["http", "INFO-1", "DEBUG4", "CONFIG"]),
            (
                Severity::INFO,
                &["I", "INF", "6", "30", "35", "info", "[INFO]", "\u{1b}[32minfo\u{1b}[39m", "INFO+0"],
            ),
            (Severity(10), &["NOTICE", "5", "SUCCESS", "INFO2"]),
            (Severity(11), &["INFO+2", "INFO3"]),
            (Severity::WARN, &["W", "wrn", "4", "40", "WARNING", "warning:", "SEVERITY_WARN"]),
            (Severity(14), &["WARN2", "WARN+1"]),
            (
                Severity::ERROR,
                &["E", "err", "3", "50", "[ERROR]", "<3>", "SEVERITY_ERROR", "LogLevel.ERROR", "(error)"],
            ),
            (Severity(19), &["ERROR3", "ERROR+2", "SEVERITY_NUMBER_ERROR3"]),
            (Severity::FATAL, &["F", "C", "dpanic", "PANIC", "60", "2", "CRITICAL", "ERROR+4", "FTL"]),
        ];
        for (expected, words) in cases {
            for word in words {
                assert_eq!(Severity::from_word(word), Some(expected), "{word:?}");
            }
        }
        for (word, expected) in
            [("0", 24), ("1", 22), ("emerg", 24), ("alert", 22), ("FATAL4", 24), ("FATAL+9", 24)]
        {
            assert_eq!(Severity::from_word(word), Some(Severity(expected)), "{word:?}");
        }
    }

    #[test]
    fn unknown_and_endless_words_have_none() {
        for none in [
            "8",
            "9",
            "100",
            "-100",
            "99999999999999999999",
            "i18n",
            "ERROR+",
            "+",
            "[]",
            "\u{1b}[",
            "é",
            "errors",
            "INFO 2",
        ] {
            assert_eq!(Severity::from_word(none), None, "{none:?}");
        }
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
