//! The `backbone` binary: runs bus, tasks and logs in one process, and provides command-line tools for them.

mod args;
mod builtin;
mod commands;
mod config;
mod stack;
mod times;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal::note(&format!("error: cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(commands::run(cli)) {
        Ok(code) => code,
        Err(error) => terminal::exit_code(error.as_ref(), &format!("{error:#}")),
    };
    // A blocking read of standard input must not delay the exit.
    runtime.shutdown_background();
    code
}
