//! The trait that every transport implements.
//!
//! The `event-conformance` suite tests every sentence here that contains *must*.

use std::fmt;

use futures_util::future::BoxFuture;

use super::admin::Admin;
use super::capabilities::Capabilities;
use super::requests::Requests;
use super::subscribe::Subscribe;
use crate::confirm::Confirm;
use crate::error::Result;
use crate::message::{Message, Position};
use crate::subscription::Subscription;

/// A transport: it publishes, stores and delivers messages over one broker or store.
///
/// Every transport has this behaviour:
/// - `publish` must confirm a message only after storing it with the requested
///   [`Durability`](crate::message::Durability), and must refuse a message that it cannot store as requested;
/// - a message must reach every group with a matching pattern, and one member of each such group;
/// - when a consumer crashes or no longer renews its leases, its deliveries must go to another member within the lease;
/// - a keyed subscription must deliver the messages of one key one at a time, in the order of publication and including
///   retries, while it continues to deliver the messages of other keys;
/// - `close` must be idempotent, must release unsettled deliveries and must resolve every pending operation.
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// The capabilities of this transport with its present connection and options.
    fn capabilities(&self) -> &Capabilities;

    /// Publishes a message; the confirmation resolves when it is stored. Must not block.
    ///
    /// Begin with [`Capabilities::check`], and return a confirmation that is already resolved to its error: the bus does
    /// not check the message itself.
    ///
    /// Messages that one task publishes one after another keep their order per topic. Publishes that are pending at
    /// the same time share a round trip or an fsync.
    fn publish(&self, message: Message) -> Confirm<Receipt>;

    /// Opens a subscription. When this returns, the group exists durably; it is created or changed if
    /// [`Provision`](super::Provision) allows it.
    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>>;

    /// The request/reply interface.
    fn requests(&self) -> &dyn Requests;

    /// The interface for operators: dead letters, groups and their lag.
    fn admin(&self) -> &dyn Admin;

    /// Completes pending settlements and publishes, then closes. Later calls return
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

/// The transport's report about a published message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Position of the message in its topic's log, if the transport has a log.
    pub position: Option<Position>,
    /// Whether the transport already had a message with this dedup id: it keeps that message and stores no new one.
    pub duplicate: bool,
}
