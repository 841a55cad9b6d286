//! Tests running relays: woken by a signal, alone and with other relays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use event_client::confirm::Confirm;
use event_client::{Error, ErrorKind};

use super::*;

#[tokio::test]
async fn what_is_committed_is_published_and_what_is_rolled_back_is_not() {
    let (_, pool) = database("relay_commit").await;
    let bus = memory("pg-commit").await;
    let subscription = listen(&bus).await;
    let relay = Working::start(sleeper(&pool, &bus));
    until(&pool, ARMED, 1).await;
    let mut tx = pool.begin().await.unwrap();
    query("INSERT INTO effects VALUES (1)").execute(&mut *tx).await.unwrap();
    outbox::stage(&mut tx, placed(1)).await.unwrap();
    tx.rollback().await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    let id = outbox::stage(&mut tx, placed(2)).header("tenant", "acmé").entity("order/2").await.unwrap();
    tx.commit().await.unwrap();
    let message = next(&subscription).await;
    assert_eq!((message.id.clone(), message.key.as_deref()), (id, Some("2")));
    assert_eq!(message.headers.iter().collect::<Vec<_>>(), [("tenant", "acmé")]);
    let envelope = Envelope::read(&message).unwrap();
    assert_eq!(envelope.decode::<OrderPlaced>().unwrap(), placed(2));
    assert_eq!(
        (envelope.meta.source.as_str(), envelope.meta.subject.as_deref()),
        ("/billing", Some("order/2"))
    );
    until(&pool, WAITING, 0).await;
    relay.stop().await;
    assert!(subscription.try_next().is_none(), "the rolled back event never appears");
    assert_eq!(count(&pool, EFFECTS).await, 0);
    assert_eq!(count(&pool, ARMED).await, 0, "a relay that has stopped waits for no wake-up");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_relays_keep_the_order_of_each_key_and_publish_once() {
    for relays in [2, 4] {
        let (_, pool) = database(&format!("relay_several_{relays}")).await;
        let bus = memory(&format!("pg-several-{relays}")).await;
        let subscription = listen(&bus).await;
        let relay = || outbox::Relay::new(pool.clone(), bus.clone()).batch(16).dedup(false);
        let relays: Vec<_> = (0..relays).map(|_| Working::start(relay())).collect();
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    for n in 0..100 {
                        stage_all(&pool, [OrderPlaced { order_id: writer, cents: n }]).await;
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let mut seen = vec![Vec::new(); 4];
        for _ in 0..400 {
            let order = next_order(&subscription).await;
            seen[order.order_id as usize].push(order.cents);
        }
        assert!(seen.iter().all(|of_key| *of_key == (0..100).collect::<Vec<_>>()), "{seen:?}");
        until(&pool, WAITING, 0).await;
        for relay in relays {
            relay.stop().await;
        }
        assert!(subscription.try_next().is_none(), "one relay works at a time");
        assert_eq!(count(&pool, "SELECT count(*) FROM outbox_relay").await, 0, "the claim was given back");
    }
}

#[tokio::test]
async fn a_bus_that_takes_longer_than_the_lease_is_not_served_twice() {
    let (_, pool) = database("relay_slow").await;
    let bus = memory("pg-slow").await;
    let subscription = listen(&bus).await;
    let (calls, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
    let slow = {
        let (calls, open) = (calls.clone(), open.clone());
        faulty(&bus, move |memory, message| {
            calls.fetch_add(1, Ordering::SeqCst);
            let (open, published) = (open.clone(), memory.publish(message));
            Confirm::boxed(async move {
                drop(open.acquire().await);
                published.await
            })
        })
    };
    stage_all(&pool, [placed(1)]).await;
    let lease = Duration::from_secs(2);
    let relay = || outbox::Relay::new(pool.clone(), slow.clone()).lease(lease).poll(lease / 40).dedup(false);
    let relays: Vec<_> = (0..2).map(|_| Working::start(relay())).collect();
    next_order(&subscription).await;
    // The claim has been renewed for several leases while the other relay tries to take it.
    let held = "SELECT until FROM outbox_relay";
    let began = count(&pool, held).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while count(&pool, held).await < began + 2 * lease.as_millis() as i64 {
        assert!(tokio::time::Instant::now() < deadline, "the claim is not renewed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    open.add_permits(1);
    until(&pool, WAITING, 0).await;
    for relay in relays {
        relay.stop().await;
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_bus_that_is_down_is_waited_for_and_turns_no_key_round() {
    let (_, pool) = database("relay_outage").await;
    let bus = memory("pg-outage").await;
    let subscription = listen(&bus).await;
    let (down, tries) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let outage = {
        let (down, tries) = (down.clone(), tries.clone());
        faulty(&bus, move |memory, message| {
            let calls = tries.fetch_add(1, Ordering::SeqCst);
            // The bus is down at first, then fails one publish in seven.
            if down.load(Ordering::SeqCst) || calls % 7 == 3 {
                return Confirm::ready(Err(Error::new(ErrorKind::Unavailable, "the bus is down")));
            }
            memory.publish(message)
        })
    };
    stage_all(&pool, (0..60).map(|n| OrderPlaced { order_id: n % 3, cents: n as i64 })).await;
    let relay = Working::start(outbox::Relay::new(pool.clone(), outage).batch(30));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while tries.load(Ordering::SeqCst) < 3 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(count(&pool, WAITING).await, 60, "nothing is lost");
    down.store(false, Ordering::SeqCst);
    let mut seen = vec![Vec::new(); 3];
    for _ in 0..60 {
        let order = next_order(&subscription).await;
        seen[order.order_id as usize].push(order.cents);
    }
    assert!(seen.iter().all(|of_key| of_key.is_sorted() && of_key.len() == 20), "{seen:?}");
    until(&pool, WAITING, 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn published_rows_are_pruned_while_the_relay_is_busy_and_waiting_rows_never() {
    let (_, pool) = database("relay_prune").await;
    let bus = memory("pg-prune").await;
    let subscription = listen(&bus).await;
    let relay =
        outbox::Relay::new(pool.clone(), bus).keep(Duration::from_millis(20)).poll(Duration::from_millis(5));
    let relay = Working::start(relay.batch(10));
    stage_all(&pool, (0..3000).map(placed)).await;
    for _ in 0..3000 {
        next_order(&subscription).await;
    }
    until(&pool, "SELECT count(*) FROM outbox", 0).await;
    relay.stop().await;
    stage_all(&pool, [placed(1)]).await;
    assert_eq!(count(&pool, WAITING).await, 1);
}

#[tokio::test]
async fn what_cannot_be_published_is_set_aside_and_can_be_retried_or_dropped() {
    let (_, pool) = database("relay_aside").await;
    let bus = Bus::connect("memory:outbox-pg-large?max_payload=600").await.unwrap();
    let subscription = listen(&bus).await;
    let mut tx = pool.begin().await.unwrap();
    let large = "x".repeat(1000);
    let first = outbox::stage(&mut tx, placed(1)).header("note", &large).await.unwrap();
    let second = outbox::stage(&mut tx, placed(1)).header("note", &large).await.unwrap();
    outbox::stage(&mut tx, placed(1)).await.unwrap();
    outbox::commit(tx).await.unwrap();
    let relay = Working::start(outbox::Relay::new(pool.clone(), bus.clone()).poll(Duration::from_millis(20)));
    assert!(next(&subscription).await.headers.is_empty());
    until(&pool, WAITING, 0).await;
    let aside = outbox::set_aside(&pool, 10).await.unwrap();
    assert_eq!(
        aside.iter().map(|one| &one.row.id).collect::<Vec<_>>(),
        [&first.to_string(), &second.to_string()]
    );
    assert!(aside[0].error.contains("600"), "{}", aside[0].error);
    assert_eq!(outbox::discard(&pool, Some(&[first.to_string(), "unknown".into()])).await.unwrap(), 1);
    relay.stop().await;

    // Another bus accepts the event.
    let wide = Bus::connect("memory:outbox-pg-wide").await.unwrap();
    let subscription = listen(&wide).await;
    assert_eq!(outbox::retry(&pool, None).await.unwrap(), 1);
    let counts = outbox::counts(&pool).await.unwrap();
    assert_eq!((counts.waiting, counts.set_aside, counts.oldest.is_some()), (1, 0, true));
    let relay = Working::start(outbox::Relay::new(pool.clone(), wide));
    assert_eq!(next(&subscription).await.id, second);
    until(&pool, WAITING, 0).await;
    relay.stop().await;
}
