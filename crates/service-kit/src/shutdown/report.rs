//! What became of each part when a process ended.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

/// How a process ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// Why: a signal's name, the part that ended by itself, or what [`ask`](super::Shutdown::ask) was given.
    pub why: String,
    /// Parts that finished, in the order they did.
    pub finished: Vec<String>,
    /// Parts that failed, with their errors.
    pub failed: Vec<(String, String)>,
    /// Parts that were still busy when the bound was over or draining was given up.
    pub abandoned: Vec<String>,
    /// How long draining took.
    pub took: Duration,
}

impl Report {
    /// Whether every part finished its work.
    pub fn is_clean(&self) -> bool {
        self.failed.is_empty() && self.abandoned.is_empty()
    }

    /// 0 when clean, 1 otherwise. A part that blocks a thread can hold up the end of `main` even when
    /// abandoned; `std::process::exit` cannot be held up.
    pub fn exit_code(&self) -> ExitCode {
        if self.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped ({}) in {:.1?}", self.why, self.took)?;
        if !self.finished.is_empty() {
            write!(f, "; finished: {}", self.finished.join(", "))?;
        }
        for (name, error) in &self.failed {
            write!(f, "; failed: {name}: {error}")?;
        }
        if !self.abandoned.is_empty() {
            write!(f, "; abandoned while busy: {}", self.abandoned.join(", "))?;
        }
        Ok(())
    }
}
