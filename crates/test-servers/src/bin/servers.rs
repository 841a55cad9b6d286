//! Runs a private set of servers until it receives SIGTERM or Ctrl-C; `ops/dev/servers` starts this program.
//!
//! `servers [--new] [--fsync]` prints one line for each server, `NAME=URL`, then an empty line, and ends on
//! SIGTERM or Ctrl-C; the servers and their data are removed with it.

use std::process::ExitCode;
use test_servers::{Generation, Nats, Postgres, Rabbit, Redis, Result};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let (mut generation, mut fsync) = (Generation::Old, false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--new" => generation = Generation::New,
            "--fsync" => fsync = true,
            _ => {
                eprintln!("servers: unknown argument {argument}; usage: servers [--new] [--fsync]");
                return ExitCode::from(2);
            }
        }
    }
    match run(generation, fsync).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("servers: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(generation: Generation, fsync: bool) -> Result<()> {
    let (mut nats, mut redis) =
        (Nats::options().generation(generation), Redis::options().generation(generation));
    if fsync {
        (nats, redis) = (nats.fsync(), redis.fsync());
    }
    let rabbit = Rabbit::options().generation(generation);
    let started = tokio::join!(nats.start(), redis.start(), rabbit.start(), Postgres::options().start());
    let (nats, redis, rabbit, postgres) = (started.0?, started.1?, started.2?, started.3?);
    println!("EVENT_BUS_URL={}", nats.url());
    println!("EVENT_BUS_URL={}", redis.url());
    println!("EVENT_BUS_URL={}", rabbit.url());
    println!("DATABASE_URL={}", postgres.url());
    println!();
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
    let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be caught");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
