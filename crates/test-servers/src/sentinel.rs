//! Starts a Redis Sentinel that monitors a master, and promotes a replica when the master has failed.

use crate::process::{Place, Process, started};
use crate::{Redis, Result, spawner};
use std::io;
use std::ops::Deref;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a master may be silent before the sentinel considers it down, in milliseconds.
const DOWN_AFTER: u32 = 1000;

/// A running sentinel; also its [`Process`]. It decides alone: a quorum of one.
#[derive(Debug)]
pub struct Sentinel {
    process: Process,
}

impl Sentinel {
    /// The name of the master in the sentinel's configuration.
    pub const MASTER: &str = "main";

    /// Starts a sentinel that monitors `master` and that master's replicas.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub async fn over(master: &Redis) -> Result<Self> {
        let (program, master_port) = (master.program()?, master.port());
        let process = started(|| {
            let place = Place::new("sentinel", None, 1)?;
            let port = place.ports[0].number();
            let name = Self::MASTER;
            let text = format!(
                "bind 127.0.0.1\nport {port}\ndir {:?}\nset-proc-title no\n\
                 sentinel monitor {name} 127.0.0.1 {master_port} 1\n\
                 sentinel down-after-milliseconds {name} {DOWN_AFTER}\n\
                 sentinel failover-timeout {name} 5000\n",
                place.folder.data()
            );
            // The sentinel writes its state into its own configuration file.
            let file = place.folder.write("sentinel.conf", &text)?;
            let program = program.clone();
            let launch = move || {
                let mut command = spawner::command(&program, None);
                command.arg(&file).arg("--sentinel");
                command
            };
            let probe = move || -> std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
                Box::pin(async move { ask(port, "PING").await.map(drop) })
            };
            Ok(Process::new("redis-sentinel", place, Box::new(launch), Box::new(probe)))
        })
        .await?;
        Ok(Self { process })
    }

    /// Returns the URL for clients, which find the master through it: `redis://127.0.0.1:PORT?sentinel=main`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}?sentinel={}", self.port(), Self::MASTER)
    }

    /// Returns the port of the current master, according to the sentinel.
    ///
    /// # Errors
    /// When the sentinel does not answer, or not with a port.
    pub async fn master(&self) -> io::Result<u16> {
        let answer = ask(self.port(), &format!("SENTINEL get-master-addr-by-name {}", Self::MASTER)).await?;
        let port = answer.lines().nth(4).and_then(|line| line.trim().parse().ok());
        port.ok_or_else(|| io::Error::other(answer))
    }

    /// Returns the number of known replicas that could become the master.
    ///
    /// # Errors
    /// As [`master`](Self::master).
    pub async fn replicas(&self) -> io::Result<usize> {
        let answer = ask(self.port(), &format!("SENTINEL replicas {}", Self::MASTER)).await?;
        Ok(answer.lines().filter(|line| *line == "master-link-status").count())
    }
}

impl Deref for Sentinel {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

/// Sends one command and returns its whole answer as text: everything before the answer to a `PING`.
async fn ask(port: u16, question: &str) -> io::Result<String> {
    const END: &str = "+PONG\r\n";
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(format!("{question}\r\nPING\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(END.as_bytes()) {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    answer.truncate(answer.len() - END.len());
    String::from_utf8(answer).map_err(io::Error::other)
}
