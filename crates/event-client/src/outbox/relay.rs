//! The relay: publishes what was staged, in order per key, and notes it.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use sqlx::Pool;
use sqlx::pool::PoolConnection;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::send::{Refused, Sent, send};
use super::{Dialect, Notifier, Row, STAGED};
use crate::bounds;
use crate::bus::Bus;
use crate::error::{Error, ErrorKind, Result};
use crate::service::RetryPolicy;
use crate::sql::{ago, explain, now};
use crate::trail::Trail;

/// Rows deleted by one statement, so that pruning never holds a lock for long.
const PRUNE: u32 = 1000;
/// The first look after something was staged: its transaction is about to commit.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// The longest pause while transactions are open that have staged something.
const OPEN_LOOK: Duration = Duration::from_millis(50);
/// A database that takes longer to answer is given up for now, and the connection with it.
const DEADLINE: Duration = Duration::from_secs(30);
/// The wait after a failure grows up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Publishes staged events. Several may run on one database, in one process or many: one of them works and the
/// others stand by, so that the work is not doubled.
///
/// Idle, it is woken by [`stage`](super::stage) and [`commit`](super::commit) in the same process, and on
/// PostgreSQL by any process's commit, for which it keeps one connection beside the pool; else it looks once a
/// [`poll`](Relay::poll). On PostgreSQL an event waits until all transactions have ended that may have staged
/// before it, as only then its place in the order is known: keep transactions short that stage.
///
/// Memory is bounded by one [`batch`](Relay::batch).
pub struct Relay<D: Dialect> {
    pool: Pool<D>,
    bus: Bus,
    holder: String,
    batch: u32,
    poll: Duration,
    lease: Duration,
    keep: Duration,
    dedup: bool,
    /// Until when we may publish, on our own clock.
    claimed: Option<Instant>,
    cursor: D::Cursor,
    notifier: D::Notifier,
    /// What the database is still to be told of the last batch.
    sent: Sent,
    pruned: Option<Instant>,
}

impl<D: Dialect> Relay<D> {
    /// A relay from the tables behind `pool` to `bus`, whose settings name the events' source.
    pub fn new(pool: Pool<D>, bus: Bus) -> Self {
        let dedup = !bus.capabilities().dedup_window.is_zero();
        Self {
            cursor: D::Cursor::default(),
            notifier: D::notifier(&pool),
            sent: Sent::default(),
            pool,
            bus,
            holder: crate::transport::consumer_name().into(),
            batch: 256,
            poll: Duration::from_secs(1),
            lease: Duration::from_secs(10),
            keep: Duration::from_secs(3600),
            dedup,
            claimed: None,
            pruned: None,
        }
    }

    /// Most events on their way at a time, and marked by one statement. Default 256.
    #[must_use]
    pub fn batch(mut self, events: u32) -> Self {
        self.batch = events.max(1);
        self
    }

    /// How often to look for what other processes staged, a millisecond to [`LONGEST`](crate::LONGEST). Default 1 s.
    #[must_use]
    pub fn poll(mut self, every: Duration) -> Self {
        self.poll = every.clamp(Duration::from_millis(1), bounds::LONGEST);
        self
    }

