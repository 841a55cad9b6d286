//! Opens subscriptions: joins a group or the listeners, and starts the task that feeds the subscription.

use std::sync::Arc;

use super::broadcast::{Listening, feed_listener};
use super::connection::Connection;
use super::member::{Membership, feed_member};
use crate::error::Result;
use crate::subscription::Subscription;
use crate::supervise;
use crate::{Mode, Subscribe};

pub(super) fn subscribe(connection: &Arc<Connection>, spec: Subscribe) -> Result<Subscription> {
    let spec = spec.checked()?;
    let (feed, subscription) = Subscription::channel(spec.max_in_flight);
    let connection = connection.clone();
    match spec.mode.clone() {
        Mode::Group(name) => {
            let membership = Membership::join(connection, name, &spec)?;
            tokio::spawn(supervise::run("memory member", feed_member(feed, membership), || {}));
        }
        Mode::Broadcast => {
            let listening = Listening::join(connection, &spec)?;
            tokio::spawn(supervise::run("memory broadcast", feed_listener(feed, listening), || {}));
        }
    }
    Ok(subscription)
}
