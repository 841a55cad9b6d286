//! Helpers of the end-to-end tests: our own binaries, child processes that never outlive a test, and waiting.
//!
//! No helper waits for a fixed time: a test waits for a line of output ([`Process::line`]), for an exit
//! ([`Process::exit`]), or for a condition with a deadline ([`eventually`]).

mod binary;
mod cli;
mod eventually;
mod port;
mod process;

pub use binary::binary;
pub use cli::{Cli, Said};
pub use eventually::eventually;
pub use port::free_port;
pub use process::{Process, Signal};

use std::path::{Path, PathBuf};

/// Returns the root folder of the workspace: the folder of `Cargo.toml`, `README.md` and `ops/`.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests package lies in the workspace")
        .to_owned()
}

/// The README's programs, compiled and run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[derive(Debug)]
pub struct Readme;
