//! Prints the output of commands: tables for people, one JSON object per line for programs.
//!
//! - Text from outside passes through [`plain`], so that it cannot send control sequences to the terminal.
//!   [`Output::table`] and [`Output::json`] do this automatically.
//! - When the reader closes the pipe (`| head`), printing returns an [`Error`]. [`exit_code`] turns it into status 141,
//!   as if SIGPIPE had ended the process, so that status 0 always means that the command did and printed everything.
//! - Nothing here panics when standard output or standard error is closed.

mod age;
mod output;
mod plain;
mod progress;

use std::io::Write;
use std::process::ExitCode;

pub use age::age;
pub use output::{Error, Output, Result};
pub use plain::{plain, plain_json};
pub use progress::Progress;

/// The status of a process that SIGPIPE ended, as shells report it: 128 + 13.
pub const CLOSED_PIPE: u8 = 141;

/// Prints one line on standard error. Ignores a closed standard error, because there is no other place to report
/// it.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The exit code for an error that ends a command: [`CLOSED_PIPE`] without a message when the reader of standard
/// output has closed the pipe, else 1 after `error: text` on standard error.
pub fn exit_code(error: &(dyn std::error::Error + 'static), text: &str) -> ExitCode {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<Error>().is_some_and(Error::is_closed) {
            return ExitCode::from(CLOSED_PIPE);
        }
        cause = error.source();
    }
    note(&format!("error: {text}"));
    ExitCode::FAILURE
}
