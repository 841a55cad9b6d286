//! Tests a keyed group with a long backlog of few keys: it is not copied, and other keys are delivered beside it.

use sqlx::{ConnectOptions, Connection};

use super::*;

const HOT: u32 = 6000;
/// The members of these tests keep at most this number of messages in memory.
const ROOM: i64 = 256;

fn keyed(name: &str) -> Subscribe {
    let mut spec = group(name, 8);
    spec.keyed = true;
    spec.start = Start::Earliest;
    spec
}

/// Publishes a backlog of the key `hot`, and `others` messages of other keys behind it.
async fn backlog(bus: &Bus, others: u32) {
    let hot = (0..HOT).map(|n| keyed_message("hot", n));
    let others = (0..others).map(|n| keyed_message(&format!("other-{n}"), n));
    let confirms: Vec<_> = hot.chain(others).map(|message| bus.publish(message)).collect();
    for confirm in confirms {
        confirm.await.unwrap();
    }
}

/// The number of rows in `redelivery`, read without the bus.
async fn copies(path: &Path) -> i64 {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = options.connect().await.unwrap();
    let rows =
        sqlx::query_scalar("SELECT count(*) FROM redelivery").fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    rows
}

fn key(delivery: &Delivery) -> String {
    delivery.message().key.clone().unwrap().to_string()
}

/// Settles the messages of the key `hot` from `first` on, in order, and checks the number of copies meanwhile.
async fn drain(path: &Path, subscription: &Subscription, first: u32, most: i64) {
    for n in first..HOT {
        let delivery = next(subscription).await;
        assert_eq!((key(&delivery).as_str(), text(&delivery)), ("hot", n.to_string()));
        assert_eq!(delivery.info().attempt, 1);
        drop(delivery.ack());
        if n % 500 == 0 {
            let copies = copies(path).await;
            assert!(copies <= most, "{copies} copies after {n}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_key_with_a_long_backlog_is_not_copied_and_other_keys_flow() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    backlog(&bus, 20).await;
    let subscription = bus.subscribe(keyed("work")).await.unwrap();
    let stuck = next(&subscription).await;
    assert_eq!((key(&stuck).as_str(), text(&stuck).as_str()), ("hot", "0"));
    for n in 0..20 {
        let other = next(&subscription).await;
        assert_eq!(key(&other), format!("other-{n}"));
        other.ack().await.unwrap();
    }
    assert_eq!(copies(&path).await, 0, "only positions are stored");
    let now = until(&bus, "work", |status| status.in_flight <= 1 + ROOM as u64).await;
    assert_eq!((now.waiting + now.in_flight, now.members), (u64::from(HOT), 1));
    // Messages that are published now wait behind the others of their key.
    bus.publish(keyed_message("hot", "last")).await.unwrap();
    stuck.ack().await.unwrap();
    drain(&path, &subscription, 1, 0).await;
    let last = next(&subscription).await;
    assert_eq!(text(&last), "last");
    last.ack().await.unwrap();
    until(&bus, "work", |status| (status.waiting, status.in_flight) == (0, 0)).await;
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_slow_and_long_is_not_copied() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    backlog(&bus, 0).await;
    let subscription = bus.subscribe(keyed("work")).await.unwrap();
    for n in 0..300 {
        let delivery = next(&subscription).await;
        assert_eq!(text(&delivery), n.to_string());
        tokio::time::sleep(Duration::from_millis(5)).await;
        drop(delivery.ack());
    }
    drain(&path, &subscription, 300, 0).await;
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_key_copies_no_more_than_was_in_memory() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    backlog(&bus, 5).await;
    let subscription = bus.subscribe(keyed("work")).await.unwrap();
    let failing = next(&subscription).await;
    failing.retry(Duration::from_secs(2), "not yet").await.unwrap();
    for _ in 0..5 {
        let other = next(&subscription).await;
        assert_ne!(key(&other), "hot");
        other.ack().await.unwrap();
    }
    let copied = copies(&path).await;
    assert!((1..=ROOM + 1).contains(&copied), "{copied}");
    let again = next(&subscription).await;
    assert_eq!((text(&again).as_str(), again.info().attempt), ("0", 2));
    again.ack().await.unwrap();
    drain(&path, &subscription, 1, ROOM).await;
    until(&bus, "work", |status| (status.waiting, status.in_flight) == (0, 0)).await;
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_outlives_its_member_in_order() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    backlog(&bus, 1).await;
    let subscription = bus.subscribe(keyed("work")).await.unwrap();
    let stuck = next(&subscription).await;
    let other = next(&subscription).await;
    assert_eq!(key(&other), "other-0", "the backlog was passed");
    other.ack().await.unwrap();
    drop(stuck);
    bus.close().await.unwrap();

    let bus = open(&path).await;
    let copied = copies(&path).await;
    assert!(copied <= ROOM + 1, "{copied}");
    let subscription = bus.subscribe(keyed("work")).await.unwrap();
    drain(&path, &subscription, 0, ROOM + 1).await;
    until(&bus, "work", |status| (status.waiting, status.in_flight) == (0, 0)).await;
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_not_keyed_any_more_receives_the_backlog() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    backlog(&bus, 1).await;
    let subscription = bus.subscribe(keyed("work")).await.unwrap();
    let stuck = next(&subscription).await;
    next(&subscription).await.ack().await.unwrap();
    drop((stuck, subscription));
    bus.close().await.unwrap();

    let bus = open(&path).await;
    let mut spec = keyed("work");
    spec.keyed = false;
    spec.max_in_flight = 100;
    let subscription = bus.subscribe(spec).await.unwrap();
    let mut seen = HashSet::new();
    while seen.len() < HOT as usize {
        let delivery = next(&subscription).await;
        assert_eq!(delivery.info().attempt, 1, "no postponed message was delivered before");
        assert!(seen.insert(text(&delivery)));
        drop(delivery.ack());
    }
    until(&bus, "work", |status| (status.waiting, status.in_flight) == (0, 0)).await;
    bus.close().await.unwrap();
}

/// A build that does not know postponed messages takes their member for one whose process has ended.
#[tokio::test(flavor = "multi_thread")]
async fn positions_that_are_returned_to_the_group_are_delivered_in_order() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    let mut hot = (0..700).map(|n| keyed_message("hot", n));
    for message in hot.by_ref().take(600).chain([keyed_message("other", "")]) {
        bus.publish(message).await.unwrap();
    }
    let subscription = bus.subscribe(keyed("work")).await.unwrap();
    let stuck = next(&subscription).await;
    next(&subscription).await.ack().await.unwrap();
    let mut other = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let returned = "DELETE FROM lease WHERE at = 0 RETURNING pending";
    assert!(!sqlx::query(returned).fetch_all(&mut other).await.unwrap().is_empty());
    sqlx::raw_sql("DELETE FROM member WHERE process = '(postponed)'").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    // Further messages of the key are postponed in a new row.
    for message in hot {
        bus.publish(message).await.unwrap();
    }
    stuck.ack().await.unwrap();
    let mut last = 0;
    while last < 699 {
        let delivery = next(&subscription).await;
        let n: i32 = text(&delivery).parse().unwrap();
        assert!(n > last, "{n} after {last}");
        last = n;
        drop(delivery.ack());
    }
    bus.close().await.unwrap();
}
