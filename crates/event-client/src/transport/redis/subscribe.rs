//! Subscribes to a group: creates or changes it as far as allowed, joins it, and starts the task that reads for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use smol_str::format_smolstr;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Patience};
use super::group::Joining;
use super::member::Member;
use super::{fetch, keyed, lease};
use crate::bounds;
use crate::error::Result;
use crate::subject::Group;
use crate::subscription::Subscription;
use crate::supervise;
use crate::transport::Subscribe;

pub(super) async fn group(client: &Arc<Client>, group: Group, spec: Subscribe) -> Result<Subscription> {
    let mut patience = Patience::new(client);
    loop {
        match join(client, group.clone(), spec.clone()).await {
            Err(error) if patience.lasts(&error).await => {}
            outcome => return outcome,
        }
    }
}

async fn join(client: &Arc<Client>, group: Group, spec: Subscribe) -> Result<Subscription> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let lease = bounds::millis(spec.lease);
    let member = Arc::new(Member {
        consumer: format_smolstr!("{}-{number}.{lease}", client.id),
        client: client.clone(),
        lease: spec.lease,
        max_in_flight: spec.max_in_flight.max(1),
        keyed: spec.keyed,
        table: Mutex::default(),
        signals: super::member::Signals::default(),
        closed: CancellationToken::new(),
        ended: CancellationToken::new(),
        lanes: Mutex::default(),
        owned: Mutex::default(),
        joined: Mutex::default(),
        group,
    });
    // Subscribes to the channel before the definition is read, so that no change in between is missed.
    let told = Arc::downgrade(&member);
    let wake = client.subscriber.on(client.keys.wake(member.group.as_str()), move |message| {
        if let Some(member) = told.upgrade() {
            member.signals.on_message(message);
        }
    });
    let mut listening = vec![wake.await?];
    if spec.filters.iter().any(|filter| filter.topic().is_none()) {
        let told = Arc::downgrade(&member);
        let topics = client.subscriber.on(client.keys.system(), move |message| {
            if let Some(member) = told.upgrade()
                && !message.starts_with(b"delay")
            {
                member.signals.changed();
            }
        });
        listening.push(topics.await?);
    }
    let joining = Joining { consumer: &member.consumer, life: member.life_millis() };
    let (_, places) = client.define(&member.group, &spec, Some(joining), false).await?;
    let (feed, subscription) = Subscription::channel(member.max_in_flight);
    {
        let mut members = client.members.lock().expect("not poisoned");
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
    if member.keyed {
        let reading = keyed::run(member, spec, places, feed, listening);
        tokio::spawn(supervise::run("redis keyed fetch", reading, move || ended.cancel()));
    } else {
        let reading = fetch::run(member, spec, places, feed, listening);
        tokio::spawn(supervise::run("redis fetch", reading, move || ended.cancel()));
    }
    Ok(subscription)
}
