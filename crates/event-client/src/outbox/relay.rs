//! The relay: publishes what was staged, in order per key, and notes it.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::time::Duration;

use smol_str::SmolStr;
use sqlx::Pool;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Dialect, Row, STAGED, stage};
use crate::bus::Bus;
use crate::confirm::Confirm;
use crate::error::{Error, ErrorKind, Result};
use crate::service::RetryPolicy;
use crate::sql::{ago, explain, now};
use crate::transport::Receipt;

/// Rows deleted by one statement, so that pruning never holds the writer's lock for long.
const PRUNE: u32 = 1000;
/// The first look after something was staged: its transaction is about to commit.
const FIRST_LOOK: Duration = Duration::from_millis(1);

/// Publishes staged events. Several may run on one database, in one process or many: one of them works and the
/// others stand by, so that the order per key holds.
///
/// Woken by [`stage`](super::stage) and [`commit`](super::commit) in the same process; otherwise it looks once a
/// [`poll`](Relay::poll).
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
    pruned: Option<Instant>,
    /// The last pass disposed of something, though it failed.
    progress: bool,
}

impl<D: Dialect> Relay<D> {
    /// A relay from the tables behind `pool` to `bus`, whose settings name the events' source.
    pub fn new(pool: Pool<D>, bus: Bus) -> Self {
        let dedup = !bus.capabilities().dedup_window.is_zero();
        Self {
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
            progress: false,
        }
    }

    /// Most events on their way at a time, and marked by one statement. Default 256.
    #[must_use]
    pub fn batch(mut self, events: u32) -> Self {
        self.batch = events.max(1);
        self
    }

    /// How often to look for what other processes staged. Default 1 s.
    #[must_use]
    pub fn poll(mut self, every: Duration) -> Self {
        self.poll = every;
        self
    }

    /// How long a crashed relay keeps the others waiting. Default 10 s.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How long published rows stay in the table. Default 1 h.
    #[must_use]
    pub fn keep(mut self, age: Duration) -> Self {
        self.keep = age;
        self
    }

    /// Whether to ask the bus to store each id once. Default: where the transport can.
    #[must_use]
    pub fn dedup(mut self, dedup: bool) -> Self {
        self.dedup = dedup;
        self
    }

    /// Publishes until `shutdown` resolves. What a pass has begun it finishes, so that nothing confirmed stays
    /// unmarked. An unreachable bus or a busy database is tried again with backoff.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the tables are missing, [`ErrorKind::Closed`] when bus or pool are closed.
    pub async fn run_until(mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let mut staged = STAGED.subscribe();
        tokio::pin!(shutdown);
        let backoff = RetryPolicy::default().backoff(Duration::from_millis(100), Duration::from_secs(30));
        let mut failures = 0;
        let mut look = FIRST_LOOK;
        let result = loop {
            let pause = match self.pass().await {
                Ok(0) => {
                    failures = 0;
                    look = (look * 2).min(self.poll);
                    look
                }
                Ok(_) => {
                    failures = 0;
                    look = self.poll;
                    Duration::ZERO
                }
                Err(error) if matches!(error.kind(), ErrorKind::Config | ErrorKind::Closed) => {
                    break Err(error);
                }
                Err(error) => {
                    // A bus that takes some is not down: only failures without progress in between add up.
                    failures = if std::mem::take(&mut self.progress) { 1 } else { failures + 1 };
                    let pause = backoff.wait(failures).max(FIRST_LOOK);
                    tracing::warn!(%error, retry_in_ms = pause.as_millis() as u64, "the outbox relay cannot publish");
                    // What was staged meanwhile must not turn the backoff into a hot loop.
                    tokio::select! {
                        () = &mut shutdown => break Ok(()),
                        () = tokio::time::sleep(pause) => continue,
                    }
                }
            };
            tokio::select! {
                biased;
                () = &mut shutdown => break Ok(()),
                () = signal(&mut staged) => look = FIRST_LOOK,
                () = tokio::time::sleep(pause) => {}
            }
        };
        if self.claimed.is_some()
            && let Ok(mut connection) = self.pool.acquire().await
        {
            // Unsaid, the lease ends by itself.
            let _ = D::yield_claim(&mut connection, &self.holder).await;
        }
        result.map_err(|error| error.during("relay"))
    }

