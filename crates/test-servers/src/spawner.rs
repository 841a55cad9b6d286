//! Starts child processes that are killed when this process ends for any reason.
//!
//! `setpriv --pdeathsig KILL` makes the kernel kill a child when the *thread* that started it ends. So a
//! single thread starts all children, and runs as long as the process.

use crate::{Error, Result};
use std::io;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};
use std::thread;

type SpawnRequest = (Command, mpsc::Sender<io::Result<Child>>);

/// Returns a command that runs `program` as `user` (or as the current user) and that ends with this process.
pub(crate) fn command(program: &std::path::Path, user: Option<&str>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(user) = user {
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
    }
    command.arg("--").arg(program);
    command
}

/// Starts the child. Returns when it is running; blocks the caller only for that moment.
pub(crate) fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<SpawnRequest>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<SpawnRequest>();
        thread::Builder::new()
            .name("test-servers".to_owned())
            .spawn(move || {
                for (mut command, answer) in orders {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("the system has a thread for us");
        sender
    });
    let (answer, child) = mpsc::channel();
    spawner.send((command, answer)).expect("the spawner lives as long as the process");
    let child = child.recv().expect("the spawner answers each order");
    child.map_err(|e| Error::system("cannot run setpriv (package util-linux)", e))
}
