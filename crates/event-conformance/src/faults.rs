//! Cases with servers that are killed, paused and restarted, and with failing networks: confirmed messages
//! are kept, and everything recovers automatically.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::time::Duration;

use event_client::message::Message;
use event_client::subscription::{Health, Subscription};
use event_client::{Error, ErrorKind};

use crate::case::cases;
use crate::exam::{Exam, open};
use crate::message::{SHORT, With, broadcast, group, key, keyed, message, text};

cases! {
    nothing_confirmed_is_lost_when_the_server_is_killed.own_server().within(300);
    a_publish_without_a_server_is_answered.own_server().within(120);
    a_new_handle_without_a_server_is_refused.own_server().within(120);
    closing_without_a_server_ends.own_server().within(120);
    a_subscription_resumes_after_a_kill.own_server().within(120);
    a_subscription_resumes_after_a_restart.own_server().within(120);
    a_subscription_resumes_after_a_pause.own_server().within(120);
    a_subscription_resumes_after_a_cut.own_server().within(120);
    a_subscription_resumes_after_a_half_open_connection.own_server().within(180);
    a_broadcast_resumes_after_a_kill.own_server().within(120);
    what_was_in_hand_at_a_kill_is_not_lost.own_server().within(120);
    retries_that_wait_at_a_kill_are_delivered.own_server().within(150);
    a_retry_that_is_being_stored_at_a_cut_does_not_stop_its_group.own_server().within(120);
    the_order_of_keys_survives_kills_and_cuts.own_server().within(240);
}

/// A pause that is long enough for calls to be waiting, and too short for a lease that a case depends on to
/// end.
const PAUSE: Duration = Duration::from_secs(3);

/// Returns whether an error means that a later try may succeed.
pub(crate) fn passes(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
}

