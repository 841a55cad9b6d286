//! Sends settlements: waiting settlements share a pipeline, and acknowledgements of one group share a command.
//!
//! When no settlement waits or is in flight, a settlement goes to the connection directly from the caller's thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{Pipeline, Value};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connection::{Connection, Live};
use super::direct::{Direct, Sending};
use super::error::{Failure, closed};
use super::member::Member;
use super::settlement::{Batch, Job, What, conclude, gather};
use event_transport::confirm::Confirm;
use event_transport::delivery::{Settle, Settlement, Token, lease_lost};
use event_transport::error::Result;
use event_transport::supervise;

/// Maximum number of settlements in one pipeline.
const BATCH: usize = 512;
/// Maximum number of pipelines in flight: one that the server processes and one that waits at the server. With more of
/// them, each carries fewer settlements and costs as much.
const WINDOW: usize = 2;

/// Accepts settlements and passes them to the connection or to the task that sends them.
pub(super) struct Settler {
    queue: mpsc::UnboundedSender<Job>,
    outbound: Arc<Outbound>,
    /// The runtime of the connection's task and its timers.
    runtime: Handle,
}

/// Settles the deliveries of a subscription.
pub(super) struct Holder {
    pub(super) member: Arc<Member>,
    pub(super) settler: Arc<Settler>,
}

impl Settle for Holder {
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()> {
        self.settler.settle(&self.member, token, settlement.into())
    }

    fn in_progress(&self, token: Token) -> Confirm<()> {
        self.settler.settle(&self.member, token, What::Renew)
    }
}

impl Settler {
    pub(super) fn open(connection: Arc<Connection>) -> Arc<Self> {
        let (queue, received) = mpsc::unbounded_channel();
        let died = connection.closed.clone();
        let outbound = Arc::new(Outbound { connection, waiting: AtomicUsize::new(0), direct: Direct::new() });
        let orphaned = outbound.clone();
        let sending = supervise::run("redis settle", run(outbound.clone(), received), move || {
            died.cancel();
            drop(orphaned.direct.take());
        });
        tokio::spawn(sending);
        Arc::new(Self { queue, outbound, runtime: Handle::current() })
    }

    pub(super) fn settle(&self, member: &Arc<Member>, token: Token, what: What) -> Confirm<()> {
        let Some(held) = member.held(token) else {
            let error = if member.closed.is_cancelled() { closed().during("settle") } else { lease_lost() };
            return Confirm::ready(Err(error));
        };
        let (answer, confirm) = Confirm::channel();
        let job = Job {
            member: member.clone(),
            token,
            held,
            what,
            answer: Some(answer),
            at: Instant::now(),
            again: false,
        };
        let rest = match self.outbound.waiting.fetch_add(1, Ordering::AcqRel) {
            0 => {
                let _timers = self.runtime.enter();
                let rest = self.outbound.send_direct(job);
                if self.queue.is_closed() {
                    // The task has ended and reads no reply; the dropped `Answer` reports the error.
                    drop(self.outbound.direct.take());
                }
                rest
            }
            _ => Some(job),
        };
        if let Some(job) = rest {
            // Fails only after close; then the dropped `Answer` reports the error.
            drop(self.queue.send(job));
        }
        confirm
    }
}

/// The state that the task and the callers share.
struct Outbound {
    connection: Arc<Connection>,
    /// Number of settlements without a reply.
    waiting: AtomicUsize,
    direct: Arc<Direct<Sent>>,
}

struct Sent {
    groups: Vec<Batch>,
    replies: Result<Vec<Value>, Failure>,
}

impl Outbound {
    /// Sends a settlement at once, if there is a connection; the task reads its reply. Returns a settlement that was
    /// not sent.
    fn send_direct(&self, job: Job) -> Option<Job> {
        let Some(live) = self.connection.now() else { return Some(job) };
        match self.direct.start(self.pipeline(vec![job], Some(live))) {
            // The connection had ended; another one will follow.
            Some(Sent { groups, replies: Err(Failure::Unsent(_)) }) => {
                groups.into_iter().next().and_then(Batch::into_job)
            }
            Some(sent) => self.conclude(sent).pop(),
            None => None,
        }
    }

    /// Sends settlements on this connection, or on the next one.
    fn pipeline(&self, batch: Vec<Job>, live: Option<Live>) -> Sending<Sent> {
        let groups = gather(batch);
        let mut pipeline = Pipeline::with_capacity(groups.len());
        groups.iter().for_each(|group| group.write(&mut pipeline));
        let connection = self.connection.clone();
        Box::pin(async move {
            let replies = match live {
                Some(live) => connection.run_on(live, &pipeline).await,
                None => connection.run(&pipeline).await,
            };
            Sent { groups, replies }
        })
    }

    /// Reports the results; returns the settlements that must be tried again.
    fn conclude(&self, sent: Sent) -> Vec<Job> {
        conclude(&self.connection, sent.groups, sent.replies, |finished| {
            self.waiting.fetch_sub(finished, Ordering::AcqRel);
        })
    }
}

async fn run(outbound: Arc<Outbound>, mut queue: mpsc::UnboundedReceiver<Job>) {
    let mut flying: FuturesUnordered<Sending<Sent>> = FuturesUnordered::new();
    let mut again: VecDeque<Job> = VecDeque::new();
    let mut open = true;
    while open || !flying.is_empty() || !again.is_empty() {
        let mut batch: Vec<Job> = Vec::new();
        if !again.is_empty() && flying.is_empty() {
            batch.extend(again.drain(..));
        } else {
            tokio::select! {
                biased;
                Some(sent) = flying.next() => again.extend(outbound.conclude(sent)),
                () = outbound.direct.ready() => flying.extend(outbound.direct.take()),
                count = queue.recv_many(&mut batch, BATCH), if open && flying.len() < WINDOW => if count == 0 {
                    open = false;
                    flying.extend(outbound.direct.take());
                },
            }
        }
        if !batch.is_empty() {
            flying.push(outbound.pipeline(batch, None));
        }
    }
}
