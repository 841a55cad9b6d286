//! Tests that another client deletes streams and groups while members use them: the library notices it, and
//! creates them again as far as `provision` allows.

use std::sync::Arc;

use event_client::subscription::Subscription;
use event_client::transport::{Subscribe, Transport};

use super::*;
use crate::broker::{gets, is_planned_and_applied, passes, recovers, suffers};

fn keyed(name: &str) -> Subscribe {
    let mut spec = group(name, "orders.>");
    spec.keyed = true;
    spec
}

/// Acknowledges deliveries until this text, which must not be missing; earlier texts may be delivered again.
async fn comes(subscription: &Subscription, wanted: &str) {
    loop {
        let delivery = subscription.next().await.expect("a delivery");
        let text = String::from_utf8_lossy(&delivery.message().payload).into_owned();
        delivery.ack().await.expect("acknowledged");
        if text == wanted {
            return;
        }
    }
}

async fn two(bus: &Arc<dyn Transport>) -> [Subscription; 2] {
    let free = bus.subscribe(group("free", "orders.>")).await.expect("subscribed");
    let order = bus.subscribe(keyed("order")).await.expect("subscribed");
    [free, order]
}

/// A topic's stream is deleted and created again by the next publisher.
#[tokio::test]
async fn a_stream_that_is_made_again_is_read_from_its_beginning() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("the bus opens");
    let mut client = plain(&url).await;
    let members = two(&bus).await;
    bus.publish(message("orders.placed", "before")).await.expect("confirmed");
    for member in &members {
        gets(member, "before").await;
    }
    let _: i64 = redis::cmd("DEL")
        .arg(format!("{namespace}:{{orders}}"))
        .query_async(&mut client)
        .await
        .expect("deleted");
    for n in 0..8 {
        bus.publish(message("orders.placed", &format!("after {n}"))).await.expect("confirmed");
    }
    for member in &members {
        for n in 0..8 {
            gets(member, &format!("after {n}")).await;
        }
        recovers(member).await;
    }
}

/// A group is destroyed on its topic: it continues after the last entry that it is known to have settled, and
/// loses nothing.
#[tokio::test]
async fn a_destroyed_group_is_made_again_where_it_was() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("the bus opens");
    let mut client = plain(&url).await;
    bus.publish(message("orders.placed", "before the group")).await.expect("confirmed");
    let members = two(&bus).await;
    for text in ["a", "b"] {
        bus.publish(message("orders.placed", text)).await.expect("confirmed");
    }
    for member in &members {
        gets(member, "a").await;
        gets(member, "b").await;
    }
    for name in ["free", "order"] {
        let mut destroy = redis::cmd("XGROUP");
        destroy.arg("DESTROY").arg(format!("{namespace}:{{orders}}")).arg(name);
        let _: i64 = destroy.query_async(&mut client).await.expect("destroyed");
    }
    bus.publish(message("orders.placed", "after")).await.expect("confirmed");
    for member in &members {
        loop {
            let delivery = member.next().await.expect("a delivery");
            let text = String::from_utf8_lossy(&delivery.message().payload).into_owned();
            delivery.ack().await.expect("acknowledged");
            assert_ne!(text, "before the group");
            if text == "after" {
                break;
            }
        }
        recovers(member).await;
    }
}

/// A server is emptied: groups are created again, and messages published before that are delivered to them.
#[tokio::test]
async fn members_outlive_a_server_that_is_emptied() {
    let server = test_servers::Redis::options().start().await.expect("a server");
    let bus = open(&server.url()).await.expect("the bus opens");
    let mut client = plain(&server.url()).await;
    let members = two(&bus).await;
    let _: String = redis::cmd("FLUSHALL").query_async(&mut client).await.expect("emptied");
    bus.publish(message("orders.placed", "after")).await.expect("confirmed");
    for member in &members {
        gets(member, "after").await;
        recovers(member).await;
    }
    let groups = bus.admin().groups().await.expect("the groups");
    assert_eq!(groups.iter().map(|status| status.group.as_str()).collect::<Vec<_>>(), ["free", "order"]);
}

/// Without permission to create anything, a member reports the missing object, a plan lists it, and the
/// member continues after an operator has created it.
#[tokio::test]
async fn what_may_not_be_made_again_is_said_and_planned() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("the bus opens");
    let mut client = plain(&url).await;
    let spec = group("g", "orders.>");
    drop(bus.subscribe(spec.clone()).await.expect("subscribed"));
    for mode in ["off", "verify"] {
        let careful = open(&format!("{url}&provision={mode}")).await.expect("the bus opens");
        let subscription = careful.subscribe(spec.clone()).await.expect("subscribed");
        passes(&bus, &subscription, "orders.placed", mode).await;
        let mut destroy = redis::cmd("XGROUP");
        destroy.arg("DESTROY").arg(format!("{namespace}:{{orders}}")).arg("g");
        let _: i64 = destroy.query_async(&mut client).await.expect("destroyed");
        suffers(&subscription, "provision").await;
        is_planned_and_applied(&bus, &spec, "group g of stream").await;
        bus.publish(message("orders.placed", "goes on")).await.expect("confirmed");
        comes(&subscription, "goes on").await;
        recovers(&subscription).await;
    }
}
