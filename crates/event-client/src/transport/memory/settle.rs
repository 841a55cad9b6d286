//! Settles deliveries: ack, retry, reject, release and defer, each with an immediate result.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::connection::{Connection, GroupRef, closed};
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
        let group = state.groups.get_mut(self.group.place).filter(|group| group.uid == self.group.uid);
        let Some(group) = group else { return Err(lease_lost()) };
        let Some(index) = group.leased(token) else { return Err(lease_lost()) };
        match settlement {
            Settlement::Ack => {
                let entry = group.finish(index);
                state.log.unpin(entry.number);
            }
            Settlement::Retry { after, .. } => {
                let at = if after.is_zero() { None } else { Some(bounds::from_now(after)) };
                group.retry(index, at);
                if at.is_some() {
                    group.wake_all(); // a member must watch the new timer
                }
            }
            Settlement::Reject(rejection) => {
                let name = group.name.clone();
                // The dead letter takes over the entry's pin in the log.
                state.dead.dead_letter(name, group.finish(index), rejection, Timestamp::now());
            }
            Settlement::Release => group.release(index),
            Settlement::Defer { after } => {
                group.defer(index, bounds::from_now(after));
                group.wake_all(); // a member must watch the new timer
            }
        }
        group.wake_one();
        Ok(())
    }
}

impl Settle for Settler {
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()> {
        Confirm::ready(self.apply(token, settlement))
    }

    fn in_progress(&self, token: Token) -> Confirm<()> {
        let until = bounds::from_now(self.lease);
        let mut state = self.connection.bus.lock();
        let renewed = if self.connection.closed.is_cancelled() {
            Err(closed().during("renew"))
        } else {
            match state.group(self.group).and_then(|group| Some((group.leased(token)?, group))) {
                Some((index, group)) => {
                    group.renew(index, until);
                    Ok(())
                }
                None => Err(lease_lost()),
            }
        };
        Confirm::ready(renewed)
    }
}