    /// Publishes and marks one batch; answers how many rows it disposed of.
    async fn pass(&mut self) -> Result<usize> {
        let sql = explain::<D>("relay");
        let mut connection = self.pool.acquire().await.map_err(&sql)?;
        // An idle relay writes nothing, so the claim is only renewed when there is something to publish.
        let claimed = self.claimed.is_some_and(|until| until > Instant::now() + self.lease / 2);
        if !claimed {
            if D::waiting(&mut connection, 1).await.map_err(&sql)?.is_empty() {
                self.prune(&mut connection).await?;
                return Ok(0);
            }
            let (asked, now) = (Instant::now(), now());
            let until = now.saturating_add(i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX));
            let ours = D::claim(&mut connection, &self.holder, now, until).await.map_err(&sql)?;
            self.claimed = ours.then(|| asked + self.lease);
            if !ours {
                return Ok(0);
            }
        }
        let rows = D::waiting(&mut connection, self.batch).await.map_err(&sql)?;
        if rows.is_empty() {
            self.prune(&mut connection).await?;
            return Ok(0);
        }
        // The database is free for others while the bus works.
        drop(connection);
        let sent = self.publish(rows).await;
        let mut connection = self.pool.acquire().await.map_err(&sql)?;
        let disposed = sent.published.len() + sent.refused.len();
        if !sent.published.is_empty() {
            D::mark(&mut connection, sent.published, now()).await.map_err(&sql)?;
        }
        for (position, error) in sent.refused {
            tracing::error!(position, %error, "a staged event cannot be published and was set aside in the outbox");
            D::set_aside(&mut connection, position, error.to_string()).await.map_err(&sql)?;
        }
        self.progress = disposed > 0;
        match sent.failed {
            Some(error) => Err(error),
            None => Ok(disposed),
        }
    }

    /// Sends rows through a sliding window. A row waits until the one before it of the same key is confirmed, so
    /// that a failure between the two cannot turn them round.
    async fn publish(&self, rows: Vec<Row>) -> Sent {
        let mut sent = Sent::default();
        let mut window = Window::default();
        for row in rows {
            while row.aggregateid.as_deref().is_some_and(|key| window.keys.contains(key)) {
                window.settle_oldest(&mut sent).await;
            }
            // After a failure nothing new starts; what is on its way is still waited for.
            if sent.failed.is_some() {
                break;
            }
            let mut message = match stage::message(&row, self.bus.settings()) {
                Ok(message) => message,
                Err(error) => {
                    sent.refused.push((row.position, error));
                    continue;
                }
            };
            message.dedup = self.dedup;
            if self.bus.is_window_full() {
                while !window.waiting.is_empty() {
                    window.settle_oldest(&mut sent).await;
                }
            }
            match self.bus.send(message).await {
                Ok((slot, confirm)) => window.push(row, slot, confirm),
                Err(error) => sent.failure(row.position, error),
            }
        }
        while !window.waiting.is_empty() {
            window.settle_oldest(&mut sent).await;
        }
        sent
    }

    async fn prune(&mut self, connection: &mut D::Connection) -> Result<()> {
        let every = (self.keep / 10).clamp(Duration::from_millis(10), Duration::from_secs(60));
        if self.pruned.is_some_and(|at| at.elapsed() < every) {
            return Ok(());
        }
        let sql = explain::<D>("prune outbox");
        while D::prune_outbox(connection, ago(self.keep), PRUNE).await.map_err(&sql)? == u64::from(PRUNE) {}
        self.pruned = Some(Instant::now());
        Ok(())
    }
}

/// Resolves when something was staged in this process.
async fn signal(staged: &mut watch::Receiver<u64>) {
    if staged.changed().await.is_err() {
        std::future::pending().await
    }
}

/// What became of a batch.
#[derive(Default)]
struct Sent {
    published: Vec<i64>,
    /// Can never be published.
    refused: Vec<(i64, Error)>,
    /// Why the rest has to wait.
    failed: Option<Error>,
}

impl Sent {
    fn failure(&mut self, position: i64, error: Error) {
        match error.kind() {
            ErrorKind::TooLarge | ErrorKind::InvalidName | ErrorKind::Unsupported | ErrorKind::Encode => {
                self.refused.push((position, error));
            }
            _ => self.failed = self.failed.take().or(Some(error)),
        }
    }
}

#[derive(Default)]
struct Window {
    waiting: VecDeque<(i64, Option<SmolStr>, tokio::sync::OwnedSemaphorePermit, Confirm<Receipt>)>,
    keys: HashSet<SmolStr>,
}

impl Window {
    fn push(&mut self, row: Row, slot: tokio::sync::OwnedSemaphorePermit, confirm: Confirm<Receipt>) {
        let key = row.aggregateid.map(SmolStr::from);
        self.keys.extend(key.clone());
        self.waiting.push_back((row.position, key, slot, confirm));
    }

    async fn settle_oldest(&mut self, sent: &mut Sent) {
        let Some((position, key, _slot, confirm)) = self.waiting.pop_front() else { return };
        match confirm.await {
            Ok(_) => sent.published.push(position),
            Err(error) => sent.failure(position, error),
        }
        if let Some(key) = key {
            self.keys.remove(&key);
        }
    }
}

impl<D: Dialect> fmt::Debug for Relay<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("bus", &self.bus).field("holder", &self.holder).finish_non_exhaustive()
    }
}
