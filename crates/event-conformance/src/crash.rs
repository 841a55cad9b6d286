//! Cases with processes that are killed by SIGKILL at the worst moment, and with processes that share one
//! storage.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use event_client::ErrorKind;
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{SHORT, With, group, group_name, keyed, message, on, text};
use crate::process::{Process, Role, WORK_CREDIT};
use crate::requests::{body, call, reply};

cases! {
    a_retry_waits_out_its_time_after_its_consumer_was_killed.when(|can| can.persistent && can.shared);
    consumer_killed_between_handler_and_ack.when(|can| can.persistent && can.shared);
    publisher_killed_mid_window.when(|can| can.persistent && can.shared);
    two_processes_share_a_group.when(|can| can.persistent && can.shared);
    another_process_picks_up_at_once.when(|can| can.persistent && can.shared);
    another_process_answers_requests.when(|can| can.persistent && can.shared);
    server_killed_with_a_request_in_hand.when(|can| can.persistent && can.shared);
    consumers_killed_again_and_again_under_load.when(|can| can.persistent && can.shared).within(1200);
}

/// A retry's delay is stored with the message.
async fn a_retry_waits_out_its_time_after_its_consumer_was_killed(exam: Exam) {
    for order in [false, true] {
        let mut spec = group("g", 2).lease(SHORT);
        spec.keyed = order;
        exam.found(spec.clone()).await;
        exam.publish(keyed("k", "again")).await;
        let mut process = Process::start_with(&exam, Role::Retry, if order { "keyed" } else { "" });
        exam.waits_for("the other process to fail a message");
        let due = process.says().await.expect("the process prints when the retry is due");
        let due = Timestamp::from_millisecond(due.parse().expect("milliseconds")).expect("a time");
        process.kill().await;
        let heir = exam.subscribe(spec).await;
        let delivery = exam.next_of(&heir, "the second attempt").await;
        let early = due.duration_since(Timestamp::now());
        assert!(early < SignedDuration::from_millis(5), "{early:?} early");
        assert_eq!((text(&delivery), delivery.info().attempt), ("again".into(), 2));
        exam.ack(delivery).await;
        exam.settled("g").await;
        drop(heir);
        exam.ok("the group's end", exam.admin().delete_group(group_name("g"))).await;
    }
}

/// A killed process's messages in flight go to another member, and the crash counts as an attempt.
async fn consumer_killed_between_handler_and_ack(exam: Exam) {
    exam.found(group("g", 1).lease(SHORT)).await;
    for n in 0..3 {
        exam.publish(message(n.to_string())).await;
    }
    let mut process = Process::start(&exam, Role::Hold);
    exam.waits_for("the other process to take a message");
    assert_eq!(process.says().await.as_deref(), Some("0"));
    process.kill().await;
    let heir = exam.subscribe(group("g", 1).lease(SHORT)).await;
    let mut attempts = HashMap::new();
    while attempts.len() < 3 {
        let delivery = exam.next_of(&heir, "the killed process's delivery").await;
        attempts.insert(text(&delivery), delivery.info().attempt);
        exam.ack(delivery).await;
    }
    assert_eq!(attempts, HashMap::from([("0".into(), 2), ("1".into(), 1), ("2".into(), 1)]));
    exam.settled("g").await;
}

/// Every message whose confirmation the publisher received is stored, in order.
async fn publisher_killed_mid_window(exam: Exam) {
    exam.found(group("g", 256).keyed()).await;
    let mut process = Process::start(&exam, Role::Publish);
    let mut confirmed = 0;
    while confirmed < 500 {
        exam.waits_for(format!("500 confirmations in the other process, {confirmed} so far"));
        process.says().await.expect("it publishes until it is killed");
        confirmed += 1;
    }
    process.kill().await;
    // Lines that the process wrote before it was killed and that have not been read yet.
    while process.says().await.is_some() {
        confirmed += 1;
    }
    let waiting = exam.status("g").await.waiting;
    assert!(waiting >= confirmed, "{confirmed} were confirmed, {waiting} are there");
    let subscription = exam.subscribe(group("g", 1).keyed()).await;
    for n in 0..confirmed {
        let delivery = exam.next_of(&subscription, &format!("message {n} of {confirmed} confirmed")).await;
        assert_eq!(text(&delivery), n.to_string());
        exam.ack(delivery).await;
    }
}

