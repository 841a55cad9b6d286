//! Cases for order per key: at most one unsettled message of a key at a time, retries included, while other
//! keys proceed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_client::ErrorKind;

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{SHORT, With, group, key, keyed, message, permanent, text, vanish};

cases! {
    one_message_of_a_key_at_a_time;
    a_key_stays_in_order_with_many_consumers;
    a_retry_keeps_its_place;
    a_failing_key_stalls_no_other;
    a_rejected_message_lets_the_next_of_its_key_go;
    a_release_keeps_its_place;
    a_deferred_message_keeps_its_place_and_stalls_no_other_key;
    a_deferred_message_goes_to_the_next_owner_of_its_keys;
    order_survives_a_takeover;
    keys_of_two_handles_stay_in_order;
    messages_without_a_key_are_free;
    a_group_is_keyed_or_not;
}

/// A keyed subscription delivers one unsettled message of a key at a time.
async fn one_message_of_a_key_at_a_time(exam: Exam) {
    let subscription = exam.subscribe(group("g", 8).keyed()).await;
    for text in ["a1", "a2", "b1", "a3", "b2"] {
        exam.publish(keyed(&text[..1], text)).await;
    }
    let first = exam.next(&subscription).await;
    let second = exam.next_of(&subscription, "the head of the other key").await;
    let heads: HashSet<_> = [text(&first), text(&second)].into();
    assert_eq!(heads, HashSet::from(["a1".into(), "b1".into()]));
    exam.ack(first).await;
    let third = exam.next_of(&subscription, "the message after the settled one").await;
    assert!(["a2", "b2"].contains(&text(&third).as_str()), "{}", text(&third));
    assert!(subscription.try_next().is_none(), "more than one unsettled message of a key");
}

/// The messages of a key are handled in the order of publication, with many keys, consumers and retries.
async fn a_key_stays_in_order_with_many_consumers(exam: Exam) {
    let subscription = exam.subscribe(group("g", 16).keyed()).await;
    let seen: Arc<Mutex<HashMap<String, Vec<usize>>>> = Arc::default();
    let at_work: Arc<Mutex<HashSet<String>>> = Arc::default();
    let consumers: Vec<_> = (0..8)
        .map(|seed| {
            let (subscription, seen, at_work) = (subscription.clone(), seen.clone(), at_work.clone());
            let mut random = fastrand::Rng::with_seed(seed);
            tokio::spawn(async move {
                while let Some(delivery) = subscription.next().await {
                    let key = key(&delivery);
                    assert!(
                        at_work.lock().expect("not poisoned").insert(key.clone()),
                        "{key} is at work twice"
                    );
                    tokio::task::yield_now().await;
                    let fails = random.u8(..5) == 0;
                    if !fails {
                        let n = text(&delivery).parse().expect("a number");
                        seen.lock().expect("not poisoned").entry(key.clone()).or_default().push(n);
                    }
                    // Remove the key before settling, because the next message of this key may be delivered
                    // right after the settlement.
                    at_work.lock().expect("not poisoned").remove(&key);
                    if fails {
                        let pause = Duration::from_millis(random.u64(0..4));
                        delivery.retry(pause, "again").await.expect("settled");
                    } else {
                        delivery.ack().await.expect("settled");
                    }
                }
            })
        })
        .collect();
    for n in 0..30 {
        for key in 0..10 {
            exam.publish(keyed(&format!("k{key}"), n.to_string())).await;
        }
    }
    exam.settled("g").await;
    subscription.stop();
    for consumer in consumers {
        consumer.await.expect("a consumer panicked");
    }
    let seen = seen.lock().expect("not poisoned");
    assert_eq!(seen.len(), 10);
    for (key, numbers) in seen.iter() {
        assert_eq!(*numbers, (0..30).collect::<Vec<_>>(), "{key}");
    }
}

/// A retried message is delivered before the next message of its key.
async fn a_retry_keeps_its_place(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4).keyed()).await;
    for n in 0..3 {
        exam.publish(keyed("k", n.to_string())).await;
    }
    for attempt in 1..=3 {
        let delivery = exam.next(&subscription).await;
        assert_eq!((text(&delivery), delivery.info().attempt), ("0".into(), attempt));
        exam.ok("retry", delivery.retry(Duration::from_millis(20), "again")).await;
    }
    for (n, attempt) in [(0, 4), (1, 1), (2, 1)] {
        let delivery = exam.next(&subscription).await;
        assert_eq!((text(&delivery), delivery.info().attempt), (n.to_string(), attempt));
        exam.ack(delivery).await;
    }
}

/// While a key waits for its retry, however long, other keys proceed.
async fn a_failing_key_stalls_no_other(exam: Exam) {
    let subscription = exam.subscribe(group("g", 2).keyed()).await;
    for n in 0..50 {
        exam.publish(keyed("bad", n.to_string())).await;
    }
    let failing = exam.next(&subscription).await;
    exam.ok("retry", failing.retry(Duration::from_secs(3600), "down")).await;
    for n in 0..50 {
        exam.publish(keyed(&format!("good{}", n % 5), n.to_string())).await;
    }
    for _ in 0..50 {
        let delivery = exam.next_of(&subscription, "a message of a healthy key").await;
        assert_ne!(key(&delivery), "bad");
        exam.ack(delivery).await;
    }
    let status = exam.status("g").await;
    assert_eq!((status.waiting, status.in_flight, status.retrying), (50, 0, 1));
}

/// A dead letter no longer blocks its key.
async fn a_rejected_message_lets_the_next_of_its_key_go(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4).keyed()).await;
    exam.publish(keyed("k", "bad")).await;
    exam.publish(keyed("k", "good")).await;
    exam.ok("reject", exam.next(&subscription).await.reject(permanent("no"))).await;
    assert_eq!(text(&exam.next(&subscription).await), "good");
}

