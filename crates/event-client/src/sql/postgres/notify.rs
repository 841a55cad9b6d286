//! Wakes a sleeping relay with NOTIFY when staged events are committed, without cost while the relay works.
//!
//! If every staging transaction notified, they could commit only one at a time, because PostgreSQL holds a lock of the
//! whole server from NOTIFY until the commit is on disk. Therefore a sleeping relay holds an advisory lock; each
//! staging transaction tries to take it in shared mode and notifies only if that fails. The relay gets the lock only
//! when no transaction shares it, and queries the outbox once more before it sleeps, so no commit is missed.

use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use sqlx::query_scalar;

/// The key of an outbox's advisory lock is this number plus the table's object id.
pub(super) const LOCK: i64 = 0x6f75_7462 << 32;
/// The longest wait for the server here; the relay polls anyway.
const DEADLINE: Duration = Duration::from_secs(5);
/// The pause before another attempt after the listener has failed.
const PAUSE: Duration = Duration::from_secs(5);

/// The notifier of a relay; the module's documentation describes it.
#[derive(Debug)]
pub struct Notifier {
    pool: PgPool,
    listener: Option<Listener>,
    failed: Option<tokio::time::Instant>,
}

#[derive(Debug)]
struct Listener {
    /// A separate connection, so that the service's pool loses none.
    connection: PgListener,
    lock: i64,
    armed: bool,
}

impl Notifier {
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, listener: None, failed: None }
    }

    async fn connect(&self) -> sqlx::Result<Listener> {
        // Queried through the service's pool, because its connections may have a special search path.
        let table: i64 = query_scalar("SELECT 'outbox'::regclass::oid::bigint").fetch_one(&self.pool).await?;
        let own = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
        let own = own.acquire_timeout(DEADLINE).connect_lazy_with((*self.pool.connect_options()).clone());
        let mut connection = PgListener::connect_with(&own).await?;
        connection.eager_reconnect(false);
        connection.listen(&format!("outbox_{table}")).await?;
        Ok(Listener { connection, lock: LOCK + table, armed: false })
    }

    async fn try_arm(&mut self) -> sqlx::Result<()> {
        let listener = match &mut self.listener {
            Some(listener) => listener,
            None => {
                let listener = self.connect().await?;
                self.listener.insert(listener)
            }
        };
        if !listener.armed {
            let lock = query_scalar("SELECT pg_try_advisory_lock($1)").bind(listener.lock);
            listener.armed = lock.fetch_one(&mut listener.connection).await?;
        }
        Ok(())
    }

    async fn try_disarm(&mut self) -> sqlx::Result<()> {
        if let Some(listener) = self.listener.as_mut().filter(|listener| listener.armed) {
            listener.armed = false;
            let unlock = query_scalar("SELECT pg_advisory_unlock($1)").bind(listener.lock);
            let _: bool = unlock.fetch_one(&mut listener.connection).await?;
            while listener.connection.next_buffered().is_some() {}
        }
        Ok(())
    }

    /// Drops the failed connection; the server then releases its advisory lock.
    fn lost(&mut self, error: &dyn std::fmt::Display) {
        tracing::debug!(%error, "the connection for outbox notifications failed; the relay polls until it is back");
        self.listener = None;
        self.failed = Some(tokio::time::Instant::now());
    }
}

impl crate::sql::Notifier for Notifier {
    fn listen(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.failed.is_some_and(|at| at.elapsed() < PAUSE) {
                return;
            }
            self.failed = None;
            match tokio::time::timeout(DEADLINE, self.try_arm()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.lost(&error),
                Err(late) => self.lost(&late),
            }
        })
    }

    fn is_armed(&self) -> bool {
        self.listener.as_ref().is_some_and(|listener| listener.armed)
    }

    fn notified(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(listener) = self.listener.as_mut().filter(|listener| listener.armed) else {
                return std::future::pending().await;
            };
            match listener.connection.try_recv().await {
                Ok(Some(_)) => {}
                Ok(None) => self.lost(&"the connection was lost"),
                Err(error) => self.lost(&error),
            }
        })
    }

    fn disarm(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            match tokio::time::timeout(DEADLINE, self.try_disarm()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.lost(&error),
                Err(late) => self.lost(&late),
            }
        })
    }
}
