//! Requests between processes, through three tables: servers, requests and frames of replies.
//!
//! The caller writes its request for the least recently used server and wakes that server's process. The process passes
//! it to its own members as a local call and writes the frames of the reply. Rows are deleted when they have been read,
//! or when they expire.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use smol_str::SmolStr;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::connection::{Database, Script};
use super::subscribe::POLL;
use crate::error::{Error, Result};
use crate::transport::{Frame, MemoryTransport};

mod caller;
mod frame;
mod server;

pub(super) use caller::call;
pub(super) use server::{announce, withdraw};

/// The highest number of frames of one reply that the server has written and the caller has not taken.
const FRAMES: usize = 64;
/// Nanoseconds after its deadline at which the rows of a call are deleted: ten seconds.
const GRACE: i64 = 10_000_000_000;

/// The calls of this process to others, and of others to this one.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Callers in this process that wait for a reply, by request id.
    out: Mutex<HashMap<SmolStr, Call>>,
    /// Requests of other processes that members of this process handle, by request id.
    running: Mutex<HashMap<SmolStr, CancellationToken>>,
    /// The number of members that this process has announced: with zero it need not look for requests.
    announced: AtomicUsize,
    /// Signalled when another process wakes this one, or when there may be more requests or frames to read.
    pub(super) called: Notify,
}

#[derive(Debug)]
struct Call {
    process: String,
    frames: mpsc::Sender<Result<Frame>>,
}

/// Reads the frames for this process's callers and the requests for its members, until the database closes.
pub(super) async fn run(database: Arc<Database>, here: Arc<MemoryTransport>) {
    loop {
        tokio::select! {
            _ = timeout(POLL, database.calls.called.notified()) => {}
            () = database.closing.cancelled() => return,
        }
        let round = async {
            caller::receive(&database).await?;
            if database.calls.announced.load(Ordering::Acquire) > 0 {
                server::take(&database, &here).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = round.await {
            tracing::warn!(%error, "cannot exchange requests with other processes; retrying");
            sleep(Duration::from_millis(100)).await;
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
