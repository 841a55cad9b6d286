//! Tests that another client deletes queues, exchanges and bindings while members use them: the library
//! notices it, and creates them again as far as `provision` allows.

use event_client::transport::Subscribe;
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::types::FieldTable;

use super::{bus, group, open, plain};
use crate::broker::{gets, is_planned_and_applied, passes, planned, recovers, suffers};

async fn delete_exchange(channel: &lapin::Channel) {
    let options = ExchangeDeleteOptions::default();
    channel.exchange_delete("backbone.evt".into(), options).await.expect("deleted");
}

/// Declares an exchange of the same name, without a binding.
async fn declare_exchange(channel: &lapin::Channel) {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let (kind, table) = (lapin::ExchangeKind::Topic, FieldTable::default());
    channel.exchange_declare("backbone.evt".into(), kind, options, table).await.expect("declared");
}

fn keyed(name: &str) -> Subscribe {
    let mut spec = group(name, "orders.*");
    spec.keyed = true;
    spec
}

/// The exchange is deleted; the next publish declares it again, together with the bindings of every group.
#[tokio::test]
async fn who_makes_the_exchange_again_restores_all_bindings() {
    let (url, bus) = bus("exchange-published").await;
    let free = bus.subscribe(group("free", "orders.>")).await.expect("subscribed");
    let order = bus.subscribe(keyed("order")).await.expect("subscribed");
    passes(&bus, &free, "orders.placed", "before").await;
    gets(&order, "before").await;
    let (_connection, channel) = plain(&url).await;
    delete_exchange(&channel).await;
    passes(&bus, &free, "orders.placed", "after").await;
    gets(&order, "after").await;
    // Also when no member notices that the exchange was missing: it is declared by hand, and then a member
    // joins or a bus opens.
    for n in 0..2 {
        delete_exchange(&channel).await;
        declare_exchange(&channel).await;
        let text = format!("by hand {n}");
        if n == 0 {
            let other = bus.subscribe(group("other", "orders.>")).await.expect("subscribed");
            passes(&bus, &other, "orders.placed", &text).await;
        } else {
            let another = open(&url).await.expect("another bus opens");
            another.publish(super::message("orders.placed", &text)).await.expect("confirmed");
        }
        gets(&free, &text).await;
        gets(&order, &text).await;
    }
}

/// A binding is removed by hand: the next member of its group restores it.
#[tokio::test]
async fn a_new_member_binds_again() {
    let (url, bus) = bus("unbound").await;
    let first = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    passes(&bus, &first, "orders.placed", "before").await;
    let (_connection, channel) = plain(&url).await;
    let (queue, key) = ("backbone.group.g".into(), "orders.*.#".into());
    channel.queue_unbind(queue, "backbone.evt".into(), key, FieldTable::default()).await.expect("unbound");
    let second = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    drop(first);
    passes(&bus, &second, "orders.placed", "after").await;
}

/// A group's queue is deleted while it has members: it is declared again, with its bindings.
#[tokio::test]
async fn a_deleted_queue_is_made_again() {
    let (url, bus) = bus("queue").await;
    let (_connection, channel) = plain(&url).await;
    for spec in [group("free", "orders.>"), keyed("order")] {
        let event_client::transport::Mode::Group(name) = &spec.mode else { unreachable!("a group") };
        let queue = format!("backbone.group.{name}");
        let member = bus.subscribe(spec.clone()).await.expect("subscribed");
        passes(&bus, &member, "orders.placed", "before").await;
        let mut health = member.health();
        health.mark_unchanged();
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.expect("deleted");
        health.changed().await.expect("the health reports it");
        recovers(&member).await;
        passes(&bus, &member, "orders.placed", "after").await;
        drop(member);
        // The same while the group has no member.
        while bus.admin().groups().await.expect("the groups").iter().any(|status| status.members > 0) {
            tokio::task::yield_now().await;
        }
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.expect("deleted");
        is_planned_and_applied(&bus, &spec, &format!("queue {queue}")).await;
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.expect("deleted");
        let member = bus.subscribe(spec).await.expect("subscribed");
        passes(&bus, &member, "orders.placed", "at last").await;
    }
}

/// Without permission to create anything, a new member is refused, a live one reports the missing object, and
/// a plan lists it.
#[tokio::test]
async fn what_may_not_be_made_again_is_said_and_planned() {
    let (url, bus) = bus("exchange-verified").await;
    let spec = group("g", "orders.>");
    drop(bus.subscribe(spec.clone()).await.expect("subscribed"));
    let (_connection, channel) = plain(&url).await;
    for mode in ["off", "verify"] {
        let careful = open(&format!("{url}?provision={mode}")).await.expect("the bus opens");
        let member = careful.subscribe(spec.clone()).await.expect("subscribed");
        passes(&bus, &member, "orders.placed", mode).await;
        delete_exchange(&channel).await;
        declare_exchange(&channel).await;
        let error = careful.subscribe(spec.clone()).await.expect_err("it has no bindings");
        assert_eq!(error.kind(), event_client::ErrorKind::NotFound, "{error:?}");
        suffers(&member, "bindings of exchange backbone.evt").await;
        is_planned_and_applied(&bus, &spec, "exchange backbone.evt").await;
        let joined = careful.subscribe(spec.clone()).await.expect("subscribed");
        recovers(&member).await;
        drop(joined);
        passes(&bus, &member, "orders.placed", "goes on").await;
        assert_eq!(planned(&bus, &spec).await, []);
    }
}
