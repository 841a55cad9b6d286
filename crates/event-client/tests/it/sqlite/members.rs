//! Tests several processes and members of one group: shares, keys, takeover.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_publisher_was_told_is_there() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    let subscription = bus.subscribe(group("work", 100)).await.unwrap();
    let (mut publisher, lines) = child("publish", &path);
    let confirmed = lines.take(2000).last().unwrap().parse::<u64>().unwrap();
    publisher.kill().unwrap();
    publisher.wait().unwrap();
    for n in 0..=confirmed {
        let delivery = next(&subscription).await;
        assert_eq!(text(&delivery), n.to_string());
        drop(delivery.ack());
    }
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_a_group_and_wake_each_other() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    let (mut consumer, mut lines) = child("consume", &path);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    let subscription = bus.subscribe(group("work", 1)).await.unwrap();
    // This process holds one message; all others must reach the other process.
    bus.publish(message("orders.placed.v1", 0)).await.unwrap();
    let mut there = HashSet::new();
    let mut held = None;
    let mut n = 1;
    while held.is_none() || there.len() < 50 {
        held = held.or_else(|| subscription.try_next());
        bus.publish(message("orders.placed.v1", n)).await.unwrap();
        n += 1;
        if held.is_none() {
            continue;
        }
        let line = lines.next().unwrap();
        let (text, attempt) = line.split_once(' ').unwrap();
        assert_eq!(attempt, "1");
        assert!(there.insert(text.to_owned()), "{text} came twice");
    }
    assert!(!there.contains(&text(held.as_ref().unwrap())));
    consumer.kill().unwrap();
    consumer.wait().unwrap();
    drop((held, subscription));
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_key_keeps_its_order_and_holds_up_no_other() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    let mut spec = group("work", 8);
    spec.keyed = true;
    let subscription = bus.subscribe(spec).await.unwrap();
    let keys = ["a", "b", "c", "d"];
    let confirms: Vec<_> = (0..2000).map(|n| bus.publish(keyed_message(keys[n % 4], n / 4))).collect();
    for confirm in confirms {
        confirm.await.unwrap();
    }
    let mut seen: HashMap<String, Vec<u32>> = HashMap::new();
    let mut out = HashSet::new();
    let mut failures = 0;
    while seen.values().map(Vec::len).sum::<usize>() < 2000 {
        let delivery = next(&subscription).await;
        let key = delivery.message().key.clone().unwrap().to_string();
        assert!(out.insert(key.clone()), "two of {key} at a time");
        let n: u32 = text(&delivery).parse().unwrap();
        if key == "a" && n % 50 == 7 && delivery.info().attempt < 4 {
            failures += 1;
            out.remove(&key);
            delivery.retry(Duration::from_millis(20), "a fails").await.unwrap();
            continue;
        }
        seen.entry(key.clone()).or_default().push(n);
        out.remove(&key);
        drop(delivery.ack());
    }
    assert_eq!(failures, 30);
    for key in keys {
        assert_eq!(seen[key], (0..500).collect::<Vec<_>>(), "{key}");
    }
    until(&bus, "work", |status| (status.waiting, status.in_flight) == (0, 0)).await;
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_keyed_member_is_followed_in_order() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    let (mut worker, mut lines) = child("keyed", &path);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    for n in 0..3000 {
        drop(bus.publish(keyed_message(["a", "b", "c"][n % 3], n)));
    }
    let mut highest: HashMap<String, i64> = HashMap::new();
    for line in lines.by_ref().take(500) {
        let (key, n) = line.split_once(' ').unwrap();
        highest.insert(key.to_owned(), n.parse().unwrap());
    }
    let mut spec = group("work", 16);
    spec.keyed = true;
    let subscription = bus.subscribe(spec.clone()).await.unwrap();
    spec.keyed = false;
    assert_eq!(bus.subscribe(spec).await.unwrap_err().kind(), ErrorKind::Config);
    worker.kill().unwrap();
    worker.wait().unwrap();
    for line in lines {
        let Some((key, n)) = line.split_once(' ') else { continue };
        highest.insert(key.to_owned(), n.parse().unwrap());
    }
    let mut last: HashMap<String, i64> = HashMap::new();
    while !(0..3).all(|key| last.get(["a", "b", "c"][key]) == Some(&(2997 + key as i64))) {
        let delivery = next(&subscription).await;
        let (key, n) =
            (delivery.message().key.clone().unwrap().to_string(), text(&delivery).parse::<i64>().unwrap());
        match last.get(&key) {
            None => assert!(n <= highest[&key] + 3, "{key} continues at {n} after {}", highest[&key]),
            Some(last) => assert_eq!(n, last + 3, "{key}"),
        }
        last.insert(key, n);
        drop(delivery.ack());
    }
    bus.close().await.unwrap();
}
