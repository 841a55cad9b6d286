//! Subscribing: the group with all it needs stands before the first delivery.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::connection::Connection;
use super::fetch::Fetcher;
use super::member::Member;
use super::presence::Participant;
use super::{broadcast, keyed};
use crate::error::{Error, ErrorKind, Result};
use crate::subscription::Subscription;
use crate::transport::{Mode, Subscribe};

pub(super) async fn subscribe(connection: &Arc<Connection>, spec: Subscribe) -> Result<Subscription> {
    if connection.courier.is_closing() {
        return Err(super::error::closed());
    }
    if spec.filters.is_empty() {
        return Err(Error::new(ErrorKind::Config, "a subscription needs at least one pattern"));
    }
    if spec.lease.is_zero() {
        return Err(Error::new(ErrorKind::Config, "a lease must be longer than nothing"));
    }
    connection.start_mover().await?;
    match spec.mode.clone() {
        Mode::Broadcast => broadcast::subscribe(connection, spec).await,
        Mode::Group(group) => {
            connection.be_present().await?;
            let record = connection.join_group(&spec, connection.config.provision).await?;
            if spec.keyed {
                return keyed::subscribe(connection, group, record, spec.credit).await;
            }
            let (feed, subscription) = Subscription::channel(spec.credit);
            let (orders, ordered) = mpsc::unbounded_channel();
            let member = Member::new(connection.clone(), group, record.lease(), orders);
            let fetcher = Fetcher::open(&member, feed, record, ordered).await?;
            let participant: Arc<dyn Participant> = member;
            connection.take_up(&participant);
            connection.tasks.spawn(fetcher.run());
            Ok(subscription)
        }
    }
}
