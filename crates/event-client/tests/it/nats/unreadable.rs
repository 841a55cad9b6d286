//! Tests header bytes that break the client's connection: the message becomes a dead letter once, and no
//! other message is lost.

use std::collections::BTreeSet;
use std::time::Duration;

use event_client::ErrorKind;
use event_client::delivery::{Delivery, Reason};
use event_client::message::Position;
use event_client::subject::{Pattern, Subject};
use event_client::subscription::Subscription;
use event_client::transport::{Frame, GroupStatus, Serve, Subscribe};
use test_servers::{Generation, Nats};
use tokio::time::timeout;

use super::{group, letters, message, open, plain, write};

/// Header blocks that async-nats cannot parse.
const UNREADABLE: [&[u8]; 4] = [
    b"NATS/1.0\r\nunit: \xff\xfe\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0 odd\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
];

#[tokio::test]
async fn a_group_goes_on_behind_it() {
    goes_on(Generation::Old, false).await;
}

#[tokio::test]
async fn a_group_goes_on_behind_it_on_the_newer_server() {
    goes_on(Generation::New, false).await;
}

#[tokio::test]
async fn a_keyed_group_goes_on_behind_it() {
    goes_on(Generation::Old, true).await;
}

#[tokio::test]
async fn a_keyed_group_goes_on_behind_it_on_the_newer_server() {
    goes_on(Generation::New, true).await;
}

/// Acknowledges. An ack that was in flight when the connection broke may be lost: then the message is
/// delivered again.
async fn settle(delivery: Delivery) {
    if let Err(error) = delivery.ack().await {
        let lost = [ErrorKind::Timeout, ErrorKind::Unavailable, ErrorKind::LeaseLost];
        assert!(lost.contains(&error.kind()), "{error:?}");
    }
}

async fn settle_what_comes(subscription: &Subscription) {
    if let Ok(Some(delivery)) = timeout(Duration::from_millis(10), subscription.next()).await {
        settle(delivery).await;
    }
}

async fn goes_on(generation: Generation, keyed: bool) {
    let server = Nats::options().generation(generation).start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    let mut spec = group("g", "orders.>");
    (spec.max_in_flight, spec.lease, spec.keyed) = (64, Duration::from_secs(2), keyed);
    // All messages are stored before the group fetches: one batch contains good and bad ones.
    bus.publish(message("orders.a", "0")).await.expect("stored");
    for (at, bytes) in UNREADABLE.iter().enumerate() {
        write(&server.url(), "backbone.evt.orders.a", bytes, format!("bad {at}").as_bytes()).await;
        bus.publish(message("orders.a", &format!("{}", at + 1))).await.expect("stored");
    }
    spec.start = event_client::transport::Start::Earliest;
    let js = async_nats::jetstream::new(plain(&server.url()).await);
    let stored =
        js.get_stream("EVT_backbone_orders").await.expect("a stream").cached_info().state.last_sequence;
    // The newer server removes a foreign status line: that message can be read.
    let is_bad = |at: &usize| generation == Generation::Old || !UNREADABLE[*at].starts_with(b"NATS/1.0 ");
    let (bad, good): (Vec<usize>, Vec<usize>) = (0..UNREADABLE.len()).partition(is_bad);
    let subscription = bus.subscribe(spec).await.expect("subscribed");
    let mut missing: BTreeSet<String> = (0..=UNREADABLE.len()).map(|at| at.to_string()).collect();
    missing.extend(good.iter().map(|at| format!("bad {at}")));
    while !missing.is_empty() {
        let delivery = subscription.next().await.expect("a delivery");
        missing.remove(str::from_utf8(&delivery.message().payload).expect("text"));
        settle(delivery).await;
    }
    let letters = letters(&bus, "g", bad.len()).await;
    for (at, letter) in bad.iter().zip(&letters) {
        assert_eq!(letter.reason, Reason::Undecodable);
        assert_eq!(letter.message.payload, format!("bad {at}"));
        assert_eq!(letter.message.subject.as_str(), "orders.a");
    }
    assert!(letters[0].error.contains("UTF-8"), "{}", letters[0].error);
    // Settled for good: the group has no message left, and the connection does not break again.
    if keyed {
        let owes = |status: &GroupStatus| status.waiting + status.in_flight + status.retrying;
        while owes(&bus.admin().groups().await.expect("groups")[0]) > 0 {
            settle_what_comes(&subscription).await;
        }
    } else {
        let consumer: async_nats::jetstream::consumer::PullConsumer =
            js.get_consumer_from_stream("g", "EVT_backbone_orders").await.expect("a consumer");
        while consumer.get_info().await.expect("its state").ack_floor.stream_sequence < stored {
            settle_what_comes(&subscription).await;
        }
    }
    // The letter can be replayed, with the parts of the message that could be read.
    assert_eq!(
        bus.admin().replay_dead_letters(Default::default()).await.expect("replayed"),
        bad.len() as u64
    );
    let delivery = subscription.next().await.expect("a replayed one");
    assert!(delivery.message().payload.starts_with(b"bad"));
    assert_eq!(delivery.message().headers.get("unit"), Some("\u{fffd}\u{fffd}"));
    delivery.ack().await.expect("acknowledged");
}

#[tokio::test]
async fn a_broadcast_passes_over_it() {
    let server = Nats::options().start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    // A confirmation that was in flight when the connection broke would be a timeout.
    let writer = open(&server.url()).await.expect("opened");
    let spec = Subscribe::broadcast([Pattern::new("orders.>").expect("a pattern")]);
    let subscription = bus.subscribe(spec).await.expect("subscribed");
    for (at, bytes) in UNREADABLE.iter().enumerate() {
        write(&server.url(), "backbone.evt.orders.a", bytes, b"bad").await;
        writer.publish(message("orders.a", &at.to_string())).await.expect("stored");
    }
    let mut last = None;
    for at in 0..UNREADABLE.len() {
        let delivery = subscription.next().await.expect("a delivery");
        assert_eq!(delivery.message().payload, at.to_string());
        assert!(delivery.info().position > last, "in order and once");
        last = delivery.info().position;
    }
    assert_eq!(last, Some(Position(2 * UNREADABLE.len() as u128)));
}

/// An unreadable request gets no reply, and the service answers the next one.
#[tokio::test]
async fn a_service_outlives_it() {
    let server = Nats::options().start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    let subjects = vec![Subject::new("shop.quote").expect("a subject")];
    let spec = Serve::new("shop", subjects, 4);
    let mut requests = bus.requests().serve(spec).await.expect("served");
    let serving = tokio::spawn(async move {
        while let Some(mut request) = requests.recv().await {
            let payload = request.message.payload.clone();
            let frame =
                Frame { headers: Default::default(), content_type: "text/plain".into(), payload, last: true };
            drop(request.responder.send(frame));
        }
    });
    let client = plain(&server.url()).await;
    for bytes in UNREADABLE {
        write(&server.url(), "backbone.rpc.shop.quote", bytes, b"x").await;
        // Until the service has connected again there is no responder, or the request is lost with its
        // connection.
        loop {
            let asked = client.request("backbone.rpc.shop.quote", "hi".into());
            if let Ok(Ok(answer)) = timeout(Duration::from_millis(500), asked).await {
                assert_eq!(answer.payload, "hi");
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    serving.abort();
}
