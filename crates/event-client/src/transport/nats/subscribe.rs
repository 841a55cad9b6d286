//! Subscribing: the group with all it needs stands before the first delivery.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::connection::Connection;
use super::fetch::Fetcher;
use super::member::Member;
use super::{broadcast, keyed, settle};
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
            let (feed, subscription) = Subscription::channel(spec.credit);
            let (orders, ordered) = mpsc::unbounded_channel();
            let (doubts, doubted) = mpsc::unbounded_channel();
            let member = Member::new(connection.clone(), group, spec.keyed, record.lease(), orders, doubts);
            let gone = feed.gone().clone();
            let fetcher = Fetcher::open(&member, feed, record, ordered).await?;
            // It runs as long as anybody may settle.
            tokio::spawn(settle::confirm(Arc::downgrade(connection), doubted));
            connection
                .members
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(Arc::downgrade(&member));
            if spec.keyed {
                tokio::spawn(keyed::lead(member, gone));
            }
            connection.tasks.spawn(fetcher.run());
            Ok(subscription)
        }
    }
}
