//! The subscriptions of one handle: opens them, and ends them when the handle closes.

use std::sync::{Arc, Mutex, Weak};

use tokio_util::sync::CancellationToken;

use super::handle::Handle;
use super::member::Member;
use super::{broadcast, subscribe};
use event_transport::error::Result;
use event_transport::message::Durability;
use event_transport::subscription::Subscription;
use event_transport::sync::lock;
use event_transport::{Mode, Subscribe};

/// The subscriptions of one handle.
pub(super) struct Subscriptions {
    handle: Arc<Handle>,
    members: Mutex<Vec<Weak<Member>>>,
    /// Cancelled to end the broadcast subscriptions.
    broadcasts: CancellationToken,
}

impl Subscriptions {
    pub(super) fn new(handle: Arc<Handle>) -> Self {
        Self { handle, members: Mutex::default(), broadcasts: CancellationToken::new() }
    }

    /// Opens a subscription.
    pub(super) async fn open(&self, spec: Subscribe) -> Result<Subscription> {
        let open = self.handle.live("subscribe")?;
        let spec = spec.checked().map_err(|error| error.during("subscribe"))?;
        match spec.mode.clone() {
            Mode::Broadcast => broadcast::broadcast(open, spec, self.broadcasts.child_token()).await,
            Mode::Group(group) => {
                let (fsync, provision) = (self.handle.fsyncs(Durability::Default), self.handle.provision);
                let (member, subscription) = subscribe::group(open, group, spec, fsync, provision).await?;
                let mut members = lock(&self.members);
                members.retain(|member| member.strong_count() > 0);
                members.push(Arc::downgrade(&member));
                Ok(subscription)
            }
        }
    }

    /// Ends the broadcast subscriptions.
    pub(super) fn end_broadcasts(&self) {
        self.broadcasts.cancel();
    }

    /// Ends the memberships and releases their unsettled deliveries.
    pub(super) async fn leave_groups(&self) {
        let members = std::mem::take(&mut *lock(&self.members));
        for member in members.iter().filter_map(Weak::upgrade) {
            member.close().await;
        }
    }
}