/// Publishes until the message is confirmed; returns the number of failed tries.
async fn insist(exam: &Exam, message: Message) -> usize {
    for failures in 0.. {
        exam.waits_for(format!("a confirmation after {failures} failures"));
        match exam.bus().publish(message.clone()).await {
            Ok(_) => return failures,
            Err(error) => assert!(passes(&error), "a publish during a fault: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!("it counts without end")
}

/// Repeats a call until it succeeds: just after a fault, a call may fail that succeeds later.
async fn again<T, F: Future<Output = Result<T, Error>>>(exam: &Exam, what: &str, call: impl Fn() -> F) -> T {
    loop {
        match call().await {
            Ok(value) => return value,
            Err(error) => {
                assert!(passes(&error), "{what} after a fault: {error:?}");
                exam.waits_for(format!("{what}, after {error}"));
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the group has settled everything; tolerates calls that fail in the aftermath of a fault.
async fn settled(exam: &Exam, name: &str) {
    loop {
        let all = again(exam, "the groups", || exam.admin().groups()).await;
        let status = all.iter().find(|status| status.group.as_str() == name).expect("the group still exists");
        if status.waiting == 0 && status.in_flight == 0 {
            break;
        }
        exam.waits_for(format!("the group to have settled everything; now {status:?}"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Acknowledges and returns whether the ack succeeded; a lease that was lost meanwhile does not fail the
/// case.
async fn settle(delivery: event_client::delivery::Delivery) -> bool {
    match delivery.ack().await {
        Ok(()) => true,
        Err(error) if passes(&error) || error.kind() == ErrorKind::LeaseLost => false,
        Err(error) => panic!("an ack after a fault: {error:?}"),
    }
}

/// Publishes a message and waits until the subscription delivers it; acknowledges the deliveries before it.
async fn flows(exam: &Exam, subscription: &Subscription, mark: &str) {
    insist(exam, message(mark)).await;
    loop {
        let delivery = exam.next_of(subscription, &format!("{mark:?} to come through")).await;
        let found = text(&delivery) == mark;
        settle(delivery).await;
        if found {
            break;
        }
    }
    let mut health = subscription.health();
    exam.waits_for(format!(
        "health to be live after {mark:?}; it is {:?}",
        subscription.health().borrow().clone()
    ));
    health.wait_for(|health| *health == Health::Live).await.expect("the subscription has not ended");
}

/// Opens a subscription and waits until it has delivered a first message.
async fn flowing(exam: &Exam) -> Subscription {
    let subscription = exam.subscribe(group("g", 8).lease(SHORT)).await;
    flows(exam, &subscription, "before").await;
    subscription
}

/// The server is killed while a window of publishes is open: each publish is answered, and the confirmed
/// messages are stored.
async fn nothing_confirmed_is_lost_when_the_server_is_killed(exam: Exam) {
    const MESSAGES: usize = 3000;
    const WINDOW: usize = 64;
    drop(exam.subscribe(group("g", 1)).await);
    let (mut window, mut confirmed) = (VecDeque::new(), HashSet::new());
    let (mut failed, mut kills) = (0, 0);
    let mut next = 0;
    while next < MESSAGES || !window.is_empty() {
        if next < MESSAGES && window.len() < WINDOW {
            window.push_back((next, exam.bus().publish(message(next.to_string()))));
            next += 1;
            // Kill the server twice in the middle of the work, with a full window.
            if next == MESSAGES / 3 || next == MESSAGES * 2 / 3 {
                kills += 1;
                exam.ok("a kill", exam.server().kill()).await;
                exam.ok("the server to start", exam.server().start()).await;
            }
            continue;
        }
        let (n, confirm) = window.pop_front().expect("it is not empty");
        exam.waits_for(format!("the answer to publish {n}, after {kills} kills"));
        match confirm.await {
            Ok(_) => drop(confirmed.insert(n)),
            Err(error) => {
                assert!(passes(&error), "publish {n}: {error:?}");
                failed += 1;
            }
        }
    }
    assert!(confirmed.len() > MESSAGES / 4, "only {} of {MESSAGES} were confirmed", confirmed.len());
    let subscribe = || exam.bus().subscribe(group("g", 64).lease(SHORT));
    let subscription = again(&exam, "the subscription", subscribe).await;
    let mut missing = confirmed.clone();
    while !missing.is_empty() {
        let what = format!("{} of {} confirmed ({failed} failed)", missing.len(), confirmed.len());
        let delivery = exam.next_of(&subscription, &what).await;
        missing.remove(&text(&delivery).parse().expect("a number"));
        settle(delivery).await;
    }
}

/// Every call has a deadline: a publish fails while no server is running, and succeeds when one is running
/// again.
async fn a_publish_without_a_server_is_answered(exam: Exam) {
    exam.publish(message("before")).await;
    exam.ok("a kill", exam.server().kill()).await;
    exam.waits_for("the answer to a publish without a server");
    let error = exam.bus().publish(message("lost")).await.expect_err("there is no server");
    assert!(passes(&error), "{error:?}");
    exam.ok("the server to start", exam.server().start()).await;
    insist(&exam, message("after")).await;
}

/// Opening a handle fails in bounded time when no server is running.
async fn a_new_handle_without_a_server_is_refused(exam: Exam) {
    exam.ok("a kill", exam.server().kill()).await;
    exam.waits_for("an answer to a handle without a server");
    let error = open(exam.url()).await.expect_err("there is no server");
    assert!(passes(&error), "{error:?}");
    exam.ok("the server to start", exam.server().start()).await;
    exam.another().await;
}

/// A handle closes whether or not the server is running.
async fn closing_without_a_server_ends(exam: Exam) {
    let other = exam.another().await;
    let subscription = exam.ok("a subscription", other.subscribe(group("g", 4))).await;
    exam.publish(message("in hand")).await;
    let _in_hand = exam.next(&subscription).await;
    exam.ok("a kill", exam.server().kill()).await;
    exam.waits_for("the handle to close without a server");
    // `close` may succeed or fail here; it must end.
    let _ = other.close().await;
    exam.waits_for("the subscription to end");
    while subscription.next().await.is_some() {}
    exam.ok("the server to start", exam.server().start()).await;
}

async fn a_subscription_resumes_after_a_kill(exam: Exam) {
    let subscription = flowing(&exam).await;
    let mut health = subscription.health();
    exam.ok("a kill", exam.server().kill()).await;
    exam.waits_for("health to report that the subscription is being rebuilt");
    let seen = health
        .wait_for(|health| *health != Health::Live)
        .await
        .expect("the subscription has not ended")
        .clone();
    assert!(matches!(&seen, Health::Rebuilding(why) if !why.is_empty()), "{seen:?}");
    exam.ok("the server to start", exam.server().start()).await;
    flows(&exam, &subscription, "after").await;
    // The group is still one group: no other member received a delivery. A server that writes acks to disk a
    // moment after it confirms them, as NATS does, sends such a message again; that is no loss.
    let acking = tokio::spawn(async move {
        while let Some(delivery) = subscription.next().await {
            settle(delivery).await;
        }
    });
    settled(&exam, "g").await;
    acking.abort();
}

async fn a_subscription_resumes_after_a_restart(exam: Exam) {
    let subscription = flowing(&exam).await;
    exam.ok("a restart", exam.server().restart()).await;
    flows(&exam, &subscription, "after").await;
    exam.ok("another restart", exam.server().restart()).await;
    flows(&exam, &subscription, "after the second").await;
}

async fn a_subscription_resumes_after_a_pause(exam: Exam) {
    let subscription = flowing(&exam).await;
    exam.ok("a pause", async { exam.server().pause() }).await;
    tokio::time::sleep(PAUSE).await;
    exam.ok("the end of the pause", async { exam.server().resume() }).await;
    flows(&exam, &subscription, "after").await;
}

async fn a_subscription_resumes_after_a_cut(exam: Exam) {
    let subscription = flowing(&exam).await;
    for round in 0..5 {
        exam.server().cut();
        flows(&exam, &subscription, &format!("after cut {round}")).await;
    }
}

/// Neither end is notified that the connection is dead: only a watchdog detects it.
async fn a_subscription_resumes_after_a_half_open_connection(exam: Exam) {
    let subscription = flowing(&exam).await;
    let mut health = subscription.health();
    exam.server().swallow();
    exam.waits_for("the watchdog to notice that nothing comes");
    health.wait_for(|health| *health != Health::Live).await.expect("the subscription has not ended");
    exam.server().heal();
    flows(&exam, &subscription, "after").await;
}

/// Messages published during the outage may be missed: nothing is stored for a broadcast subscription.
async fn a_broadcast_resumes_after_a_kill(exam: Exam) {
    let subscription = exam.subscribe(broadcast()).await;
    exam.publish(message("before")).await;
    assert_eq!(text(&exam.next(&subscription).await), "before");
    exam.ok("a kill", exam.server().kill()).await;
    exam.ok("the server to start", exam.server().start()).await;
    for n in 0.. {
        insist(&exam, message(n.to_string())).await;
        exam.waits_for(format!("a broadcast after the kill, {n} published"));
        let next = tokio::time::timeout(Duration::from_millis(200), subscription.next());
        if next.await.is_ok_and(|delivery| {
            delivery.expect("the subscription has not ended").message().payload != "before"
        }) {
            break;
        }
    }
}

/// The server is killed while a handler holds a delivery: the message is settled, or is delivered again as
/// another attempt.
async fn what_was_in_hand_at_a_kill_is_not_lost(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4).lease(SHORT)).await;
    exam.publish(message("in hand")).await;
    let in_hand = exam.next(&subscription).await;
    exam.ok("a kill", exam.server().kill()).await;
    exam.ok("the server to start", exam.server().start()).await;
    exam.waits_for("the answer to an ack after the kill");
    if !settle(in_hand).await {
        let again = exam.next_of(&subscription, "the message in flight to be delivered again").await;
        assert_eq!(text(&again), "in hand");
        assert!(again.info().attempt > 1, "a second delivery is a second attempt");
        settle(again).await;
    }
    flows(&exam, &subscription, "after").await;
    settled(&exam, "g").await;
}

/// The server is killed while retries wait in the store, are due, or are on their way back to the group: each of them
/// is delivered, and soon.
async fn retries_that_wait_at_a_kill_are_delivered(exam: Exam) {
    const MESSAGES: usize = 64;
    let subscription = exam.subscribe(group("g", MESSAGES)).await;
    for round in 0..2 {
        let name = |n: usize| format!("{round}/{n}");
        let mut retries = Vec::new();
        for n in 0..MESSAGES {
            exam.publish(message(name(n))).await;
        }
        for n in 0..MESSAGES {
            let delivery = exam.next_of(&subscription, &format!("message {n} of round {round}")).await;
            let after = Duration::from_millis(20 + 5 * n as u64);
            retries.push(delivery.retry(after, "later"));
        }
        for retry in retries {
            exam.waits_for("a retry to be stored");
            retry.await.expect("the server is there");
        }
        exam.ok("a kill", exam.server().kill()).await;
        exam.ok("the server to start", exam.server().start()).await;
        let mut missing: HashSet<String> = (0..MESSAGES).map(name).collect();
        while !missing.is_empty() {
            let delivery = exam.next_of(&subscription, &format!("{} retries", missing.len())).await;
            // A kill may lose the server's record of the attempt, or of the acknowledgement of an original whose copy
            // waits.
            let text = text(&delivery);
            if settle(delivery).await {
                missing.remove(&text);
            }
        }
    }
}

/// The connection is cut while a transport stores the retry of a keyed message, for which it may hold a resource that
/// it needs again after the cut.
async fn a_retry_that_is_being_stored_at_a_cut_does_not_stop_its_group(exam: Exam) {
    let subscription = exam.subscribe(group("g", 4).keyed().lease(SHORT)).await;
    exam.publish(keyed("k", "tried again")).await;
    let delivery = exam.next(&subscription).await;
    exam.server().slow(Duration::from_millis(300));
    let retried = delivery.retry(Duration::from_millis(500), "once more");
    tokio::time::sleep(Duration::from_millis(150)).await;
    exam.server().cut();
    exam.server().heal();
    exam.waits_for("the answer to a retry at a cut");
    if let Err(error) = retried.await {
        assert!(passes(&error) || error.kind() == ErrorKind::LeaseLost, "a retry at a cut: {error:?}");
    }
    let again = exam.next_of(&subscription, "the next attempt").await;
    assert_eq!(text(&again), "tried again");
    assert!(again.info().attempt > 1, "a second delivery is a second attempt");
    settle(again).await;
    flows(&exam, &subscription, "after").await;
    settled(&exam, "g").await;
}

/// Keys keep their order over kills and cuts: only messages in flight are delivered again, and no later
/// message overtakes them.
async fn the_order_of_keys_survives_kills_and_cuts(exam: Exam) {
    const ROUNDS: usize = 120;
    const KEYS: usize = 4;
    let subscription = exam.subscribe(group("g", 16).keyed().lease(SHORT)).await;
    let publishing = tokio::spawn({
        let exam = exam.clone();
        async move {
            for n in 0..ROUNDS {
                for lane in 0..KEYS {
                    insist(&exam, keyed(&format!("k{lane}"), n.to_string())).await;
                }
                match n {
                    30 | 90 => exam.server().cut(),
                    60 => {
                        exam.ok("a kill", exam.server().kill()).await;
                        exam.ok("the server to start", exam.server().start()).await;
                    }
                    _ => {}
                }
            }
        }
    });
    // A publish that was not confirmed may have been stored all the same, and then is stored twice; a kill
    // may lose the server's record of the last acknowledgements.
    let (mut next, mut repeats) = (HashMap::<String, usize>::new(), 0);
    while next.len() < KEYS || next.values().any(|n| *n < ROUNDS) {
        let delivery =
            exam.next_of(&subscription, &format!("{ROUNDS} messages of each key, now {next:?}")).await;
        let (lane, n): (_, usize) = (key(&delivery), text(&delivery).parse().expect("a number"));
        let next = next.entry(lane.clone()).or_default();
        assert!(n <= *next, "{lane}: {n} before {next}");
        repeats += usize::from(n < *next);
        *next = (*next).max(n + 1);
        settle(delivery).await;
    }
    assert!(repeats <= 4 * 16, "{repeats} repeats of {} messages in three faults", KEYS * ROUNDS);
    exam.waits_for("the publisher to end");
    publishing.await.expect("the publisher panicked");
}
