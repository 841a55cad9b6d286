//! Tests files that are removed, moved or replaced while the bus has them open.

use event_client::subscription::Health;

use super::*;

const FILES: [&str; 3] = ["bus.db", "bus.db-wal", "bus.db-shm"];

/// Waits until the subscription's health satisfies `wanted`.
async fn health(subscription: &Subscription, wanted: impl Fn(&Health) -> bool) {
    let mut health = subscription.health();
    let waited = tokio::time::timeout(Duration::from_secs(20), health.wait_for(|now| wanted(now))).await;
    drop(waited.expect("in time").expect("the subscription has not ended"));
}

fn lost(file: &str) -> impl Fn(&Health) -> bool {
    move |health| matches!(health, Health::Rebuilding(why) if why.contains(file))
}

fn order(text: impl ToString) -> Message {
    message("orders.placed.v1", text)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_confirmed_or_live_until_a_file_that_was_moved_is_back() {
    for name in FILES {
        let (folder, path) = file();
        let bus = open(&path).await;
        let members = [
            bus.subscribe(group("work", 4)).await.unwrap(),
            bus.subscribe(Subscribe::broadcast([Pattern::new("orders.>").unwrap()])).await.unwrap(),
        ];
        bus.publish(order("before")).await.unwrap();
        for member in &members {
            next(member).await.ack().await.unwrap();
        }
        let (file, aside) = (folder.path().join(name), folder.path().join("aside"));
        std::fs::rename(&file, &aside).unwrap();
        for attempt in 1..=2 {
            let error = bus.publish(order("lost")).await.expect_err("its file was removed");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}, attempt {attempt}");
            let said = format!("{error:?}");
            assert!(said.contains(name) && said.contains("removed or moved"), "{said}");
        }
        for member in &members {
            health(member, lost(name)).await;
        }
        for refused in [bus.admin().groups().await.map(drop), bus.admin().ping().await.map(drop)] {
            assert_eq!(refused.expect_err("its file was removed").kind(), ErrorKind::Corrupt);
        }
        assert!(bus.subscribe(group("more", 1)).await.is_err(), "nothing new begins");
        std::fs::write(&file, "").unwrap();
        let error = bus.publish(order("lost")).await.expect_err("another file stands there");
        assert!(format!("{error:?}").contains("replaced"), "{error:?}");
        std::fs::rename(&aside, &file).unwrap();
        bus.publish(order("after")).await.unwrap();
        for member in &members {
            health(member, |health| *health == Health::Live).await;
            // A refused message may have been written before the move was noticed.
            while text(&next(member).await) != "after" {}
        }
        bus.close().await.unwrap();
    }
}

/// Publishes are in flight while the file is moved.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_confirmed_before_the_file_was_moved_is_in_it() {
    let (folder, path) = file();
    let bus = open(&path).await;
    let publishing = tokio::spawn({
        let bus = bus.clone();
        async move {
            let mut window = std::collections::VecDeque::new();
            let mut confirmed = 0_u64;
            for n in 0_u64.. {
                window.push_back(bus.publish(order(n)));
                if window.len() >= 32 && window.pop_front().unwrap().await.is_err() {
                    break;
                }
                confirmed = (n + 2).saturating_sub(32);
            }
            for late in window {
                late.await.expect_err("nothing is confirmed any more");
            }
            confirmed
        }
    });
    // The newest stored message may not be confirmed yet when the files are moved.
    while status_of_log(&path).await < 501 {
        tokio::task::yield_now().await;
    }
    for name in FILES {
        std::fs::rename(folder.path().join(name), folder.path().join(name.replace("bus", "moved"))).unwrap();
    }
    let confirmed = publishing.await.unwrap();
    bus.close().await.expect_err("it cannot say that all is stored");
    let moved = open(&folder.path().join("moved.db")).await;
    let mut all = Subscribe::broadcast([Pattern::new("orders.>").unwrap()]);
    all.start = Start::Earliest;
    let all = moved.subscribe(all).await.unwrap();
    for n in 0..confirmed {
        assert_eq!(text(&next(&all).await), n.to_string());
    }
    assert!(confirmed >= 500);
}

/// Returns the number of messages in the file at `path`, read without the bus.
async fn status_of_log(path: &Path) -> i64 {
    use sqlx::{ConnectOptions, Connection};
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = options.connect().await.unwrap();
    let sql = "SELECT ifnull(max(last), 0) FROM segment";
    let last = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_opened_again_takes_the_file_that_stands_there_then() {
    let (folder, path) = file();
    let gone = open(&path).await;
    gone.publish(order("before")).await.unwrap();
    let copy = folder.path().join("copy.db");
    let other = open(&copy).await;
    other.publish(order("in the copy")).await.unwrap();
    other.close().await.unwrap();
    std::fs::rename(&copy, &path).unwrap();
    let refused = open_with(&path, "").await.expect_err("the log of the removed file still exists");
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    for name in &FILES[1..] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    let bus = open(&path).await;
    let mut all = Subscribe::broadcast([Pattern::new("orders.>").unwrap()]);
    all.start = Start::Earliest;
    let all = bus.subscribe(all).await.unwrap();
    assert_eq!(text(&next(&all).await), "in the copy");
    bus.publish(order("after")).await.unwrap();
    assert_eq!(text(&next(&all).await), "after");
    assert!(gone.publish(order("lost")).await.is_err(), "the removed file's handle stays refused");
    bus.close().await.unwrap();
    assert!(gone.close().await.is_err());
}

/// A process's locks on a file end when it closes any handle of that file: another process would consider
/// itself the last one, and remove the log to which this process writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_comes_and_goes_removes_nothing_under_two_handles_of_another() {
    let (_folder, path) = file();
    let (one, other) = (open(&path).await, open(&path).await);
    let subscription = one.subscribe(group("work", 4)).await.unwrap();
    let (mut visitor, _said) = child("visit", &path);
    assert!(visitor.wait().unwrap().success());
    other.publish(order("still here")).await.unwrap();
    for wanted in ["from a visitor", "still here"] {
        let delivery = next(&subscription).await;
        assert_eq!(text(&delivery), wanted);
        delivery.ack().await.unwrap();
    }
    one.close().await.unwrap();
    other.close().await.unwrap();
}