    /// How long a crashed relay keeps the others waiting, at most [`LONGEST`](crate::LONGEST). Default 10 s.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = bounds::bounded(lease);
        self
    }

    /// How long published rows stay in the table, at most [`LONGEST`](crate::LONGEST). Default 1 h.
    #[must_use]
    pub fn keep(mut self, age: Duration) -> Self {
        self.keep = bounds::bounded(age);
        self
    }

    /// Whether to ask the bus to store each id once. Default: where the transport can.
    #[must_use]
    pub fn dedup(mut self, dedup: bool) -> Self {
        self.dedup = dedup;
        self
    }

    /// Publishes until `shutdown` resolves. What a batch has begun it finishes, so that nothing confirmed stays
    /// unmarked. An unreachable bus or database is tried again with backoff.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the tables are missing, [`ErrorKind::Denied`] when the database lacks a
    /// permission for us, [`ErrorKind::Closed`] when bus or pool are closed.
    pub async fn run_until(mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let mut staged = STAGED.subscribe();
        tokio::pin!(shutdown);
        let backoff = RetryPolicy::default().backoff(Duration::from_millis(100), LONGEST_WAIT);
        let mut failures = 0;
        let mut look = FIRST_LOOK;
        let result = loop {
            let connection = tokio::select! {
                biased;
                () = &mut shutdown => break Ok(()),
                connection = self.pool.acquire() => connection,
            };
            match self.pass(connection).await {
                Ok(Found::Some) => {
                    (failures, look) = (0, FIRST_LOOK);
                    self.notifier.disarm().await;
                }
                Ok(Found::StandBy) => {
                    failures = 0;
                    self.notifier.disarm().await;
                    tokio::select! {
                        () = &mut shutdown => break Ok(()),
                        () = sleep(self.poll) => {}
                    }
                }
                Ok(Found::Nothing { open }) => {
                    failures = 0;
                    let was_armed = self.notifier.is_armed();
                    self.notifier.listen().await;
                    let armed = self.notifier.is_armed();
                    if armed && !was_armed {
                        continue;
                    }
                    look = (look * 2).min(if open { OPEN_LOOK.min(self.poll) } else { self.poll });
                    tokio::select! {
                        biased;
                        () = &mut shutdown => break Ok(()),
                        () = self.notifier.notified() => look = FIRST_LOOK,
                        () = signal(&mut staged), if !armed => look = FIRST_LOOK,
                        () = sleep(if armed && !open { self.poll } else { look }) => {}
                    }
                }
                Err(Failure { error, fatal: true, .. }) => break Err(error),
                Err(Failure { error, progress, .. }) => {
                    // A bus that takes some is not down: only failures without progress in between add up.
                    failures = if progress { 1 } else { failures + 1 };
                    let pause = backoff.wait(failures).max(FIRST_LOOK);
                    tracing::warn!(%error, retry_in_ms = bounds::millis(pause), "the outbox relay cannot publish");
                    // What was staged meanwhile must not turn the backoff into a hot loop.
                    tokio::select! {
                        () = &mut shutdown => break Ok(()),
                        () = sleep(pause) => {}
                    }
                }
            }
        };
        // Untold, the database has the batch published again and the lease end by itself.
        let _ = timeout(LONGEST_WAIT, self.hand_back()).await;
        result.map_err(|error| error.during("relay"))
    }

    /// Notes the last batch, takes the next, publishes it.
    async fn pass(&mut self, connection: sqlx::Result<PoolConnection<D>>) -> Result<Found, Failure> {
        let mut connection = connection.map_err(explain::<D>("relay")).map_err(Failure::of_database)?;
        let rows = match timeout(DEADLINE, self.take(&mut connection)).await {
            Ok(taken) => match taken.map_err(Failure::of_database)? {
                Taken::Rows(rows) => rows,
                Taken::None(found) => return Ok(found),
            },
            Err(late) => {
                connection.close_on_drop();
                let error = Error::new(ErrorKind::Timeout, "the database does not answer").because(late);
                return Err(Failure::of_database(error));
            }
        };
        // The database is free for others while the bus works.
        drop(connection);
        let renewing = renew(&self.pool, &self.holder, self.lease, &mut self.claimed);
        self.sent = tokio::select! {
            sent = send(&self.bus, rows, self.dedup) => sent,
            never = renewing => match never {},
        };
        match self.sent.failed.take() {
            None => Ok(Found::Some),
            Some(error) => {
                let progress = !self.sent.published.is_empty() || !self.sent.refused.is_empty();
                let fatal = matches!(error.kind(), ErrorKind::Config | ErrorKind::Closed);
                Err(Failure { error, fatal, progress })
            }
        }
    }

    /// What is done with one connection between two batches.
    async fn take(&mut self, connection: &mut D::Connection) -> Result<Taken> {
        let sql = explain::<D>("relay");
        self.note(connection).await?;
        let pruning = self.prune(connection).await?;
        // An idle relay writes nothing, so the claim is only renewed when there is something to publish.
        let claimed = self.claimed.is_some_and(|until| until > Instant::now() + self.lease / 2);
        let limit = if claimed { self.batch } else { 1 };
        let mut look = D::waiting(connection, &mut self.cursor, limit).await.map_err(&sql)?;
        if !claimed && !look.rows.is_empty() {
            let asked = Instant::now();
            let ours = D::claim(connection, &self.holder, self.lease).await.map_err(&sql)?;
            self.claimed = ours.then(|| asked + self.lease);
            if !ours {
                return Ok(Taken::None(Found::StandBy));
            }
            // Another relay may have published what we saw before the claim was ours.
            look = D::waiting(connection, &mut self.cursor, self.batch).await.map_err(&sql)?;
        }
        Ok(match (look.rows.is_empty(), pruning) {
            (false, _) => Taken::Rows(look.rows),
            (true, true) => Taken::None(Found::Some),
            (true, false) => Taken::None(Found::Nothing { open: look.open }),
        })
    }

    /// Tells the database of the last batch. What it could not be told it is told the next time, before anything
    /// else is published.
    async fn note(&mut self, connection: &mut D::Connection) -> Result<()> {
        let sql = explain::<D>("relay");
        if !self.sent.published.is_empty() {
            D::mark(connection, self.sent.published.clone(), now()).await.map_err(&sql)?;
            self.sent.published.clear();
        }
        while let Some(Refused { staged, error }) = self.sent.refused.last() {
            let Trail { correlation_id, trace_id, span_id, .. } = Trail::staged(&staged.headers);
            tracing::error!(
                position = staged.position, event.id = staged.id, correlation_id, trace_id, span_id, %error,
                "a staged event cannot be published and was set aside in the outbox"
            );
            D::set_aside(connection, staged.position, error.to_string()).await.map_err(&sql)?;
            self.sent.refused.pop();
        }
        Ok(())
    }

    /// Deletes some of what was published long ago; answers whether there is more.
    async fn prune(&mut self, connection: &mut D::Connection) -> Result<bool> {
        let every = (self.keep / 10).clamp(Duration::from_millis(10), Duration::from_secs(60));
        if self.pruned.is_some_and(|at| at.elapsed() < every) {
            return Ok(false);
        }
        // No fewer than are published meanwhile.
        let limit = PRUNE.max(self.batch);
        let pruned = D::prune_outbox(connection, ago(self.keep), limit).await;
        let more = pruned.map_err(explain::<D>("prune outbox"))? == u64::from(limit);
        self.pruned = (!more).then(Instant::now);
        Ok(more)
    }

    async fn hand_back(&mut self) -> Result<()> {
        let sql = explain::<D>("relay");
        self.notifier.disarm().await;
        let mut connection = self.pool.acquire().await.map_err(&sql)?;
        self.note(&mut connection).await?;
        if self.claimed.is_some() {
            D::yield_claim(&mut connection, &self.holder).await.map_err(&sql)?;
        }
        Ok(())
    }
}

