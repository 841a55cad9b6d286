//! Requests between processes, through three tables: servers, requests and frames of replies.
//!
//! The caller writes its request for the least recently used server and wakes that server's process. The process passes
//! it to its own members as a local call and writes the frames of the reply. Rows are deleted when they have been read,
//! or when they expire.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use smol_str::SmolStr;
use tokio::time::sleep;

use super::database::Database;
use super::script::Script;
use super::wake::POLL;
use event_transport::Replies;
use event_transport::error::{Error, Result};
use event_transport::message::Message;
use event_transport::subject::Subject;

mod caller;
mod calls;
mod frame;
mod local;
mod server;

use calls::Calls;
pub(super) use local::Local;

/// Nanoseconds after its deadline at which the rows of a call are deleted: ten seconds.
const GRACE: i64 = 10_000_000_000;

/// The requests of one database file.
#[derive(Debug)]
pub(super) struct Rpc {
    calls: Arc<Calls>,
    /// Transports requests within the process.
    here: Arc<Local>,
}

impl Rpc {
    pub(super) fn new(database: Arc<Database>) -> Result<Self> {
        Ok(Self { calls: Arc::new(Calls::new(database)), here: Arc::new(Local::new()?) })
    }

    /// Opens a connection to the members in this process.
    pub(super) fn connect(&self) -> Local {
        self.here.connect()
    }

    /// Sends `request` to a member in another process.
    pub(super) async fn call(&self, request: Message, within: Duration) -> Result<Replies> {
        caller::call(&self.calls, request, within).await
    }

    /// Announces a new member to the other processes.
    pub(super) async fn announce(&self, service: &str, subjects: &[Subject]) -> Result<SmolStr> {
        server::announce(&self.calls, service, subjects).await
    }

    /// Deletes the announcement of a member that has ended.
    pub(super) async fn withdraw(&self, id: SmolStr) {
        server::withdraw(&self.calls, id).await;
    }

    /// Reads the frames for this process's callers and the requests for its members, until the database closes.
    pub(super) async fn run(&self) {
        let calls = &self.calls;
        let database = &calls.database;
        loop {
            tokio::select! {
                () = database.wake.requests.notified() => {}
                // A server's process may have ended without an answer.
                () = sleep(POLL), if calls.is_waiting() => {}
                () = database.closing.cancelled() => return,
            }
            let round = async {
                caller::receive(calls).await?;
                if calls.announced.load(Ordering::Acquire) > 0 {
                    server::take(calls, &self.here).await?;
                }
                Ok::<_, Error>(())
            };
            if let Err(error) = round.await {
                tracing::warn!(%error, "cannot exchange requests with other processes; retrying");
                sleep(Duration::from_millis(100)).await;
                database.wake.requests.notify_one();
            }
        }
    }
}

/// Adds the statements that delete expired requests and frames.
pub(super) fn purge(script: &mut Script, now: i64) {
    for table in ["rpc_request", "rpc_frame"] {
        script.statement(&format!("DELETE FROM {table} WHERE expires < ?"));
        script.bind(now.saturating_sub(GRACE));
    }
}
