//! Tests the embedded transport on real files, with second processes that are killed.

mod backlog;
mod damage;
mod members;
mod moved;
mod removed;

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use event_client::ErrorKind;
use event_client::delivery::{Delivery, Reason, Rejection};
use event_client::message::{Durability, Message, Position};
use event_client::subject::{Group, Pattern, Subject};
use event_client::subscription::Subscription;
use event_client::transport::{
    self, DeadLetterFilter, Frame, GroupStatus, Serve, Start, Subscribe, Transport,
};

type Bus = Arc<dyn Transport>;

fn file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus.db");
    (folder, path)
}

async fn open(path: &Path) -> Bus {
    open_with(path, "").await.unwrap()
}

async fn open_with(path: &Path, options: &str) -> event_client::Result<Bus> {
    transport::open(format!("sqlite:{}{options}", path.display()).parse().unwrap()).await
}

fn message(subject: &str, text: impl ToString) -> Message {
    Message::new(Subject::new(subject).unwrap(), "text/plain", text.to_string())
}

fn keyed_message(key: &str, text: impl ToString) -> Message {
    let mut message = message("orders.placed.v1", text);
    message.key = Some(key.into());
    message
}

fn group(name: &str, max_in_flight: usize) -> Subscribe {
    let mut spec = Subscribe::group(Group::new(name).unwrap(), [Pattern::new("orders.>").unwrap()]);
    spec.max_in_flight = max_in_flight;
    spec.lease = Duration::from_secs(5);
    spec
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message().payload.to_vec()).unwrap()
}

/// Returns the next delivery, or fails the test: no test waits for longer than it takes to replace a lost
/// lease.
async fn next(subscription: &Subscription) -> Delivery {
    tokio::time::timeout(Duration::from_secs(20), subscription.next())
        .await
        .expect("a delivery in time")
        .expect("an open subscription")
}

async fn status(bus: &Bus, name: &str) -> GroupStatus {
    let groups = bus.admin().groups().await.unwrap();
    groups.into_iter().find(|status| status.group.as_str() == name).unwrap()
}

/// Waits until the group's status satisfies `wanted`.
async fn until(bus: &Bus, name: &str, wanted: impl Fn(&GroupStatus) -> bool) -> GroupStatus {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let status = status(bus, name).await;
        if wanted(&status) {
            return status;
        }
        assert!(tokio::time::Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_is_delivered_settled_and_gone_also_after_a_restart() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    let subscription = bus.subscribe(group("billing", 10)).await.unwrap();
    let mut first = keyed_message("k", "one");
    first.headers.set("tenant", "ä").unwrap();
    let receipt = bus.publish(first.clone()).await.unwrap();
    assert_eq!(receipt.position, Some(Position(1)));
    bus.publish(message("orders.paid.v1", "two")).await.unwrap();
    bus.publish(message("other.paid.v1", "elsewhere")).await.unwrap();

    let one = next(&subscription).await;
    assert_eq!(**one.message(), first);
    assert_eq!((one.info().attempt, one.info().position), (1, Some(Position(1))));
    one.ack().await.unwrap();
    assert_eq!(text(&next(&subscription).await), "two", "dropped unsettled, so released");
    let two = next(&subscription).await;
    assert_eq!((text(&two).as_str(), two.info().attempt), ("two", 1));
    two.retry(Duration::ZERO, "not today").await.unwrap();
    let two = next(&subscription).await;
    assert_eq!((text(&two).as_str(), two.info().attempt), ("two", 2));
    two.retry(Duration::from_millis(1), "not today either").await.unwrap();
    bus.close().await.unwrap();
    bus.close().await.unwrap();
    assert!(subscription.next().await.is_none());
    assert_eq!(bus.publish(message("orders.x", "")).await.unwrap_err().kind(), ErrorKind::Closed);

    let bus = open(&path).await;
    let subscription = bus.subscribe(group("billing", 10)).await.unwrap();
    let two = next(&subscription).await;
    assert_eq!((text(&two).as_str(), two.info().attempt), ("two", 3));
    two.reject(Rejection::new(Reason::Exhausted, "gave up")).await.unwrap();
    let letters = bus.admin().dead_letters(DeadLetterFilter::default()).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].message.payload, "two");
    assert_eq!(
        (letters[0].reason, letters[0].attempts, letters[0].error.as_str()),
        (Reason::Exhausted, 3, "gave up")
    );
    assert!(
        letters[0].published_at <= letters[0].first_attempt_at
            && letters[0].first_attempt_at < letters[0].dead_at
    );
    assert_eq!(bus.admin().replay_dead_letters(DeadLetterFilter::default()).await.unwrap(), 1);
    let two = next(&subscription).await;
    assert_eq!((two.info().attempt, two.info().replayed), (1, true));
    two.ack().await.unwrap();
    let now = status(&bus, "billing").await;
    assert_eq!((now.waiting, now.in_flight, now.dead, now.members, now.oldest_unsettled), (0, 0, 0, 1, None));
    bus.close().await.unwrap();
    let left: Vec<_> =
        std::fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["bus.db"], "a clean end leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_reach_each_group_once_in_order_of_their_topic() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    let one = bus.subscribe(group("one", 100)).await.unwrap();
    let (two_a, two_b) =
        (bus.subscribe(group("two", 7)).await.unwrap(), bus.subscribe(group("two", 50)).await.unwrap());
    let confirms: Vec<_> = (0..5000).map(|n| bus.publish(message("orders.placed.v1", n))).collect();
    for confirm in confirms {
        confirm.await.unwrap();
    }
    let drain = |subscription: Subscription| async move {
        let mut seen = Vec::new();
        while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_secs(3), subscription.next()).await
        {
            seen.push(text(&delivery).parse::<u32>().unwrap());
            drop(delivery.ack());
        }
        seen
    };
    let (one, two_a, two_b) = tokio::join!(drain(one), drain(two_a), drain(two_b));
    assert_eq!(one, (0..5000).collect::<Vec<_>>());
    let mut both: Vec<_> = two_a.iter().chain(&two_b).copied().collect();
    both.sort_unstable();
    assert_eq!(both, one);
    assert!(!two_a.is_empty() && !two_b.is_empty(), "members share the work");
    for name in ["one", "two"] {
        let status = until(&bus, name, |status| status.in_flight == 0).await;
        assert_eq!(status.waiting, 0);
    }
    bus.close().await.unwrap();
}

