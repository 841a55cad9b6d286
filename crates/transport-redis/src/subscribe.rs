//! Subscribes to groups: starts the tasks of each member, and gives back the deliveries of all members when the bus
//! closes.

use std::sync::{Arc, Mutex, Weak};

use super::client::{Client, Patience};
use super::deliver::Deliverer;
use super::group::Definitions;
use super::member::Member;
use super::membership::Membership;
use super::pubsub::Listening;
use super::settle::{Holder, Settler};
use super::{fetch, keyed, lease};
use event_transport::Subscribe;
use event_transport::delivery::{Settle, Settlement, Token};
use event_transport::error::Result;
use event_transport::subject::Group;
use event_transport::subscription::Subscription;
use event_transport::supervise;
use event_transport::sync::lock;

/// The members of groups that this bus has subscribed.
pub(super) struct Groups {
    client: Arc<Client>,
    definitions: Definitions,
    settler: Arc<Settler>,
    members: Mutex<Vec<Weak<Member>>>,
}

impl Groups {
    pub(super) fn new(client: Arc<Client>, definitions: Definitions) -> Self {
        let settler = Settler::open(client.connection.clone());
        Self { client, definitions, settler, members: Mutex::default() }
    }

    pub(super) async fn subscribe(&self, group: Group, spec: Subscribe) -> Result<Subscription> {
        let mut patience = Patience::new(&self.client);
        loop {
            match self.join(group.clone(), spec.clone()).await {
                Err(error) if patience.lasts(&error).await => {}
                outcome => return outcome,
            }
        }
    }

    async fn join(&self, group: Group, spec: Subscribe) -> Result<Subscription> {
        let member = Arc::new(Member::new(&self.client, group, &spec));
        // Subscribes to the channels before the definition is read, so that no change in between is missed.
        let listening = self.listen(&member, &spec).await?;
        let keyed = spec.keyed;
        let membership = Membership { definitions: self.definitions.clone(), spec };
        let places = membership.join(&member).await?;
        let (feed, subscription) = Subscription::channel(member.max_in_flight);
        {
            let mut members = lock(&self.members);
            members.retain(|member| member.strong_count() > 0);
            members.push(Arc::downgrade(&member));
        }
        let gone = feed.gone().clone();
        let died = member.closed.clone();
        let keeping = lease::keep(member.clone(), gone);
        tokio::spawn(supervise::run("redis leases", keeping, move || died.cancel()));
        let (told, stopped) = (member.clone(), feed.stopped().clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = told.closed.cancelled() => {}
                () = told.client.connection.closed.cancelled() => {}
                () = told.ended.cancelled() => {}
            }
            // Interrupts a reader that blocks.
            told.signals.wake.notify_one();
        });
        let ended = member.ended.clone();
        let deliverer = Deliverer::new(member, self.settler.clone(), feed);
        if keyed {
            let reading = keyed::run(deliverer, membership, places, listening);
            tokio::spawn(supervise::run("redis keyed fetch", reading, move || ended.cancel()));
        } else {
            let reading = fetch::run(deliverer, membership, places, listening);
            tokio::spawn(supervise::run("redis fetch", reading, move || ended.cancel()));
        }
        Ok(subscription)
    }

    /// Subscribes a member to the channels that announce changes of its group and new topics.
    async fn listen(&self, member: &Arc<Member>, spec: &Subscribe) -> Result<Vec<Listening>> {
        let Client { subscriber, keys, .. } = &*self.client;
        let told = Arc::downgrade(member);
        let wake = subscriber.on(keys.wake(member.group.as_str()), move |message| {
            if let Some(member) = told.upgrade() {
                member.signals.on_message(message);
            }
        });
        let mut listening = vec![wake.await?];
        if spec.filters.iter().any(|filter| filter.topic().is_none()) {
            let told = Arc::downgrade(member);
            let topics = subscriber.on(keys.system(), move |message| {
                if let Some(member) = told.upgrade()
                    && !message.starts_with(b"delay")
                {
                    member.signals.changed();
                }
            });
            listening.push(topics.await?);
        }
        Ok(listening)
    }

    /// Gives all deliveries of this bus back to their groups, because the bus closes.
    pub(super) async fn close(&self) {
        let members = std::mem::take(&mut *lock(&self.members));
        for member in members.iter().filter_map(Weak::upgrade) {
            self.hand_back(member).await;
        }
    }

    async fn hand_back(&self, member: Arc<Member>) {
        member.closed.cancel();
        // The reader itself releases entries that it was just fetching.
        let patience = self.client.config.publish_timeout;
        let _ = tokio::time::timeout(patience, member.ended.cancelled()).await;
        let held: Vec<Token> = lock(&member.table).iter().map(|(token, _)| token as Token).collect();
        let holder = Holder { member: member.clone(), settler: self.settler.clone() };
        let released: Vec<_> =
            held.into_iter().map(|token| holder.settle(token, Settlement::Release)).collect();
        for confirm in released {
            let _ = confirm.await;
        }
        let _ = tokio::time::timeout(patience, lease::part(&member)).await;
    }

    /// Ends all members without a message to the server: their leases expire.
    pub(super) fn abandon(&self) {
        for member in lock(&self.members).iter().filter_map(Weak::upgrade) {
            member.closed.cancel();
        }
    }
}
