//! Runs the subcommands; each has its own file.

mod connect;
mod dead_letters;
mod demo;
mod doctor;
mod lag;
mod lines;
mod logs;
pub(crate) mod outbox;
mod publish;
mod replay;
mod schema;
mod show;
mod subscribe;
mod task;
mod topology;
mod up;

use std::process::ExitCode;

use crate::args::{Cli, Command};
use terminal::Output;

/// Runs the command and returns its exit code.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let output = Output::new(cli.global.json);
    match cli.command {
        Command::Up(args) => return up::run(&cli.global, args, output).await,
        Command::Demo(args) => return demo::run(&cli.global, args, output).await,
        Command::Pub(args) => publish::run(&cli.global, args, output).await?,
        Command::Sub(args) => subscribe::run(&cli.global, args, output).await?,
        Command::Tail(args) => subscribe::tail(&cli.global, args, output).await?,
        Command::Replay(args) => replay::run(&cli.global, args, output).await?,
        Command::Lag(args) => lag::run(&cli.global, args, output).await?,
        Command::Dlq(args) => dead_letters::run(&cli.global, args, output).await?,
        Command::Outbox(args) => outbox::run(args, output).await?,
        Command::Schema(args) => return schema::run(args, output),
        Command::Task(command) => return task::run(&cli.global, command).await,
        Command::Logs(command) => logs::run(command, output).await?,
        Command::Topology(args) => return topology::run(&cli.global, args, output).await,
        Command::Doctor => return doctor::run(&cli.global, output).await,
    }
    Ok(ExitCode::SUCCESS)
}