/// Starts `role` in a separate process: this test binary again, with the role in its environment.
fn child(role: &str, path: &Path) -> (Child, impl Iterator<Item = String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["sqlite::as_a_child", "--exact", "--ignored", "--nocapture"])
        .env("SQLITE_CHILD", role)
        .env("SQLITE_FILE", path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    (child, lines.filter_map(|line| line.split_once('>').map(|(_, said)| said.to_owned())))
}

fn say(what: impl std::fmt::Display) {
    // Writes past the test harness, which would buffer the line until the end; the parent cuts text before
    // the `>`.
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, ">{what}").unwrap();
    out.flush().unwrap();
}

/// Not a test: the main function of a child process.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by other tests as a child process"]
async fn as_a_child() {
    let Ok(role) = std::env::var("SQLITE_CHILD") else { return };
    let bus = open(Path::new(&std::env::var_os("SQLITE_FILE").unwrap())).await;
    match role.as_str() {
        "hold" => {
            let subscription = bus.subscribe(group("work", 10)).await.unwrap();
            let mut held = Vec::new();
            loop {
                let delivery = next(&subscription).await;
                say(text(&delivery));
                held.push(delivery);
            }
        }
        "consume" => {
            let subscription = bus.subscribe(group("work", 16)).await.unwrap();
            say("ready");
            while let Some(delivery) = subscription.next().await {
                say(format!("{} {}", text(&delivery), delivery.info().attempt));
                drop(delivery.ack());
            }
        }
        "keyed" => {
            let mut spec = group("work", 16);
            spec.keyed = true;
            let subscription = bus.subscribe(spec).await.unwrap();
            say("ready");
            while let Some(delivery) = subscription.next().await {
                say(format!("{} {}", delivery.message().key.clone().unwrap(), text(&delivery)));
                drop(delivery.ack());
            }
        }
        "publish" => {
            let mut n = 0u64;
            let mut window = std::collections::VecDeque::new();
            loop {
                window.push_back((n, bus.publish(message("orders.placed.v1", n))));
                n += 1;
                if window.len() >= 64 {
                    let (n, confirm) = window.pop_front().unwrap();
                    confirm.await.unwrap();
                    say(n);
                }
            }
        }
        "visit" => {
            bus.publish(message("orders.placed.v1", "from a visitor")).await.unwrap();
            bus.close().await.unwrap();
        }
        "fill" => {
            let payload = "x".repeat(100_000);
            let (mut stored, mut full) = (0, false);
            loop {
                match bus.publish(message("orders.placed.v1", &payload)).await {
                    Ok(_) if full => break say(format!("{} stored", stored + 1)),
                    Ok(_) => stored += 1,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
                        if !std::mem::replace(&mut full, true) {
                            say("full");
                        }
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            }
            bus.close().await.unwrap();
        }
        "serve" => {
            let subjects = vec![Subject::new("quotes.get").unwrap()];
            let mut requests = bus.requests().serve(Serve::new("quotes", subjects, 4)).await.unwrap();
            say("ready");
            while let Some(mut request) = requests.recv().await {
                tokio::spawn(async move {
                    let asked = String::from_utf8(request.message.payload.to_vec()).unwrap();
                    if asked == "wait" {
                        request.responder.send(frame("waiting", false)).await.unwrap();
                        request.responder.gone().cancelled().await;
                        return say("gone");
                    }
                    let count: usize = asked.parse().unwrap();
                    for n in 0..count {
                        request.responder.send(frame(n, n + 1 == count)).await.unwrap();
                    }
                });
            }
        }
        role => panic!("unknown role {role}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_hands_its_deliveries_on() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    drop(bus.subscribe(group("work", 1)).await.unwrap());
    for n in 0..10 {
        bus.publish(message("orders.placed.v1", n)).await.unwrap();
    }
    let (mut holder, lines) = child("hold", &path);
    let held: HashSet<String> = lines.take(10).collect();
    assert_eq!(held.len(), 10);
    let subscription = bus.subscribe(group("work", 20)).await.unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    let mut seen = HashSet::new();
    while seen.len() < 10 {
        let delivery = next(&subscription).await;
        assert_eq!(delivery.info().attempt, 2, "the crash counts");
        seen.insert(text(&delivery));
        delivery.ack().await.unwrap();
    }
    assert_eq!(seen, held);
    bus.close().await.unwrap();
}

fn frame(text: impl ToString, last: bool) -> Frame {
    Frame {
        headers: Default::default(),
        content_type: "text/plain".into(),
        payload: text.to_string().into(),
        last,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_reach_another_process_and_come_back_in_order() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    let ask = |text: &str| message("quotes.get", text);
    let within = Duration::from_secs(15);
    assert_eq!(bus.requests().call(ask("1"), within).await.unwrap_err().kind(), ErrorKind::NoResponder);
    let (mut server, mut lines) = child("serve", &path);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    for count in [1, 3, 500] {
        let mut replies = bus.requests().call(ask(&count.to_string()), within).await.unwrap();
        for n in 0..count {
            let frame = replies.next().await.unwrap().unwrap();
            assert_eq!((frame.payload, frame.last), (n.to_string().into(), n + 1 == count));
        }
        assert!(replies.next().await.is_none());
    }
    let mut left = bus.requests().call(ask("wait"), within).await.unwrap();
    assert_eq!(left.next().await.unwrap().unwrap().payload, "waiting");
    drop(left);
    assert_eq!(lines.next().as_deref(), Some("gone"));
    let mut late = bus.requests().call(ask("wait"), Duration::from_secs(2)).await.unwrap();
    assert_eq!(late.next().await.unwrap().unwrap().payload, "waiting");
    assert_eq!(late.next().await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(lines.next().as_deref(), Some("gone"));
    let mut cut = bus.requests().call(ask("wait"), within).await.unwrap();
    assert_eq!(cut.next().await.unwrap().unwrap().payload, "waiting");
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(cut.next().await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(bus.requests().call(ask("1"), within).await.unwrap_err().kind(), ErrorKind::NoResponder);
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn delay_expiry_and_dedup_are_kept_over_a_restart() {
    let (_folder, path) = file();
    let bus = open(&path).await;
    let mut spec = group("work", 10);
    spec.start = Start::Earliest;
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(700);
    let mut late = message("orders.placed.v1", "late");
    late.deliver_at = Some(soon);
    late.dedup = true;
    assert!(!bus.publish(late.clone()).await.unwrap().duplicate);
    assert!(bus.publish(late.clone()).await.unwrap().duplicate);
    let mut once = message("orders.placed.v1", "once");
    once.dedup = true;
    let (one, two) = (bus.publish(once.clone()), bus.publish(once.clone()));
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    assert_eq!((one.duplicate, two.duplicate, one.position), (false, true, two.position));
    let mut old = message("orders.placed.v1", "old");
    old.expires_at = Some(jiff::Timestamp::now() - jiff::SignedDuration::from_millis(1));
    bus.publish(old).await.unwrap();
    bus.close().await.unwrap();

    let bus = open(&path).await;
    assert!(bus.publish(once).await.unwrap().duplicate);
    let subscription = bus.subscribe(spec).await.unwrap();
    let first = next(&subscription).await;
    assert_eq!(text(&first), "once");
    first.ack().await.unwrap();
    let second = next(&subscription).await;
    assert_eq!(text(&second), "late");
    assert!(jiff::Timestamp::now() >= soon);
    second.ack().await.unwrap();
    assert!(subscription.try_next().is_none());
    bus.close().await.unwrap();
}
