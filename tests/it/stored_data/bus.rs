//! The messages of the stored data: acknowledged, retried, rejected, waiting and delayed ones of two groups.

use std::collections::BTreeMap;
use std::time::Duration;

use backbone_tests::eventually;
use event_client::Bus;
use event_client::delivery::{Delivery, Reason, Rejection};
use event_client::message::Message;
use event_client::subject::{Group, Pattern, Subject};
use event_client::transport::{DeadLetterFilter, Start, Subscribe};

const DEADLINE: Duration = Duration::from_secs(60);
const LATER: Duration = Duration::from_secs(2);

fn audit() -> Subscribe {
    let mut spec = Subscribe::group(Group::new("audit").unwrap(), [Pattern::new("orders.>").unwrap()]);
    spec.max_in_flight = 16;
    spec.start = Start::Earliest;
    spec
}

fn ledger() -> Subscribe {
    let mut spec = Subscribe::group(Group::new("ledger").unwrap(), [Pattern::new("orders.>").unwrap()]);
    spec.max_in_flight = 16;
    spec.keyed = true;
    spec.start = Start::Earliest;
    spec
}

fn message(number: u32) -> Message {
    let mut message = Message::new(
        Subject::new("orders.placed.v1").unwrap(),
        "application/json",
        format!(r#"{{"order_id":{number}}}"#),
    );
    message.id = format!("m{number}").into();
    message.key = match number {
        1 | 3 => Some("a".into()),
        2 | 4 => Some("b".into()),
        _ => None,
    };
    message.dedup = number == 5;
    if number == 7 {
        message.deliver_at = Some(jiff::Timestamp::now() + LATER);
    }
    message
}

fn id(delivery: &Delivery) -> String {
    delivery.message().id.to_string()
}

/// Takes this number of deliveries, by the id of their messages.
async fn take(
    subscription: &event_client::subscription::Subscription,
    count: usize,
) -> BTreeMap<String, Delivery> {
    let mut taken = BTreeMap::new();
    for _ in 0..count {
        let next = tokio::time::timeout(DEADLINE, subscription.next()).await;
        let delivery = next.unwrap_or_else(|_| panic!("only {:?} came", taken.keys())).unwrap();
        taken.insert(id(&delivery), delivery);
    }
    taken
}

/// Publishes seven messages and settles some of them.
pub(super) async fn record(bus: &Bus) {
    let plain = bus.subscribe(audit()).await.unwrap();
    let keyed = bus.subscribe(ledger()).await.unwrap();
    for number in 1..=7 {
        bus.publish_message(message(number)).await.unwrap();
    }
    let mut taken = take(&plain, 6).await;
    plain.stop();
    taken.remove("m1").unwrap().ack().await.unwrap();
    taken.remove("m2").unwrap().retry(LATER, "the bank is closed").await.unwrap();
    taken.remove("m3").unwrap().reject(Rejection::new(Reason::Permanent, "no bank")).await.unwrap();
    for (_, delivery) in taken {
        delivery.release().await.unwrap();
    }
    // Of each key only the first message is delivered; m5 and m6 have no key.
    let mut taken = take(&keyed, 4).await;
    keyed.stop();
    taken.remove("m1").unwrap().ack().await.unwrap();
    taken.remove("m2").unwrap().retry(LATER, "the bank is closed").await.unwrap();
    for (_, delivery) in taken {
        delivery.release().await.unwrap();
    }
}

/// Reads the recorded messages: every unsettled one is delivered and acknowledged, the dead letter is replayed.
pub(super) async fn read(bus: &Bus) {
    let letters = bus.admin().dead_letters(DeadLetterFilter::default()).await.unwrap();
    assert_eq!(letters.len(), 1, "{letters:?}");
    let letter = &letters[0];
    assert_eq!((letter.message.id.to_string(), letter.reason), ("m3".to_owned(), Reason::Permanent));
    assert_eq!((letter.error.as_str(), letter.attempts, letter.group.as_str()), ("no bank", 1, "audit"));
    assert_eq!(&letter.message.payload[..], br#"{"order_id":3}"#);
    assert_eq!(bus.admin().replay_dead_letters(DeadLetterFilter::default()).await.unwrap(), 1);

    let plain = bus.subscribe(audit()).await.unwrap();
    let taken = take(&plain, 6).await;
    let seen: Vec<_> =
        taken.iter().map(|(id, taken)| (id.as_str(), taken.info().attempt, taken.info().replayed)).collect();
    let expected = [
        ("m2", 2, false),
        ("m3", 1, true),
        ("m4", 1, false),
        ("m5", 1, false),
        ("m6", 1, false),
        ("m7", 1, false),
    ];
    assert_eq!(seen, expected);
    for (_, delivery) in taken {
        delivery.ack().await.unwrap();
    }

    let keyed = bus.subscribe(ledger()).await.unwrap();
    let mut of_b = Vec::new();
    for _ in 0..6 {
        let delivery = tokio::time::timeout(DEADLINE, keyed.next()).await.expect("a delivery").unwrap();
        if delivery.message().key.as_deref() == Some("b") {
            of_b.push((id(&delivery), delivery.info().attempt));
        }
        delivery.ack().await.unwrap();
    }
    assert_eq!(of_b, [("m2".to_owned(), 2), ("m4".to_owned(), 1)]);

    let mut history = Subscribe::broadcast([Pattern::new("orders.>").unwrap()]);
    history.start = Start::Earliest;
    let history = take(&bus.subscribe(history).await.unwrap(), 7).await;
    assert_eq!(history.keys().collect::<Vec<_>>(), ["m1", "m2", "m3", "m4", "m5", "m6", "m7"]);

    eventually(DEADLINE, "nothing to be left", async || {
        let groups = bus.admin().groups().await.unwrap();
        let left = |group: &event_client::transport::GroupStatus| {
            group.waiting + group.in_flight + group.retrying + group.dead
        };
        groups.len() == 2 && groups.iter().all(|group| left(group) == 0)
    })
    .await;
}
