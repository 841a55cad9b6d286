//! Runs the only writer of this process, which merges waiting operations into one transaction, so that callers
//! share an fsync.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};
use sqlite_kit::Identity;
use sqlx::{Executor, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::{Durability, SqliteOptions, claim, db, enqueue, error::is_busy, settle, wake::Wake};
use crate::{
    Error, ErrorKind, Result,
    store::{Channel, Claim, Claimed, Enqueued, NewTask, Notifier, Settled, Settlement},
};

/// The maximum number of waiting operations; further callers wait for room.
const BACKLOG: usize = 4096;
/// The maximum number of operations merged into one transaction, so that the first does not wait too long.
const MERGED: usize = 1024;

type Answer<T> = oneshot::Sender<Result<T>>;

/// The topics that a committed operation touches.
pub(super) type Touched = &'static [Channel];

enum Operation {
    Enqueue(Vec<NewTask>, Answer<Vec<Enqueued>>),
    Settle(Vec<Settlement>, Answer<Vec<Result<Settled>>>),
    Claim(Claim, Answer<Claimed>),
    /// A rare operation in its own transaction, so that its failure affects no other operation.
    Alone(Box<dyn Alone>),
}

/// A rare operation with its answer.
trait Alone: Send {
    fn run<'c>(&'c mut self, connection: &'c mut SqliteConnection) -> BoxFuture<'c, Result<Touched>>;
    fn answer(self: Box<Self>, committed: Result<()>);
}

/// The sending side of the writer.
pub(super) struct Writer {
    operations: mpsc::Sender<Operation>,
}

impl Writer {
    /// Starts the writer on its own thread: a task function that blocks the caller's runtime stops neither
    /// heartbeats nor other writes.
    pub(super) fn start(
        connection: SqliteConnection,
        files: Identity,
        options: SqliteOptions,
        notifier: Arc<Notifier>,
        wake: Wake,
    ) -> Result<Self> {
        let (operations, inbox) = mpsc::channel(BACKLOG);
        crate::thread::run(
            "task-store",
            run(
                Connection {
                    inner: connection,
                    synced: options.durability == Durability::Fsync,
                    options,
                    files,
                    lost: false,
                },
                inbox,
                notifier,
                wake,
            ),
        )?;
        Ok(Self { operations })
    }

    pub(super) async fn enqueue(&self, tasks: Vec<NewTask>) -> Result<Vec<Enqueued>> {
        self.ask(|answer| Operation::Enqueue(tasks, answer)).await
    }

    pub(super) async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Result<Settled>>> {
        self.ask(|answer| Operation::Settle(settlements, answer)).await
    }

    pub(super) async fn claim(&self, claim: Claim) -> Result<Claimed> {
        self.ask(|answer| Operation::Claim(claim, answer)).await
    }

    /// Runs `body` in its own transaction. After the commit, the topics that `body` returns are notified.
    pub(super) async fn alone<T, F>(&self, body: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<(T, Touched)>> + Send + 'static,
    {
        self.ask(|answer| Operation::Alone(Box::new(Body { body: Some(body), made: None, answer }))).await
    }

    async fn ask<T>(&self, operation: impl FnOnce(Answer<T>) -> Operation) -> Result<T> {
        let gone =
            || Error::new(ErrorKind::Unavailable, "the writer of the task store failed at this operation");
        let (answer, reply) = oneshot::channel();
        self.operations.send(operation(answer)).await.map_err(|_| gone())?;
        reply.await.map_err(|_| gone())?
    }
}

struct Body<F, T> {
    body: Option<F>,
    made: Option<T>,
    answer: Answer<T>,
}

impl<T, F> Alone for Body<F, T>
where
    T: Send,
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<(T, Touched)>> + Send,
{
    fn run<'c>(&'c mut self, connection: &'c mut SqliteConnection) -> BoxFuture<'c, Result<Touched>> {
        Box::pin(async move {
            let body = self.body.take().expect("an operation runs once");
            let (made, touched) = body(connection).await?;
            self.made = Some(made);
            Ok(touched)
        })
    }

    fn answer(self: Box<Self>, committed: Result<()>) {
        let made = self.made;
        let _ = self.answer.send(committed.map(|()| made.expect("a committed operation has run")));
    }
}

async fn run(
    mut connection: Connection,
    mut inbox: mpsc::Receiver<Operation>,
    notifier: Arc<Notifier>,
    mut wake: Wake,
) {
    let mut waiting = Vec::with_capacity(MERGED);
    while inbox.recv_many(&mut waiting, MERGED).await > 0 {
        let batch = batch(&mut connection, waiting.drain(..), &notifier, &mut wake);
        if AssertUnwindSafe(batch).catch_unwind().await.is_err() {
            // The callers receive an error, because their answer channels are dropped. The next batch begins with a
            // connection outside a transaction.
            tracing::error!("the writer of the task store panicked; it continues with the next operations");
            let _ = connection.inner.execute("ROLLBACK").await;
        }
    }
}

async fn batch(
    connection: &mut Connection,
    operations: impl Iterator<Item = Operation>,
    notifier: &Notifier,
    wake: &mut Wake,
) {
    let mut merged = Vec::new();
    for operation in operations {
        match operation {
            Operation::Alone(mut alone) => {
                let outcome =
                    transaction(connection, Commit::Durable, async |connection| alone.run(connection).await)
                        .await;
                if let Ok(touched) = &outcome {
                    announce(notifier, wake, touched);
                }
                alone.answer(outcome.map(|_| ()));
            }
            hot => merged.push(hot),
        }
    }
    if !merged.is_empty() {
        commit_merged(connection, merged, notifier, wake).await;
    }
}

/// Settles, enqueues and claims, in this order: a claim finds the tasks that the same transaction queued.
async fn commit_merged(
    connection: &mut Connection,
    merged: Vec<Operation>,
    notifier: &Notifier,
    wake: &mut Wake,
) {
    let (mut tasks, mut enqueues) = (Vec::new(), Vec::new());
    let (mut ends, mut settles) = (Vec::new(), Vec::new());
    let (mut claims, mut claimers) = (Vec::new(), Vec::new());
    for operation in merged {
        match operation {
            Operation::Enqueue(new, answer) => {
                enqueues.push((new.len(), answer));
                tasks.extend(new);
            }
            Operation::Settle(list, answer) => {
                settles.push((list.len(), answer));
                ends.extend(list);
            }
            Operation::Claim(claim, answer) => {
                claims.push(claim);
                claimers.push(answer);
            }
            Operation::Alone(_) => unreachable!("rare operations are not merged"),
        }
    }
    let mut outcome = hot(connection, &ends, &tasks, &claims).await;
    if outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Refused) && !tasks.is_empty() {
        // The store refused a new task: each enqueue call gets its own transaction, so that only the refused one
        // fails.
        let mut tasks = std::mem::take(&mut tasks).into_iter();
        for (count, answer) in enqueues.drain(..) {
            let own: Vec<_> = tasks.by_ref().take(count).collect();
            let stored = hot(connection, &[], &own, &[]).await.map(|(_, enqueued, _)| enqueued);
            if stored.is_ok() {
                announce(notifier, wake, &[Channel::Work]);
            }
            let _ = answer.send(stored);
        }
        outcome = hot(connection, &ends, &[], &claims).await;
    }
    match outcome {
        Ok((settled, enqueued, claimed)) => {
            let queued = !tasks.is_empty() || ends.iter().any(settle::queues_again);
            if queued {
                announce(notifier, wake, &[Channel::Work]);
            }
            if !ends.is_empty() {
                announce(notifier, wake, &[Channel::Ended]);
            }
            let mut enqueued = enqueued.into_iter();
            for (count, answer) in enqueues {
                let _ = answer.send(Ok(enqueued.by_ref().take(count).collect()));
            }
            let mut settled = settled.into_iter();
            for (count, answer) in settles {
                let _ = answer.send(Ok(settled.by_ref().take(count).collect()));
            }
            for (answer, claimed) in claimers.into_iter().zip(claimed) {
                let _ = answer.send(claimed);
            }
        }
        Err(error) => {
            enqueues.into_iter().for_each(|(_, answer)| drop(answer.send(Err(error.clone()))));
            settles.into_iter().for_each(|(_, answer)| drop(answer.send(Err(error.clone()))));
            claimers.into_iter().for_each(|answer| drop(answer.send(Err(error.clone()))));
        }
    }
}

type Hot = (Vec<Result<Settled>>, Vec<Enqueued>, Vec<Result<Claimed>>);

/// Settles, enqueues and claims in one transaction.
async fn hot(
    connection: &mut Connection,
    ends: &[Settlement],
    tasks: &[NewTask],
    claims: &[Claim],
) -> Result<Hot> {
    let dead_ttl = connection.options.dead_ttl_ms();
    let commit = if ends.is_empty() && tasks.is_empty() { Commit::Claims } else { Commit::Durable };
    transaction(connection, commit, async |connection| {
        let settled = settle::settle(connection, ends, dead_ttl).await?;
        let enqueued = enqueue::enqueue(connection, tasks).await?;
        let mut claimed = Vec::with_capacity(claims.len());
        for claim in claims {
            // A worker with an expired lease gets this error alone; the other claims continue.
            claimed.push(match claim::claim(connection, claim, dead_ttl).await {
                Err(error) if error.kind() != ErrorKind::Fenced => return Err(error),
                answer => answer,
            });
        }
        Ok((settled, enqueued, claimed))
    })
    .await
}

/// The writing connection and its options.
struct Connection {
    inner: SqliteConnection,
    options: SqliteOptions,
    /// Whether the connection syncs commits at present.
    synced: bool,
    /// The files of the database, as recorded when they were opened.
    files: Identity,
    /// Whether the last check did not find them.
    lost: bool,
}

/// The failures that a transaction's commit must survive.
#[derive(Clone, Copy, PartialEq)]
enum Commit {
    /// The failures that the store's durability option covers.
    Durable,
    /// Only a crash of the process. When a power cut undoes a claim, its task is queued again, and no live worker
    /// holds it; the next durable commit also syncs the claim.
    Claims,
}

impl Connection {
    /// Takes the write lock. SQLite's own busy handler sleeps ever longer, up to 100 ms, and so rarely gets the
    /// lock while another process writes without pause; a retry every millisecond or so gets a fair share.
    async fn begin(&mut self, commit: Commit) -> Result<()> {
        let sync = commit == Commit::Durable && self.options.durability == Durability::Fsync;
        if sync != self.synced {
            let pragma = if sync { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            self.inner
                .execute(pragma)
                .await
                .map_err(|error| db("setting the durability of a commit", error))?;
            self.synced = sync;
        }
        let give_up = Instant::now() + self.options.busy_timeout;
        loop {
            match self.inner.execute("BEGIN IMMEDIATE").await {
                Ok(_) => return Ok(()),
                Err(error) if is_busy(&error) && Instant::now() < give_up => {
                    tokio::time::sleep(Duration::from_micros(fastrand::u64(200..1500))).await;
                }
                Err(error) => return Err(db("taking the write lock of the task store", error)),
            }
        }
    }

    /// Checks that the files are still where they were opened. Called between a commit and its confirmation.
    fn intact(&mut self) -> Result<()> {
        let looked = self.files.check();
        self.lost = looked.is_err();
        looked.map_err(|lost| {
            let text = "the task store is no longer where it was opened: nothing is stored until its files are put \
                        back, or the store is opened again with the files that are there then";
            Error::new(ErrorKind::Corrupt, format!("{text}: {lost}"))
        })
    }
}

/// Runs `body` in a transaction; any error rolls back.
async fn transaction<T>(
    connection: &mut Connection,
    commit: Commit,
    body: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T>,
) -> Result<T> {
    if connection.lost {
        connection.intact()?;
    }
    connection.begin(commit).await?;
    let outcome = match body(&mut connection.inner).await {
        Ok(made) => match connection.inner.execute("COMMIT").await {
            // A write into a file that no other process can find does not count as stored.
            Ok(_) => return connection.intact().map(|()| made),
            Err(error) => Err(db("committing to the task store", error)),
        },
        Err(error) => Err(error),
    };
    // Some errors (a full disk) have already rolled back; then this statement does nothing.
    let _ = connection.inner.execute("ROLLBACK").await;
    outcome
}

fn announce(notifier: &Notifier, wake: &mut Wake, topics: &[Channel]) {
    for topic in topics {
        notifier.notify(*topic);
        wake.touch(*topic);
    }
}
