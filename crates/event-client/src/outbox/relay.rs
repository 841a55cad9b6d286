//! The relay: publishes staged events in order per key and marks them as published.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use sqlx::Pool;
use sqlx::pool::PoolConnection;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::claim::Claim;
use super::send::{Refused, Sent, send};
use super::{Dialect, Notifier, Row, STAGED};
use crate::bus::Bus;
use crate::service::RetryPolicy;
use crate::sql::{ago, explain, now};
use crate::trail::Trail;
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind, Result};

/// The most rows that one statement deletes, so that pruning never holds a lock for long.
const PRUNE: u32 = 1000;
/// The pause between queries starts here and doubles after an event was staged, because its transaction is about to
/// commit.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// The longest pause between queries while transactions are open that have staged events.
const OPEN_LOOK: Duration = Duration::from_millis(50);
/// A database that takes longer to respond is given up for now, and the connection is closed.
const DEADLINE: Duration = Duration::from_secs(30);
/// The upper bound of the wait that grows after each failure.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Publishes staged events. Several relays may run on one database, in one process or in many: one of them publishes
/// and the others stand by, so that no work is done twice.
///
/// An idle relay is woken by [`stage`](super::stage) and [`commit`](super::commit) in the same process. On PostgreSQL
/// the commit of any process wakes it; for this the relay keeps one connection in addition to the pool. Otherwise it
/// queries the table once in every [`poll`](Relay::poll) interval. On PostgreSQL an event waits until all
/// transactions that may have staged events before it have ended, because only then its place in the order is known:
/// keep transactions short that stage events.
///
/// Memory use is bounded by one [`batch`](Relay::batch).
pub struct Relay<D: Dialect> {
    pool: Pool<D>,
    bus: Bus,
    batch: u32,
    poll: Duration,
    keep: Duration,
    dedup: bool,
    claim: Claim,
    cursor: D::Cursor,
    notifier: D::Notifier,
    /// The results of the last batch that are not yet written to the database.
    sent: Sent,
    pruned: Option<Instant>,
}

impl<D: Dialect> Relay<D> {
    /// Creates a relay from the tables behind `pool` to `bus`; the bus's settings contain the events' source.
    pub fn new(pool: Pool<D>, bus: Bus) -> Self {
        let dedup = !bus.capabilities().dedup_window.is_zero();
        Self {
            cursor: D::Cursor::default(),
            notifier: D::notifier(&pool),
            sent: Sent::default(),
            pool,
            bus,
            batch: 256,
            poll: Duration::from_secs(1),
            keep: Duration::from_secs(3600),
            dedup,
            claim: Claim::new(event_transport::consumer_name().into(), Duration::from_secs(10)),
            pruned: None,
        }
    }

    /// Sets the most events that are in flight at a time and that one statement marks. Default 256.
    #[must_use]
    pub fn batch(mut self, events: u32) -> Self {
        self.batch = events.max(1);
        self
    }

    /// Sets the interval of the queries for events that other processes staged, from 1 ms to
    /// [`LONGEST`](crate::LONGEST). Default 1 s.
    #[must_use]
    pub fn poll(mut self, every: Duration) -> Self {
        self.poll = every.clamp(Duration::from_millis(1), bounds::LONGEST);
        self
    }

    /// Sets the lease of the claim: the time that the other relays wait after a relay has crashed, at most
    /// [`LONGEST`](crate::LONGEST). Default 10 s.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.claim.set_lease(bounds::bounded(lease));
        self
    }

    /// Sets the time that published rows stay in the table, at most [`LONGEST`](crate::LONGEST). Default 1 h.
    #[must_use]
    pub fn keep(mut self, age: Duration) -> Self {
        self.keep = bounds::bounded(age);
        self
    }

    /// Sets whether the bus is requested to store each id only once. Default: where the transport supports it.
    #[must_use]
    pub fn dedup(mut self, dedup: bool) -> Self {
        self.dedup = dedup;
        self
    }

    /// Publishes until `shutdown` resolves. A batch that has started is finished, so that no confirmed event stays
    /// unmarked. When the bus or the database is unreachable, the relay retries with backoff.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the tables are missing, [`ErrorKind::Denied`] when the database refuses a
    /// permission that the relay needs, [`ErrorKind::Closed`] when the bus or the pool is closed.
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
                    // A bus that accepts some events is not down: only failures without progress in between are
                    // counted together.
                    failures = if progress { 1 } else { failures + 1 };
                    let pause = backoff.wait(failures).max(FIRST_LOOK);
                    tracing::warn!(%error, retry_in_ms = bounds::millis(pause), "the outbox relay cannot publish");
                    // Events that are staged meanwhile must not shorten the backoff, because that could make it a hot
                    // loop.
                    tokio::select! {
                        () = &mut shutdown => break Ok(()),
                        () = sleep(pause) => {}
                    }
                }
            }
        };
        // If this fails, the batch is published again and the lease expires automatically.
        let _ = timeout(LONGEST_WAIT, self.hand_back()).await;
        result.map_err(|error| error.during("relay"))
    }

    /// Marks the last batch, reads the next one and publishes it.
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
        // Other tasks can use the connection while the bus confirms the batch.
        drop(connection);
        let renewing = self.claim.renew(&self.pool);
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

    /// Does the database work between two batches, on one connection.
    async fn take(&mut self, connection: &mut D::Connection) -> Result<Taken> {
        let sql = explain::<D>("relay");
        self.note(connection).await?;
        let pruning = self.prune(connection).await?;
        // An idle relay writes nothing, so the claim is renewed only when there are events to publish.
        let claimed = self.claim.is_fresh();
        let limit = if claimed { self.batch } else { 1 };
        let mut look = D::waiting(connection, &mut self.cursor, limit).await.map_err(&sql)?;
        if !claimed && !look.rows.is_empty() {
            if !self.claim.take::<D>(connection).await.map_err(&sql)? {
                return Ok(Taken::None(Found::StandBy));
            }
            // Another relay may have published the rows that we read before we had the claim.
            look = D::waiting(connection, &mut self.cursor, self.batch).await.map_err(&sql)?;
        }
        Ok(match (look.rows.is_empty(), pruning) {
            (false, _) => Taken::Rows(look.rows),
            (true, true) => Taken::None(Found::Some),
            (true, false) => Taken::None(Found::Nothing { open: look.open }),
        })
    }

    /// Writes the results of the last batch to the database. Results that cannot be written now are written the next
    /// time, before anything else is published.
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

    /// Deletes some of the rows that were published long ago; returns whether there are more.
    async fn prune(&mut self, connection: &mut D::Connection) -> Result<bool> {
        let every = (self.keep / 10).clamp(Duration::from_millis(10), Duration::from_secs(60));
        if self.pruned.is_some_and(|at| at.elapsed() < every) {
            return Ok(false);
        }
        // At least one batch, so that pruning keeps up with publishing.
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
        self.claim.give_back::<D>(&mut connection).await.map_err(&sql)
    }
}

/// Resolves when this process has staged an event.
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
    /// There may be more events: query again at once.
    Some,
    /// Another relay holds the claim.
    StandBy,
    Nothing {
        open: bool,
    },
}

struct Failure {
    error: Error,
    /// A retry does not help.
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
        f.debug_struct("Relay")
            .field("bus", &self.bus)
            .field("holder", &self.claim.holder())
            .finish_non_exhaustive()
    }
}
