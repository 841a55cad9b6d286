//! The membership of one subscription in its group: the definition with which it subscribed, and where the group is now.

use redis::Value;

use super::group::{Definitions, Joining, Place};
use super::member::Member;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::{Start, Subscribe};

pub(super) struct Membership {
    pub(super) definitions: Definitions,
    pub(super) spec: Subscribe,
}

impl Membership {
    /// Creates or changes the group as far as allowed, joins it, and returns its places.
    pub(super) async fn join(&self, member: &Member) -> Result<Vec<Place>> {
        self.define(member, &self.spec).await
    }

    async fn define(&self, member: &Member, spec: &Subscribe) -> Result<Vec<Place>> {
        let joining = Joining { consumer: &member.consumer, life: member.life_millis() };
        self.definitions.define(&member.group, spec, Some(joining), false).await.map(|(_, places)| places)
    }

    /// Returns the group's present places, for a member that received a change signal; `None` when the group was
    /// deleted. After an error the member receives the signal again.
    pub(super) async fn look_again(&self, member: &Member) -> Result<Option<Vec<Place>>> {
        let places = self.present(member).await;
        if places.is_err() {
            member.signals.changed();
        }
        places
    }

    async fn present(&self, member: &Member) -> Result<Option<Vec<Place>>> {
        let Member { client, group, .. } = member;
        let mut as_it_is = self.spec.clone();
        match self.definitions.get(group).await? {
            Some((_, definition)) => {
                as_it_is.filters = definition.patterns();
                as_it_is.keyed = definition.keyed;
            }
            None => {
                let mut ask = redis::cmd("EXISTS");
                ask.arg(client.keys.tombstone(group.as_str()));
                if client.connection.ask(ask).await? != Value::Int(0) {
                    return Ok(None);
                }
                tracing::error!(%group, "the server has lost this group and its waiting messages; was it emptied, or restarted without persistence?");
                // All entries that exist by now are newer than the group.
                as_it_is.start = Start::Earliest;
            }
        }
        match self.define(member, &as_it_is).await {
            Ok(places) => Ok(Some(places)),
            // The reader takes `NotFound` for a group that is about to be created.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(Error::new(ErrorKind::Unavailable, error.to_string()))
            }
            Err(error) => Err(error),
        }
    }
}