/// Each message is handled in one of the processes.
async fn two_processes_share_a_group(exam: Exam) {
    let mut processes = [Process::start(&exam, Role::Share), Process::start(&exam, Role::Share)];
    for process in &mut processes {
        exam.waits_for("the other processes to be ready");
        assert_eq!(process.says().await.as_deref(), Some("ready"));
    }
    for n in 0..200 {
        exam.publish(message(n.to_string())).await;
    }
    exam.settled("g").await;
    let mut seen = HashSet::new();
    let mut shares = [0; 2];
    while seen.len() < 200 {
        exam.waits_for(format!("200 messages in two processes, so far {shares:?}"));
        let [one, two] = &mut processes;
        let (process, said) =
            tokio::select! { said = one.says() => (0, said), said = two.says() => (1, said) };
        let said = said.expect("it works until it is killed");
        assert!(seen.insert(said.clone()), "{said} was handled twice");
        shares[process] += 1;
    }
}

/// A waiting process is woken for a new message by a signal; it does not depend on its lease or on a slow
/// poll.
async fn another_process_picks_up_at_once(exam: Exam) {
    let mut process = Process::start(&exam, Role::Share);
    exam.waits_for("the other process to be ready");
    assert_eq!(process.says().await.as_deref(), Some("ready"));
    for n in 0..50 {
        exam.publish(message(n.to_string())).await;
        exam.waits_for(format!("message {n} in the other process"));
        assert_eq!(process.says().await, Some(n.to_string()));
    }
}

/// A request reaches a responder in another process, and the reply returns to the caller.
async fn another_process_answers_requests(exam: Exam) {
    let mut process = Process::start(&exam, Role::Serve);
    exam.waits_for("the other process to be ready");
    assert_eq!(process.says().await.as_deref(), Some("ready"));
    for n in 0..20 {
        let mut replies = call(&exam, on("shop.quote", n.to_string())).await;
        let frame = reply(&exam, &mut replies).await.expect("a frame");
        assert_eq!((body(&frame), frame.last), (n.to_string(), true));
        exam.waits_for("the end of the answer");
        assert!(replies.next().await.is_none());
    }
}

/// The caller of a responder that is killed gets an error, and the killed responder receives no later
/// requests.
async fn server_killed_with_a_request_in_hand(exam: Exam) {
    let mut process = Process::start(&exam, Role::Serve);
    exam.waits_for("the other process to be ready");
    assert_eq!(process.says().await.as_deref(), Some("ready"));
    let call_of = |text: &str| exam.requests().call(on("shop.quote", text), Duration::from_secs(300));
    let mut replies = exam.ok("the call", call_of("hang")).await;
    exam.waits_for("the other process to have the request");
    assert_eq!(process.says().await.as_deref(), Some("hanging"));
    process.kill().await;
    let error = reply(&exam, &mut replies).await.expect_err("the server is dead");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    exam.refused(ErrorKind::NoResponder, "a call to the dead server", call_of("anybody?")).await;
}

