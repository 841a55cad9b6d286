//! Draws a line on standard error that shows the progress of long work.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// The shortest time between two redraws of the line.
const INTERVAL: Duration = Duration::from_millis(200);

/// One line that overwrites itself. It is drawn only when standard error is a terminal, and standard output, which
/// would mix with it, is not.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    drawn: Option<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        Self { shown: std::io::stderr().is_terminal() && !std::io::stdout().is_terminal(), drawn: None }
    }
}

impl Progress {
    /// Draws `text`, at most five times a second.
    pub fn update(&mut self, text: impl FnOnce() -> String) {
        if self.shown && self.drawn.is_none_or(|at| at.elapsed() >= INTERVAL) {
            self.drawn = Some(Instant::now());
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K{}", text());
        }
    }

    /// Removes the line.
    pub fn clear(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