/// A released message is delivered before the next message of its key.
async fn a_release_keeps_its_place(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4).keyed()).await;
    exam.publish(keyed("k", "0")).await;
    exam.publish(keyed("k", "1")).await;
    for _ in 0..3 {
        let delivery = exam.next(&subscription).await;
        assert_eq!((text(&delivery), delivery.info().attempt), ("0".into(), 1));
        drop(delivery);
    }
}

/// A deferred message is delivered before the next message of its key, without counting an attempt, while
/// other keys proceed.
async fn a_deferred_message_keeps_its_place_and_stalls_no_other_key(exam: Exam) {
    let subscription = exam.subscribe(group("g", 2).keyed()).await;
    for n in 0..20 {
        exam.publish(keyed("newer", n.to_string())).await;
    }
    exam.ok("defer", exam.next(&subscription).await.defer(Duration::from_secs(2))).await;
    for n in 0..20 {
        exam.publish(keyed(&format!("known{}", n % 5), n.to_string())).await;
    }
    for _ in 0..20 {
        let delivery = exam.next_of(&subscription, "a message of another key").await;
        assert_ne!(key(&delivery), "newer");
        exam.ack(delivery).await;
    }
    let again = exam.next_of(&subscription, "the deferred message").await;
    assert_eq!((text(&again), again.info().attempt), ("0".into(), 1));
    exam.ok("defer", again.defer(Duration::from_millis(50))).await;
    for n in 0..20 {
        let delivery = exam.next_of(&subscription, "the messages of the key that waited").await;
        assert_eq!((text(&delivery), delivery.info().attempt), (n.to_string(), 1));
        exam.ack(delivery).await;
    }
    exam.settled("g").await;
}

/// When a member leaves after it has deferred a message, the next member receives that message first of its
/// key, and the deferral counts no attempt.
async fn a_deferred_message_goes_to_the_next_owner_of_its_keys(exam: Exam) {
    let other = exam.another().await;
    let old = exam.ok("the old member", other.subscribe(group("g", 4).keyed())).await;
    for n in 0..3 {
        exam.publish(keyed("k", n.to_string())).await;
    }
    let delivery = exam.next(&old).await;
    assert_eq!(text(&delivery), "0");
    let new = exam.subscribe(group("g", 4).keyed()).await;
    exam.ok("defer", delivery.defer(Duration::from_millis(300))).await;
    old.stop();
    drop(old);
    for n in 0..3 {
        let delivery = exam.next_of(&new, &format!("message {n} at the next owner")).await;
        assert_eq!((text(&delivery), delivery.info().attempt), (n.to_string(), 1));
        exam.ack(delivery).await;
    }
    exam.settled("g").await;
}

/// When a consumer dies, its message is delivered before the next message of its key, whichever member
/// receives it.
async fn order_survives_a_takeover(exam: Exam) {
    let other = exam.another().await;
    let dying = exam.ok("the first member", other.subscribe(group("g", 1).keyed().lease(SHORT))).await;
    for n in 0..3 {
        exam.publish(keyed("k", n.to_string())).await;
    }
    let taken = exam.next(&dying).await;
    assert_eq!(text(&taken), "0");
    let heir = exam.subscribe(group("g", 4).keyed().lease(SHORT)).await;
    vanish(dying, vec![taken]);
    for (n, attempt) in [(0, 2), (1, 1), (2, 1)] {
        let delivery = exam.next_of(&heir, &format!("message {n} after the takeover")).await;
        assert_eq!((text(&delivery), delivery.info().attempt), (n.to_string(), attempt));
        exam.ack(delivery).await;
    }
}

/// Members of a keyed group on several handles keep the order of keys together.
async fn keys_of_two_handles_stay_in_order(exam: Exam) {
    let other = exam.another().await;
    let one = exam.subscribe(group("g", 4).keyed()).await;
    let two = exam.ok("the second member", other.subscribe(group("g", 4).keyed())).await;
    let seen: Arc<Mutex<HashMap<String, Vec<usize>>>> = Arc::default();
    for subscription in [one.clone(), two.clone()] {
        let seen = seen.clone();
        tokio::spawn(async move {
            while let Some(delivery) = subscription.next().await {
                let n = text(&delivery).parse().expect("a number");
                seen.lock().expect("not poisoned").entry(key(&delivery)).or_default().push(n);
                if delivery.ack().await.is_err() {
                    return;
                }
            }
        });
    }
    for n in 0..20 {
        for key in ["a", "b", "c"] {
            exam.publish(keyed(key, n.to_string())).await;
        }
    }
    exam.settled("g").await;
    for (key, numbers) in seen.lock().expect("not poisoned").iter() {
        assert_eq!(*numbers, (0..20).collect::<Vec<_>>(), "{key}");
    }
}

/// Messages without a key do not wait for other messages.
async fn messages_without_a_key_are_free(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4).keyed()).await;
    for n in 0..4 {
        exam.publish(message(n.to_string())).await;
    }
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(exam.next_of(&subscription, "a message without a key").await);
    }
    assert_eq!(held.iter().map(text).collect::<HashSet<_>>().len(), 4);
}

/// All live members of a group must agree on whether the group is keyed.
async fn a_group_is_keyed_or_not(exam: Exam) {
    let _member = exam.subscribe(group("g", 1).keyed()).await;
    let other = exam.another().await;
    exam.refused(ErrorKind::Config, "a member that disagrees", other.subscribe(group("g", 1))).await;
}
