//! The embedded transport on real files, with real second processes that are really killed.

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

fn group(name: &str, credit: usize) -> Subscribe {
    let mut spec = Subscribe::group(Group::new(name).unwrap(), [Pattern::new("orders.>").unwrap()]);
    spec.credit = credit;
    spec.lease = Duration::from_secs(5);
    spec
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message().payload.to_vec()).unwrap()
}

/// The next delivery, or a failed test: nothing here waits for longer than a broken lease lasts.
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

/// Waits until the group's state is as wanted.
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

/// Runs `role` in a process of its own: this test binary again, told what to be.
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
    // Past the test harness, which would keep it until the end; a line that begins somewhere else is cut there.
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, ">{what}").unwrap();
    out.flush().unwrap();
}

/// Not a test: what a child process does.
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
            let mut requests =
                bus.requests().serve(Serve { service: "quotes".into(), subjects, credit: 4 }).await.unwrap();
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
    // This process holds one; all else must reach the other.
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
            None => assert!(n <= highest[&key] + 3, "{key} goes on at {n} after {}", highest[&key]),
            Some(last) => assert_eq!(n, last + 3, "{key}"),
        }
        last.insert(key, n);
        drop(delivery.ack());
    }
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_loses_nothing_and_goes_on_when_there_is_room() {
    let (_folder, path) = file();
    drop(open(&path).await.subscribe(group("work", 1)).await.unwrap());
    // A limit on the size of files is a full disk that needs no disk: the shell sets it and lets its signal be.
    let mut child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -S -f 8192; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["sqlite::as_a_child", "--exact", "--ignored", "--nocapture"])
        .env("SQLITE_CHILD", "fill")
        .env("SQLITE_FILE", &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut said = lines.filter_map(|line| line.split_once('>').map(|(_, said)| said.to_owned()));
    assert_eq!(said.next().as_deref(), Some("full"));
    let raised =
        Command::new("prlimit").args(["--fsize=unlimited", "--pid", &child.id().to_string()]).status();
    assert!(raised.unwrap().success());
    let stored: u64 = said.next().unwrap().split_once(' ').unwrap().0.parse().unwrap();
    child.wait().unwrap();
    let bus = open(&path).await;
    // What was refused may still have been stored: the answer came from a commit that failed.
    assert!(status(&bus, "work").await.waiting >= stored, "{stored} were confirmed");
    assert!(stored > 10);
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_ours_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(
        path("text"),
        "this is no database, and longer than any header of one would be\n".repeat(40),
    )
    .unwrap();
    let bus = open(&path("newer")).await;
    bus.close().await.unwrap();
    let run = |path: PathBuf, sql: &'static str| async move {
        use sqlx::{ConnectOptions, Connection};
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let mut connection = options.connect().await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    };
    run(path("newer"), "PRAGMA user_version = 99").await;
    run(path("foreign"), "CREATE TABLE theirs (x)").await;
    for (name, kind, hint) in [
        ("text", ErrorKind::Corrupt, "not an SQLite database"),
        ("newer", ErrorKind::Corrupt, "newer version"),
        ("foreign", ErrorKind::Corrupt, "something else"),
        ("missing/bus.db", ErrorKind::NotFound, "create it first"),
        ("text/bus.db", ErrorKind::Config, "not a folder"),
        ("", ErrorKind::Config, "folder"),
    ] {
        let before = std::fs::read(path(name)).ok();
        let error = open_with(&path(name), "").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(error.to_string().contains(hint), "{name}: {error}");
        assert_eq!(std::fs::read(path(name)).ok(), before, "{name} was changed");
    }
    // Damage in the middle of a file that was ours.
    let bus = open(&path("damaged")).await;
    for n in 0..200 {
        drop(bus.publish(message("orders.placed.v1", n.to_string().repeat(500))));
    }
    bus.close().await.unwrap();
    let mut bytes = std::fs::read(path("damaged")).unwrap();
    let end = bytes.len();
    bytes[4096..end].fill(0x5a);
    std::fs::write(path("damaged"), bytes).unwrap();
    let error = match open_with(&path("damaged"), "").await {
        Err(error) => error,
        Ok(bus) => {
            let mut spec = group("work", 1);
            spec.start = Start::Earliest;
            bus.subscribe(spec).await.unwrap_err()
        }
    };
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_file_is_waited_for_then_refused_and_works_again() {
    use sqlx::{ConnectOptions, Connection};
    let (_folder, path) = file();
    let bus = open_with(&path, "?busy_timeout=100ms").await.unwrap();
    let mut other = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let error = bus.publish(message("orders.placed.v1", 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.is_temporary() && error.to_string().contains("locked"), "{error}");
    let waiting =
        open_with(&path, "?busy_timeout=100ms").await.unwrap().publish(message("orders.placed.v1", 2));
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let _ = waiting.await;
    bus.publish(message("orders.placed.v1", 3)).await.unwrap();
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_that_cannot_be_kept_are_refused() {
    let (_folder, path) = file();
    let bus = open_with(&path, "?synchronous=normal&max_payload=2k").await.unwrap();
    assert_eq!(bus.capabilities().max_durability, Durability::PageCache);
    let mut sure = message("orders.placed.v1", "");
    sure.durability = Durability::Fsync;
    assert_eq!(bus.publish(sure).await.unwrap_err().kind(), ErrorKind::Unsupported);
    let error = bus.publish(message("orders.placed.v1", "x".repeat(3000))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("2048") && error.to_string().contains("3026"), "{error}");
    // A second handle may differ in what it promises, not in how the file is kept.
    let other = open(&path).await;
    let mut sure = message("orders.placed.v1", "");
    sure.durability = Durability::Fsync;
    other.publish(sure).await.unwrap();
    assert_eq!(open_with(&path, "?retention_age=1h").await.unwrap_err().kind(), ErrorKind::Config);
    bus.close().await.unwrap();
    other.publish(message("orders.placed.v1", "still open")).await.unwrap();
    other.close().await.unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
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
