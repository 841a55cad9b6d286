//! Settles deliveries: ack, retry, reject, release and defer, each with an immediate result.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::connection::{Connection, closed};
use super::groups::GroupRef;
use crate::bounds;
use crate::confirm::Confirm;
use crate::delivery::{Settle, Settlement, Token, lease_lost};
use crate::error::Result;

/// Settles the deliveries of one subscription.
#[derive(Debug)]
pub(super) struct Settler {
    connection: Arc<Connection>,
    group: GroupRef,
    lease: Duration,
}

impl Settler {
    pub(super) fn new(connection: &Arc<Connection>, group: GroupRef, lease: Duration) -> Self {
        Self { connection: connection.clone(), group, lease }
    }

    fn apply(&self, token: Token, settlement: Settlement) -> Result<()> {
        let mut state = self.connection.bus.lock();
        let state = &mut *state;
        if self.connection.closed.is_cancelled() {
            return Err(closed().during("settle"));
        }
        let group = state.groups.get(self.group).ok_or_else(lease_lost)?;
        let index = group.leased(token).ok_or_else(lease_lost)?;
        match settlement {
            Settlement::Ack => state.log.unpin(group.finish(index).number),
            Settlement::Retry { after, .. } => {
                let at = if after.is_zero() { None } else { Some(bounds::from_now(after)) };
                group.retry(index, at);
            }
            Settlement::Reject(rejection) => {
                let name = group.name.clone();
                // The dead letter takes over the entry's pin in the log.
                state.dead.add(name, group.finish(index), rejection, Timestamp::now());
            }
            Settlement::Release => group.release(index),
            Settlement::Defer { after } => group.defer(index, bounds::from_now(after)),
        }
        group.wake_one();
        Ok(())
    }

    fn renew(&self, token: Token) -> Result<()> {
        let until = bounds::from_now(self.lease);
        let mut state = self.connection.bus.lock();
        if self.connection.closed.is_cancelled() {
            return Err(closed().during("renew"));
        }
        let group = state.groups.get(self.group).ok_or_else(lease_lost)?;
        let index = group.leased(token).ok_or_else(lease_lost)?;
        group.renew(index, until);
        Ok(())
    }
}

impl Settle for Settler {
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()> {
        Confirm::ready(self.apply(token, settlement))
    }

    fn in_progress(&self, token: Token) -> Confirm<()> {
        Confirm::ready(self.renew(token))
    }
}
