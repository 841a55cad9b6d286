//! Reports the result of each part after a shutdown.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

/// The result of a shutdown.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// Reason: a signal's name, the part that ended without a request, or the argument of
    /// [`ask`](super::Shutdown::ask).
    pub why: String,
    /// Parts that finished, in the order in which they finished.
    pub finished: Vec<String>,
    /// Parts that failed, with their errors.
    pub failed: Vec<(String, String)>,
    /// Parts that were still running when the time limit was reached or the shutdown was forced.
    pub abandoned: Vec<String>,
    /// Duration of the draining.
    pub took: Duration,
}

impl Report {
    /// Returns whether every part finished its work.
    pub fn is_clean(&self) -> bool {
        self.failed.is_empty() && self.abandoned.is_empty()
    }

    /// Returns 0 when clean, 1 otherwise. A part that blocks a thread can delay the end of `main` even when it was
    /// abandoned; `std::process::exit` does not wait for it.
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
