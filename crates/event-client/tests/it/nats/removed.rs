//! Tests that another client deletes streams and consumers while members use them: the library notices it,
//! and creates them again as far as `provision` allows.

use event_client::subscription::Subscription;
use event_client::transport::Subscribe;
use serde_json::{Value, json};

use super::*;
use crate::broker::{gets, is_planned_and_applied, passes, planned, recovers, suffers};

/// Makes a JetStream API request, which must be answered without an error.
async fn api(client: &async_nats::Client, subject: String, body: Value) -> Value {
    let body = serde_json::to_vec(&body).expect("JSON");
    let answer = client.request(format!("$JS.API.{subject}"), body.into()).await.expect("an answer");
    let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert_eq!(answer["error"], Value::Null, "{answer}");
    answer
}

async fn delete_consumer(client: &async_nats::Client, namespace: &str, group: &str) {
    api(client, format!("CONSUMER.DELETE.EVT_{namespace}_orders.{group}"), json!({})).await;
}

/// Deletes a stream and waits until its folder is deleted: servers of version 2.9 answer before that, and
/// would delete files of a new stream of that name too.
async fn delete_stream(server: &Nats, stream: String) {
    let client = plain(&server.url()).await;
    api(&client, format!("STREAM.DELETE.{stream}"), json!({})).await;
    let folder = server.folder().join("data/jetstream/$G/streams").join(stream);
    while folder.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn keyed(name: &str) -> Subscribe {
    let mut spec = group(name, "orders.>");
    spec.keyed = true;
    spec
}

/// The URL of this generation's shared server with a namespace of the test's own, and that namespace.
async fn on(generation: Generation) -> (String, String) {
    let (_, namespace) = shared().await;
    (format!("{}?namespace={namespace}", Nats::shared(generation).await.url()), namespace)
}

async fn some_pass(bus: &Arc<dyn Transport>, subscription: &Subscription, what: &str, count: usize) {
    for n in 0..count {
        passes(bus, subscription, "orders.placed", &format!("{what} {n}")).await;
    }
}

/// The consumer is deleted while its member waits: messages published afterwards are delivered, and messages
/// settled long before are not delivered again.
#[tokio::test]
async fn a_deleted_consumer_is_made_again_where_the_group_was() {
    for generation in [Generation::Old, Generation::New] {
        let (url, namespace) = on(generation).await;
        let bus = open(&url).await.expect("the bus opens");
        let client = plain(&url).await;
        let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
        some_pass(&bus, &subscription, "before", 5).await;
        drop(subscription);
        // A member that has requested the group's position, as every member does from time to time.
        let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
        passes(&bus, &subscription, "orders.placed", "a").await;
        delete_consumer(&client, &namespace, "g").await;
        bus.publish(message("orders.placed", "b")).await.expect("confirmed");
        // At least once: messages settled since the member's last request may be delivered again.
        loop {
            let delivery = subscription.next().await.expect("a delivery");
            let text = String::from_utf8_lossy(&delivery.message().payload).into_owned();
            delivery.ack().await.expect("acknowledged");
            assert!(["a", "b"].contains(&text.as_str()), "{text} was settled long before");
            if text == "b" {
                break;
            }
        }
        recovers(&subscription).await;
    }
}

/// A stream is deleted while members wait, and created again by the next publisher: no message of the new
/// stream is skipped.
#[tokio::test]
async fn a_stream_that_is_made_again_is_read_from_its_beginning() {
    for generation in [Generation::Old, Generation::New] {
        let (url, namespace) = on(generation).await;
        let bus = open(&url).await.expect("the bus opens");
        let free = bus.subscribe(group("free", "orders.>")).await.expect("subscribed");
        let order = bus.subscribe(keyed("order")).await.expect("subscribed");
        let mut listener =
            Subscribe::broadcast([event_client::subject::Pattern::new("orders.>").expect("a pattern")]);
        listener.max_in_flight = 64;
        let listener = bus.subscribe(listener).await.expect("subscribed");
        for n in 0..6 {
            let text = format!("before {n}");
            passes(&bus, &free, "orders.placed", &text).await;
            gets(&order, &text).await;
            let heard = listener.next().await.expect("a delivery");
            assert_eq!(String::from_utf8_lossy(&heard.message().payload), text);
        }
        delete_stream(Nats::shared(generation).await, format!("EVT_{namespace}_orders")).await;
        for n in 0..10 {
            bus.publish(message("orders.placed", &format!("after {n}"))).await.expect("confirmed");
        }
        for n in 0..10 {
            let text = format!("after {n}");
            gets(&free, &text).await;
            gets(&order, &text).await;
            let heard = listener.next().await.expect("a delivery");
            assert_eq!(String::from_utf8_lossy(&heard.message().payload), text);
        }
        recovers(&free).await;
        recovers(&order).await;
    }
}

/// The same while the group has no member: a stored position of the earlier stream is not valid in the new
/// one.
#[tokio::test]
async fn a_position_in_an_earlier_stream_passes_nothing_over() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("the bus opens");
    let mut at = group("at", "orders.>");
    at.start = event_client::transport::Start::Position(event_client::message::Position(2));
    bus.publish(message("orders.placed", "first")).await.expect("confirmed");
    let subscription = bus.subscribe(at.clone()).await.expect("subscribed");
    some_pass(&bus, &subscription, "before", 5).await;
    drop(subscription);
    let order = bus.subscribe(keyed("order")).await.expect("subscribed");
    some_pass(&bus, &order, "keyed", 5).await;
    drop(order);
    // Records of earlier filters contain positions as well.
    drop(bus.subscribe(group("other", "orders.a")).await.expect("subscribed"));
    drop(bus.subscribe(group("other", "orders.placed")).await.expect("subscribed"));
    delete_stream(Nats::shared(Generation::Old).await, format!("EVT_{namespace}_orders")).await;
    for n in 0..8 {
        bus.publish(message("orders.placed", &format!("after {n}"))).await.expect("confirmed");
    }
    for spec in [at, keyed("order"), group("other", "orders.placed")] {
        let subscription = bus.subscribe(spec).await.expect("subscribed");
        for n in 0..8 {
            gets(&subscription, &format!("after {n}")).await;
        }
    }
}

