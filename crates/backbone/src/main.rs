//! The backbone binary: everything in one process, and the tools to look inside.

mod args;
mod builtin;
mod commands;
mod stack;

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
    // A read that blocks on standard input must not hold up the end.
    runtime.shutdown_background();
    code
}
