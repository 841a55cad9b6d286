//! A connection for blocking reads, which `CLIENT UNBLOCK` can interrupt.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use tokio::sync::Notify;

use super::codec::number;
use super::connection::Connection;
use super::error::{explain, reply};
use event_transport::error::{Error, ErrorKind, Result};

/// Maximum time that a command blocks; its reply must follow within [`GRACE`], or the connection counts as dead.
pub(super) const LONGEST: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(5);
/// The same where the ACL forbids `CLIENT UNBLOCK`.
const SHORT: Duration = Duration::from_millis(50);

pub(super) struct Reader {
    shared: Arc<Connection>,
    connection: MultiplexedConnection,
    id: i64,
    /// `CLIENT UNBLOCK` is not allowed.
    stubborn: bool,
}

impl Reader {
    pub(super) async fn open(shared: &Arc<Connection>) -> Result<Self> {
        let (connection, id) = shared.server.blocking().await?;
        Ok(Self { shared: shared.clone(), connection, id, stubborn: false })
    }

    /// How long a command may block when the caller wants at most `wanted`.
    pub(super) fn patience(&self, wanted: Duration) -> Duration {
        wanted.min(if self.stubborn { SHORT } else { LONGEST }).max(Duration::from_millis(1))
    }

    /// Runs a command that the server answers at once.
    pub(super) async fn ask(&mut self, command: &Cmd) -> Result<Value> {
        super::dial::ask_within(&mut self.connection, command, GRACE).await
    }

    /// Runs a command that blocks up to `block`, or until `wake` is notified.
    pub(super) async fn wait(&mut self, command: &Cmd, block: Duration, wake: &Notify) -> Result<Value> {
        let mut connection = self.connection.clone();
        let mut answer = std::pin::pin!(connection.send_packed_command(command));
        let mut late = std::pin::pin!(tokio::time::sleep(block + GRACE));
        let answer = tokio::select! {
            biased;
            answer = &mut answer => answer,
            () = wake.notified() => {
                // The read is unblocked and not dropped: entries that the server has assigned to it must not be lost.
                loop {
                    tokio::select! {
                        biased;
                        answer = &mut answer => break answer,
                        () = &mut late => return Err(stalled()),
                        called = unblock(&self.shared, self.id), if !self.stubborn => match called {
                            Ok(true) => {}
                            // Not blocked yet, or no longer.
                            Ok(false) => tokio::time::sleep(Duration::from_millis(1)).await,
                            Err(error) if error.kind() == ErrorKind::Denied => {
                                tracing::warn!("the ACL forbids CLIENT UNBLOCK: readers poll every {SHORT:?} instead");
                                self.stubborn = true;
                            }
                            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                        },
                    }
                }
            }
            () = &mut late => return Err(stalled()),
        };
        reply(answer.map_err(|error| explain(&error))?)
    }
}

fn stalled() -> Error {
    Error::new(ErrorKind::Timeout, "the server did not answer a blocking read in time")
}

async fn unblock(shared: &Connection, id: i64) -> Result<bool> {
    let mut command = redis::cmd("CLIENT");
    command.arg("UNBLOCK").arg(id);
    Ok(number(&shared.ask(command).await?) == 1)
}
