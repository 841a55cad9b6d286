//! Calls between processes, through three tables: who serves, what is asked, what is answered.
//!
//! The caller writes its request for the process whose turn it is and taps it on the shoulder. That process hands
//! it to its own members as any local call, and writes the frames back. Rows go when they are read, or run out.

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

/// Frames of one answer between the server and the caller's hands.
const FRAMES: usize = 64;
/// How long the rows of a call may outlive its deadline.
const GRACE: i64 = 10_000_000_000;

/// The calls of this process to others, and of others to this one.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Waiting callers by request.
    out: Mutex<HashMap<SmolStr, Call>>,
    /// What members here work on for callers elsewhere.
    running: Mutex<HashMap<SmolStr, CancellationToken>>,
    /// How many members this process has announced: without any there is nothing to look for.
    announced: AtomicUsize,
    /// Signalled when another process calls, or when there is room for more frames.
    pub(super) called: Notify,
}

#[derive(Debug)]
struct Call {
    process: String,
    frames: mpsc::Sender<Result<Frame>>,
}

/// Carries requests in and frames out until the database closes.
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
            tracing::warn!(%error, "cannot exchange calls with other processes; trying again");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Adds the statements that delete what has run out.
pub(super) fn purge(script: &mut Script, now: i64) {
    for table in ["rpc_request", "rpc_frame"] {
        script.statement(&format!("DELETE FROM {table} WHERE expires < ?"));
        script.bind(now.saturating_sub(GRACE));
    }
}