/// Keeps the claim while the bus takes its time. Lost or not, the batch is on its way.
async fn renew<D: Dialect>(
    pool: &Pool<D>,
    holder: &str,
    lease: Duration,
    claimed: &mut Option<Instant>,
) -> Infallible {
    loop {
        sleep(lease / 3).await;
        let asked = Instant::now();
        let Ok(mut connection) = pool.acquire().await else { continue };
        if let Ok(ours) = D::claim(&mut connection, holder, lease).await {
            *claimed = ours.then(|| asked + lease);
        }
    }
}

/// Resolves when something was staged in this process.
async fn signal(staged: &mut watch::Receiver<u64>) {
    if staged.changed().await.is_err() {
        std::future::pending().await
    }
}

enum Taken {
    Rows(Vec<Row>),
    None(Found),
}

enum Found {
    /// There may be more at once.
    Some,
    /// Another relay is at work.
    StandBy,
    Nothing {
        open: bool,
    },
}

struct Failure {
    error: Error,
    /// Trying again will not help.
    fatal: bool,
    /// Some of the batch was published.
    progress: bool,
}

impl Failure {
    fn of_database(error: Error) -> Self {
        let fatal = matches!(error.kind(), ErrorKind::Config | ErrorKind::Closed | ErrorKind::Denied);
        Self { error, fatal, progress: false }
    }
}

impl<D: Dialect> fmt::Debug for Relay<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("bus", &self.bus).field("holder", &self.holder).finish_non_exhaustive()
    }
}
