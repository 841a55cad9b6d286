//! The one writer of this process: what waits for it goes into one transaction, so callers share an fsync.

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

/// Waiting operations; callers beyond that wait for room.
const BACKLOG: usize = 4096;
/// Operations merged into one transaction at most, so that the first does not wait for ever.
const MERGED: usize = 1024;

type Answer<T> = oneshot::Sender<Result<T>>;

/// The topics a committed operation touches.
pub(super) type Touched = &'static [Channel];

enum Operation {
    Enqueue(Vec<NewTask>, Answer<Vec<Enqueued>>),
    Settle(Vec<Settlement>, Answer<Vec<Result<Settled>>>),
    Claim(Claim, Answer<Claimed>),
    /// Anything rare: a transaction of its own, so that its failure is its own.
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
    /// Starts the writer on a thread of its own: a task function that blocks the caller's runtime stops neither
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

    /// Runs `body` in a transaction of its own. On success the topics it names are notified after the commit.
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
            // Whoever asked sees the answer missing. The next batch begins with a connection out of transactions.
            tracing::error!("the writer of the task store panicked; it goes on with the next operations");
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

/// Settles, enqueues and claims, in this order: a claim sees what the same transaction queued.
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
        // Some new task is refused: each call by itself, so that it fails alone.
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
            // A worker whose lease lapsed is told so; the others' work goes on.
            claimed.push(match claim::claim(connection, claim, dead_ttl).await {
                Err(error) if error.kind() != ErrorKind::Fenced => return Err(error),
                answer => answer,
            });
        }
        Ok((settled, enqueued, claimed))
    })
    .await
}

/// The writing connection and what it was opened with.
struct Connection {
    inner: SqliteConnection,
    options: SqliteOptions,
    /// Whether commits are synced now.
    synced: bool,
    /// The files of the database, as they were opened.
    files: Identity,
    /// The last look has not found them.
    lost: bool,
}

/// What a transaction's commit must survive.
#[derive(Clone, Copy, PartialEq)]
enum Commit {
    /// Whatever the store was opened for.
    Durable,
    /// A crash of the process only. A claim that a power cut undoes leaves its task queued, and nobody alive who
    /// holds it; the next durable commit syncs it along.
    Claims,
}

impl Connection {
    /// Takes the write lock. SQLite's own waiting sleeps ever longer, up to 100 ms, and so loses against a process
    /// that writes without pause; asking every millisecond or two gets a fair share.
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

    /// Whether the files are still where they were opened: asked between a commit and what is confirmed by it.
    fn intact(&mut self) -> Result<()> {
        let looked = self.files.check();
        self.lost = looked.is_err();
        looked.map_err(|lost| {
            let text = "the task store is no longer where it was opened: nothing is stored until its files are put \
                        back, or the store is opened again and takes what stands there then";
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
            // What went into a file that nobody else finds is not stored.
            Ok(_) => return connection.intact().map(|()| made),
            Err(error) => Err(db("committing to the task store", error)),
        },
        Err(error) => Err(error),
    };
    // Some errors (a full disk) have rolled back already, then this one has nothing to do.
    let _ = connection.inner.execute("ROLLBACK").await;
    outcome
}

fn announce(notifier: &Notifier, wake: &mut Wake, topics: &[Channel]) {
    for topic in topics {
        notifier.notify(*topic);
        wake.touch(*topic);
    }
}
