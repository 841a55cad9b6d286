//! Broadcast subscriptions: each one's registration, and the task that reads the log for it.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::connection::Connection;
use super::feeding::{BATCH, Next, room, wait};
use super::state::State;
use crate::Subscribe;
use crate::delivery::{Delivery, DeliveryInfo};
use crate::error::Result;
use crate::message::Position;
use crate::subscription::{Feed, Health};

/// The registration of a listener, removed on drop.
pub(super) struct Listening {
    connection: Arc<Connection>,
    id: u64,
    wake: Arc<Notify>,
}

/// Deliveries for a listener, and the number of records that the log dropped before the listener read them.
#[derive(Default)]
struct Heard {
    deliveries: VecDeque<Delivery>,
    missed: u64,
}

impl Listening {
    pub(super) fn join(connection: Arc<Connection>, spec: &Subscribe) -> Result<Self> {
        let id = connection.bus.next_id();
        let mut state = connection.bus.lock();
        connection.check()?;
        state.advance(Instant::now());
        let next = state.log.start(spec.start);
        let wake = state.listeners.join(id, spec.filters.clone(), next);
        state.routes.forget();
        drop(state);
        Ok(Self { connection, id, wake })
    }

    fn fetch(&self, feed: &Feed, out: &mut Heard) -> Next {
        let now = Instant::now();
        let mut state = self.connection.bus.lock();
        state.advance(now);
        let State { log, delayed, listeners, .. } = &mut *state;
        let Some(listener) = listeners.get(self.id) else { return Next::End };
        out.missed = log.first().saturating_sub(listener.next);
        listener.next += out.missed;
        let end = log.end().min(listener.next + BATCH as u64);
        while listener.next < end {
            let Some(record) = log.get(listener.next) else { break };
            let current = record.expires.is_none_or(|at| at > now);
            if current && listener.matches(&record.message.subject) {
                let Some(slot) = feed.try_slot() else { return Next::Deliver };
                let mut info = DeliveryInfo::new(1);
                info.position = Some(Position(u128::from(listener.next)));
                info.published_at = Some(record.published_at);
                out.deliveries.push_back(Delivery::unleased(record.message.clone(), info, Some(slot)));
            }
            listener.next += 1;
        }
        if listener.next < log.end() || !out.deliveries.is_empty() || out.missed > 0 {
            return Next::Deliver;
        }
        listener.idle = true;
        Next::Wait(delayed.next_due())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut state = self.connection.bus.lock();
        state.listeners.leave(self.id);
        state.routes.forget();
    }
}

/// Delivers matching records to the subscription until it ends.
pub(super) async fn feed_listener(feed: Feed, listening: Listening) {
    let closed = &listening.connection.closed;
    let mut heard = Heard::default();
    feed.report(Health::Live);
    while room(&feed, closed).await {
        match listening.fetch(&feed, &mut heard) {
            Next::Deliver => {
                feed.missed("memory", heard.missed);
                heard.deliveries.drain(..).for_each(|delivery| feed.push(delivery));
                tokio::task::coop::consume_budget().await;
            }
            Next::Wait(until) => wait(&feed, closed, &listening.wake, until).await,
            Next::End => break,
        }
    }
}