/// Two processes work on many keys and one of them is killed at a random moment, again and again: no message
/// is lost, the order of each key is kept, and only messages in flight are repeated.
///
/// `BACKBONE_KILLS` sets the number of kills (default 5), `BACKBONE_SEED` the moments.
async fn consumers_killed_again_and_again_under_load(exam: Exam) {
    const KEYS: usize = 16;
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let (kills, seed) = (number("BACKBONE_KILLS", 5), number("BACKBONE_SEED", 1));
    let mut random = fastrand::Rng::with_seed(seed);
    let ledger = tempfile::NamedTempFile::new().expect("a ledger");
    let path = ledger.path().to_str().expect("a plain path").to_owned();
    exam.found(group("g", 1).keyed()).await;

    let enough = tokio_util::sync::CancellationToken::new();
    let publishing = tokio::spawn({
        let (exam, enough) = (exam.clone(), enough.clone());
        async move {
            let mut rounds = 0_usize;
            while !enough.is_cancelled() {
                let round =
                    (0..KEYS).map(|key| exam.bus().publish(keyed(&format!("k{key}"), rounds.to_string())));
                for result in join_all(round.collect::<Vec<_>>()).await {
                    result.expect("confirmed");
                }
                rounds += 1;
                // Keep the backlog bounded.
                while rounds.is_multiple_of(20) && exam.status("g").await.waiting > 2000 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            rounds
        }
    });

    let start = || Process::start_with(&exam, Role::Work, &path);
    let mut processes = [start(), start()];
    let mut killed = HashSet::new();
    let mut seen = 0;
    for kill in 0..kills {
        let want = seen + random.u64(2_000..30_000); // bytes: some 100 to 1500 lines
        while std::fs::metadata(&path).expect("the ledger").len() < want {
            exam.waits_for(format!("work to go on before kill {} of {kills}", kill + 1));
            for process in &mut processes {
                assert!(!process.has_ended(), "a process ended by itself");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let victim = &mut processes[random.usize(..2)];
        victim.kill().await;
        killed.insert(victim.pid);
        *victim = start();
        seen = std::fs::metadata(&path).expect("the ledger").len();
    }
    enough.cancel();
    exam.waits_for("the publisher to stop");
    let rounds = publishing.await.expect("the publisher panicked");
    exam.settled("g").await;
    // The messages are settled in the storage; a live process may not have written that to the ledger yet,
    // which the check allows for.
    for process in &mut processes {
        process.kill().await;
        killed.insert(process.pid);
    }
    let text = std::fs::read_to_string(&path).expect("the ledger");
    let report = check_ledger(&text, rounds, KEYS, &killed);
    println!("{kills} kills, seed {seed}: {report}");
}

/// The state of one key so far.
#[derive(Default)]
struct Lane {
    /// The lowest number that has not been handled yet.
    next: usize,
    /// The process that handled the number before, and whether it wrote that its ack was confirmed.
    by: u32,
    acked: bool,
}

fn check_ledger(ledger: &str, rounds: usize, keys: usize, killed: &HashSet<u32>) -> String {
    let mut lanes: HashMap<&str, Lane> = HashMap::new();
    let (mut handled, mut repeats) = (0, 0);
    for (at, line) in ledger.lines().enumerate() {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_else(|| panic!("line {at} is torn: {line:?}"));
        let (what, key) = (word(), word());
        let n: usize = word().parse().expect("a number");
        let pid: u32 = word().parse().expect("a process");
        let attempt: u32 = word().parse().expect("an attempt");
        let lane = lanes.entry(key).or_default();
        match what {
            "acked" if n + 1 == lane.next && pid == lane.by => lane.acked = true,
            "acked" => assert!(n < lane.next, "line {at}: {key}/{n} acked before it was handled"),
            "handled" if n == lane.next => {
                handled += 1;
                *lane = Lane { next: n + 1, by: pid, acked: false };
            }
            "handled" if n + 1 == lane.next => {
                handled += 1;
                repeats += 1;
                assert!(!lane.acked, "line {at}: {key}/{n} came again after its ack was confirmed");
                assert!(killed.contains(&lane.by), "line {at}: {key}/{n} was taken from a live process");
                assert!(attempt > 1, "line {at}: {key}/{n} came again as its first attempt");
                lane.by = pid;
            }
            _ => panic!("line {at}: {key}/{n} out of order, {} was next", lane.next),
        }
    }
    assert_eq!(lanes.len(), keys);
    for (key, lane) in &lanes {
        assert_eq!(lane.next, rounds, "{key}: lost messages");
    }
    let most = killed.len() * WORK_CREDIT;
    assert!(repeats <= most, "{repeats} repeats, at most {most} were in flight");
    format!(
        "{} published, {handled} handled, {repeats} repeated (all in flight at a kill, at most {most}), \
         0 lost, {keys} keys in order",
        rounds * keys
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ledger: &str) -> Result<String, ()> {
        let ledger = ledger.to_owned();
        std::panic::catch_unwind(|| check_ledger(&ledger, 2, 1, &HashSet::from([1]))).map_err(drop)
    }

    #[test]
    fn the_checker_finds_what_must_not_be() {
        check("handled k 0 1 1\nhandled k 0 2 2\nacked k 0 2 2\nhandled k 1 2 1\n").unwrap();
        for wrong in [
            "handled k 0 1 1\n",                                                  // lost
            "handled k 1 1 1\nhandled k 0 1 1\n",                                 // order
            "handled k 0 1 1\nacked k 0 1 1\nhandled k 0 2 2\nhandled k 1 2 1\n", // repeated after its ack
            "handled k 0 2 1\nhandled k 0 1 2\nhandled k 1 2 1\n",                // taken from a live process
            "handled k 0 1 1\nhandled k 0 2 1\nhandled k 1 2 1\n",                // not counted
            "handled k 0 1 1\nhandled k 1 1 1\nhandled k 0 1 2\n",                // an old number again
        ] {
            check(wrong).unwrap_err();
        }
    }
}
