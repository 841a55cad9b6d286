//! What becomes of a delivery beyond an acknowledgement: copies to wait, to die, or to be tried by another.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::Inner;
use super::codec::{self, Facts};
use super::group::Command;
use super::tiers;
use crate::confirm::Confirm;
use crate::delivery::{Rejection, Settle, Settlement, Token};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::subject::Group;
use crate::transport::wire;

/// A dead letter's own id, on the letter.
pub(super) const LETTER: &str = "bus-dlq-id";

/// One subscription's door for settlements.
pub(super) struct Settler(pub(super) mpsc::UnboundedSender<Command>);

pub(super) fn lost() -> Error {
    Error::new(ErrorKind::LeaseLost, "the delivery is another consumer's by now")
}

impl Settle for Settler {
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()> {
        let (answer, confirm) = Confirm::channel();
        match self.0.send(Command::Settle(token, settlement, answer)) {
            Ok(()) => confirm,
            Err(_) => Confirm::ready(Err(lost().during("settle"))),
        }
    }

    fn in_progress(&self, token: Token) -> Confirm<()> {
        let (answer, confirm) = Confirm::channel();
        match self.0.send(Command::Progress(token, answer)) {
            Ok(()) => confirm,
            Err(_) => Confirm::ready(Err(lost().during("renew"))),
        }
    }
}

impl Inner {
    /// Stores a copy for this group only, to be delivered not before `after`.
    pub(super) async fn copy_to_group(
        self: Arc<Self>,
        group: Group,
        message: Arc<Message>,
        mut facts: Facts,
        after: Duration,
    ) -> Result<()> {
        let queue = self.names.group(&group);
        if !after.is_zero() {
            let after = SignedDuration::try_from(after).unwrap_or(SignedDuration::MAX);
            facts.due = Some(Timestamp::now().checked_add(after).unwrap_or(Timestamp::MAX));
        }
        self.wait_and_deliver(Some(&group), queue, &message, &facts).await
    }

    /// Stores a copy in `queue`, by way of a waiting room when it is not due yet.
    pub(super) async fn wait_and_deliver(
        &self,
        group: Option<&Group>,
        queue: ShortString,
        message: &Message,
        facts: &Facts,
    ) -> Result<()> {
        let properties = codec::copy(message, facts, FieldTable::default())?;
        let tier = tiers::left(facts.due).and_then(tiers::tier);
        let Some(tier) = tier else {
            return self.copier.to_queue(queue, properties, message.payload.clone()).await;
        };
        let length = tiers::length(tier);
        let room = match group {
            Some(group) => {
                self.mark_room(group, tier).await?;
                self.names.retry(group, length)
            }
            None => self.names.delay(length),
        };
        for again in [true, false] {
            self.tiers.ensure(&self.control, &self.names, &room, length, &queue).await?;
            match self.copier.to_queue(room.clone(), properties.clone(), message.payload.clone()).await {
                Err(error) if again && error.kind() == ErrorKind::NotFound => self.tiers.forget(&room),
                result => return result,
            }
        }
        unreachable!("the second try answers")
    }

    /// Notes once that the group uses this room, so that whoever looks at the group finds it.
    async fn mark_room(&self, group: &Group, tier: u32) -> Result<()> {
        let known = |rooms: &u32| rooms & (1 << tier) != 0;
        if self.rooms.lock().expect("not poisoned").get(group).is_some_and(known) {
            return Ok(());
        }
        let (list, _) = self
            .registrar
            .change(|list| {
                let Some(record) = list.groups.get_mut(group.as_str()) else { return Ok(false) };
                let new = record.rooms & (1 << tier) == 0;
                record.rooms |= 1 << tier;
                Ok(new)
            })
            .await?;
        let rooms = list.groups.get(group.as_str()).map_or(0, |record| record.rooms);
        self.rooms.lock().expect("not poisoned").insert(group.clone(), rooms);
        Ok(())
    }

    /// Stores a dead letter.
    pub(super) async fn bury(
        self: Arc<Self>,
        group: Group,
        message: Arc<Message>,
        facts: Facts,
        attempts: u32,
        rejection: Rejection,
    ) -> Result<()> {
        let mut table = FieldTable::default();
        let mut put = |name: &str, value: &str| {
            table.insert(name.into(), codec::text(value));
        };
        put(LETTER, &Uuid::now_v7().to_string());
        put(wire::DLQ_GROUP, group.as_str());
        put(wire::DLQ_REASON, rejection.reason.as_str());
        put(wire::DLQ_ERROR, &wire::escape(&rejection.error).to_string());
        let mut number =
            |name: &str, value: i64| _ = table.insert(name.into(), AMQPValue::LongLongInt(value));
        number(wire::DLQ_ATTEMPTS, attempts.into());
        number(wire::DLQ_TIME, Timestamp::now().as_millisecond());
        let queue = self.names.dead(group.as_str());
        let properties = codec::copy(&message, &facts, table)?;
        match self.copier.to_queue(queue.clone(), properties.clone(), message.payload.clone()).await {
            Err(error) if error.kind() == ErrorKind::NotFound && self.config.provision.creates() => {
                self.declare_dead(group.as_str()).await?;
                self.copier.to_queue(queue, properties, message.payload.clone()).await
            }
            result => result,
        }
    }
}
