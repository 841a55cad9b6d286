//! The claim of a relay: the right to publish, leased from the database.

use std::convert::Infallible;
use std::time::Duration;

use sqlx::Pool;
use tokio::time::{Instant, sleep};

use super::Dialect;

/// The claim of one relay on one database.
pub(super) struct Claim {
    holder: String,
    lease: Duration,
    /// The end of the lease on this process's clock; none without the claim.
    until: Option<Instant>,
}

impl Claim {
    pub(super) fn new(holder: String, lease: Duration) -> Self {
        Self { holder, lease, until: None }
    }

    pub(super) fn set_lease(&mut self, lease: Duration) {
        self.lease = lease;
    }

    pub(super) fn holder(&self) -> &str {
        &self.holder
    }

    /// Whether more than half of the lease is left.
    pub(super) fn is_fresh(&self) -> bool {
        self.until.is_some_and(|until| until > Instant::now() + self.lease / 2)
    }

    /// Takes or renews the claim; returns false when another relay holds it.
    pub(super) async fn take<D: Dialect>(&mut self, connection: &mut D::Connection) -> sqlx::Result<bool> {
        let asked = Instant::now();
        let ours = D::claim(connection, &self.holder, self.lease).await?;
        self.until = ours.then(|| asked + self.lease);
        Ok(ours)
    }

    /// Renews the claim while the bus works on the batch. The batch continues even when the claim is lost.
    pub(super) async fn renew<D: Dialect>(&mut self, pool: &Pool<D>) -> Infallible {
        loop {
            sleep(self.lease / 3).await;
            // The lease begins before the wait for a connection.
            let asked = Instant::now();
            let Ok(mut connection) = pool.acquire().await else { continue };
            if let Ok(ours) = D::claim(&mut connection, &self.holder, self.lease).await {
                self.until = ours.then(|| asked + self.lease);
            }
        }
    }

    /// Ends the claim, so that another relay can take it at once.
    pub(super) async fn give_back<D: Dialect>(&self, connection: &mut D::Connection) -> sqlx::Result<()> {
        match self.until {
            Some(_) => D::yield_claim(connection, &self.holder).await,
            None => Ok(()),
        }
    }
}