/// Without permission to create anything, a member reports the missing object, a plan lists it, and the
/// member continues after an operator has created it.
#[tokio::test]
async fn what_may_not_be_made_again_is_said_and_planned() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("the bus opens");
    let client = plain(&url).await;
    let spec = group("g", "orders.>");
    drop(bus.subscribe(spec.clone()).await.expect("subscribed"));
    for mode in ["off", "verify"] {
        let careful = open(&format!("{url}&provision={mode}")).await.expect("the bus opens");
        let subscription = careful.subscribe(spec.clone()).await.expect("subscribed");
        passes(&bus, &subscription, "orders.placed", mode).await;
        delete_consumer(&client, &namespace, "g").await;
        suffers(&subscription, "provision").await;
        is_planned_and_applied(&bus, &spec, "consumer g of stream").await;
        bus.publish(message("orders.placed", "goes on")).await.expect("confirmed");
        // From the group's start, because its position is not known.
        let mut text = String::new();
        while text != "goes on" {
            let delivery = subscription.next().await.expect("a delivery");
            text = String::from_utf8_lossy(&delivery.message().payload).into_owned();
            delivery.ack().await.expect("acknowledged");
        }
        recovers(&subscription).await;
        assert_eq!(planned(&bus, &spec).await, []);
    }
}

/// A server that stores nothing is restarted: groups, streams and leaders are created again, and every member
/// receives messages again.
#[tokio::test]
async fn members_outlive_a_server_that_forgets_everything() {
    let server = Nats::options().start().await.expect("a server");
    let url = format!("{}?namespace=it&storage=memory", server.url());
    let (bus, publisher) = (open(&url).await.expect("a bus"), open(&url).await.expect("a bus"));
    let free = bus.subscribe(group("free", "orders.>")).await.expect("subscribed");
    let order = bus.subscribe(keyed("order")).await.expect("subscribed");
    passes(&publisher, &free, "orders.placed", "before").await;
    gets(&order, "before").await;
    server.restart().await.expect("restarted");
    passes(&publisher, &free, "orders.placed", "after").await;
    gets(&order, "after").await;
    recovers(&free).await;
    recovers(&order).await;
    let mut groups: Vec<_> =
        bus.admin().groups().await.expect("the groups").into_iter().map(|status| status.members).collect();
    groups.sort_unstable();
    assert_eq!(groups, [1, 1]);
}

/// The library's internal streams are deleted: the next dead letter, the next delayed message and the next
/// group work.
#[tokio::test]
async fn the_librarys_own_streams_are_made_again() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("the bus opens");
    let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    let reject = async |text: &str| {
        bus.publish(message("orders.placed", text)).await.expect("confirmed");
        let delivery = subscription.next().await.expect("a delivery");
        let rejection =
            event_client::delivery::Rejection::new(event_client::delivery::Reason::Permanent, "no");
        delivery.reject(rejection).await.expect("rejected");
    };
    let delayed = async |text: &str| {
        let mut later = message("orders.placed", text);
        later.deliver_at = Some(jiff::Timestamp::now() + Duration::from_millis(300));
        bus.publish(later).await.expect("confirmed");
        gets(&subscription, text).await;
    };
    reject("first letter").await;
    delayed("first delay").await;
    for kind in ["DLQ", "WRK", "SYS"] {
        delete_stream(Nats::shared(Generation::Old).await, format!("{kind}_{namespace}")).await;
    }
    reject("second letter").await;
    assert_eq!(&*letters(&bus, "g", 1).await[0].message.payload, b"second letter");
    delayed("second delay").await;
    let other = bus.subscribe(group("other", "orders.>")).await.expect("subscribed");
    passes(&bus, &other, "orders.placed", "for both").await;
    gets(&subscription, "for both").await;
}
