//! Starts subscriptions: a group's streams and consumers exist before its first delivery.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::connection::Connection;
use super::fetch::Fetcher;
use super::member::Member;
use super::presence::Participant;
use super::{broadcast, keyed};
use crate::error::Result;
use crate::subscription::Subscription;
use crate::supervise;
use crate::transport::{Mode, Subscribe};

pub(super) async fn subscribe(connection: &Arc<Connection>, spec: Subscribe) -> Result<Subscription> {
    if connection.outbound.is_closing() {
        return Err(super::error::closed());
    }
    let spec = spec.checked()?;
    connection.start_mover().await?;
    match spec.mode.clone() {
        Mode::Broadcast => broadcast::subscribe(connection, spec).await,
        Mode::Group(group) => {
            connection.announce_presence().await?;
            let record = connection.join_group(&spec, connection.config.provision).await?;
            if spec.keyed {
                return keyed::subscribe(connection, group, record, spec.max_in_flight).await;
            }
            let (feed, subscription) = Subscription::channel(spec.max_in_flight);
            let (commands, command_receiver) = mpsc::unbounded_channel();
            let member = Member::new(connection.clone(), group, record.lease(), commands);
            let fetcher = Fetcher::open(&member, feed, record, command_receiver).await?;
            let ended = member.clone();
            let participant: Arc<dyn Participant> = member;
            connection.add_member(&participant);
            connection.tasks.spawn(supervise::run("nats fetch", fetcher.run(), move || {
                ended.live.store(false, Ordering::Release);
                ended.ended.send_replace(true);
            }));
            Ok(subscription)
        }
    }
}
