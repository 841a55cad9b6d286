//! The queue of work for the writer: publishes, claims, settlements, renewals and other jobs.

use std::collections::VecDeque;
use std::sync::Mutex;

use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::Notify;

use super::claim::Claim;
use super::error::closed;
use super::publish::Publish;
use super::settle::Settled;
use event_transport::confirm::{Answer, Confirm};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::sync::lock;

/// The highest number and size in bytes of waiting publishes; further publishes are refused.
const MAX_WAITING: usize = 65_536;
const MAX_WAITING_BYTES: usize = 64 << 20;
/// The highest number of publishes in one transaction.
const MAX_BATCH: usize = 8192;

/// The queue of work for the writer.
#[derive(Default)]
pub(super) struct WriteQueue {
    work: Mutex<Work>,
    wake: Notify,
}

/// The work that waits, or that the writer has taken for its next transactions.
#[derive(Default)]
pub(super) struct Work {
    pub(super) publishes: Vec<Publish>,
    bytes: usize,
    pub(super) claims: Vec<Claim>,
    pub(super) settles: Vec<Settled>,
    pub(super) renewals: Vec<Renewal>,
    /// Questions for the version of the file, which changes with each commit of another process.
    pub(super) looks: Vec<Answer<i64>>,
    pub(super) jobs: VecDeque<Job>,
    closed: bool,
}

impl Work {
    /// Whether there is no work, apart from jobs.
    pub(super) fn is_empty(&self) -> bool {
        self.publishes.is_empty()
            && self.claims.is_empty()
            && self.settles.is_empty()
            && self.renewals.is_empty()
            && self.looks.is_empty()
    }
}

/// Extends the leases of `members` to the time `until`; the answer lists the members that still exist.
pub(super) struct Renewal {
    pub(super) members: Vec<i64>,
    pub(super) until: i64,
    pub(super) answer: Answer<Vec<i64>>,
}

/// Other work, which is rare and has its own transaction.
pub(super) type Job = Box<dyn for<'c> FnOnce(Result<&'c mut SqliteConnection>) -> BoxFuture<'c, ()> + Send>;

impl WriteQueue {
    fn with<R>(&self, wake: bool, add: impl FnOnce(&mut Work) -> R) -> R {
        let result = add(&mut lock(&self.work));
        if wake {
            self.wake.notify_one();
        }
        result
    }

    /// Adds work; a closed queue drops it without an answer.
    fn add(&self, add: impl FnOnce(&mut Work)) {
        self.with(true, |work| {
            if !work.closed {
                add(work);
            }
        });
    }

    /// Closes the queue and drops the waiting work: dropping its answers makes them report that the bus is closed.
    pub(super) fn close(&self) {
        drop(self.with(false, |work| std::mem::replace(work, Work { closed: true, ..Work::default() })));
    }

    /// Whether the queue is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.with(false, |work| work.closed)
    }

    /// Waits for work.
    pub(super) async fn waiting(&self) {
        self.wake.notified().await;
    }

    /// Takes the waiting work, with as many publishes as fit into one transaction.
    pub(super) fn take(&self) -> Work {
        self.with(false, |work| {
            let rest = if work.publishes.len() > MAX_BATCH {
                work.publishes.split_off(MAX_BATCH)
            } else {
                Vec::new()
            };
            let taken = Work { bytes: 0, closed: false, ..std::mem::take(work) };
            work.bytes = rest.iter().map(|publish| publish.record.len()).sum();
            work.publishes = rest;
            taken
        })
    }

    /// Adds a publish.
    pub(super) fn publish(&self, publish: Publish) {
        let refused = self.with(true, |work| {
            if work.closed {
                return Some((publish, closed("publish")));
            }
            if work.publishes.len() >= MAX_WAITING || work.bytes >= MAX_WAITING_BYTES {
                return Some((
                    publish,
                    Error::new(
                        ErrorKind::Full,
                        "too many publishes wait for the disk; await some confirmations first",
                    )
                    .during("publish"),
                ));
            }
            work.bytes += publish.record.len();
            work.publishes.push(publish);
            None
        });
        if let Some((publish, error)) = refused {
            let _ = publish.answer.send(Err(error));
        }
    }

    /// Adds a claim.
    pub(super) fn claim(&self, claim: Claim) {
        self.add(|work| work.claims.push(claim));
    }

    /// Adds a settlement.
    pub(super) fn settle(&self, settled: Settled) {
        self.add(|work| work.settles.push(settled));
    }

    /// Renews the leases of `members` until the time `until`. The confirmation lists the members that still exist.
    pub(super) fn renew(&self, members: Vec<i64>, until: i64) -> Confirm<Vec<i64>> {
        let (answer, confirm) = Confirm::channel();
        self.add(|work| work.renewals.push(Renewal { members, until, answer }));
        confirm
    }

    /// Asks for the version of the file: it changes with each commit of another process.
    pub(super) fn version(&self) -> Confirm<i64> {
        let (answer, confirm) = Confirm::channel();
        self.add(|work| work.looks.push(answer));
        confirm
    }

    /// Adds other work.
    pub(super) fn job(&self, job: Job) {
        self.add(|work| work.jobs.push_back(job));
    }
}

impl std::fmt::Debug for WriteQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteQueue").finish_non_exhaustive()
    }
}
