//! After SIGKILL every acknowledged record is stored exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use event_client::Bus;
use event_client::log::{LogBatch, LogRecord};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::support::{Process, fixture};

fn messages(entries: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry["service"] != "logthon") {
        *counts.entry(entry["message"].as_str().expect("text").to_owned()).or_default() += 1;
    }
    counts
}

async fn until(mut reached: impl AsyncFnMut() -> bool) {
    let reached = async { while !reached().await {} };
    tokio::time::timeout(Duration::from_secs(180), reached).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_right_after_the_last_200_nothing_is_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    let process = Process::start(dir.path());
    let posts = fixture("edge-terrarium/captured_client_posts.ndjson");
    for post in &posts {
        assert_eq!(process.at.post(post["body"].as_str().expect("a body")).await.status(), 200);
    }
    process.kill();
    let process = Process::start(dir.path());
    let entries = process.at.entries().await;
    let own = entries.iter().filter(|entry| entry["message"] == "Logthon service started").count();
    assert_eq!((entries.len() - own, own), (posts.len(), 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_under_load_nothing_is_lost_or_doubled() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut acknowledged = BTreeSet::new();
    for round in 0..5 {
        let process = Process::start(dir.path());
        let taken = Arc::new(AtomicUsize::new(0));
        let posters: Vec<_> = (0..8)
            .map(|poster| {
                let (door, taken) = (process.at.clone(), Arc::clone(&taken));
                tokio::spawn(async move {
                    let mut mine = Vec::new();
                    for n in 0.. {
                        let message = format!("{round} {poster} {n}");
                        let body = serde_json::json!({ "service": "load", "message": message });
                        let request =
                            door.client.post(door.url("/logs")).header("content-type", "application/json");
                        match request.body(body.to_string()).send().await {
                            Ok(response) if response.status() == 200 => mine.push(message),
                            _ => break,
                        }
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                    mine
                })
            })
            .collect();
        while taken.load(Ordering::Relaxed) < 200 * (round + 1) {
            tokio::task::yield_now().await;
        }
        process.kill();
        for poster in posters {
            acknowledged.extend(poster.await.expect("a poster"));
        }
    }
    let process = Process::start(dir.path());
    let found = messages(&process.at.entries().await);
    let missing: Vec<_> = acknowledged.iter().filter(|message| !found.contains_key(*message)).collect();
    assert!(missing.is_empty(), "{} of {} lost: {missing:?}", missing.len(), acknowledged.len());
    assert!(found.values().all(|count| *count == 1), "doubled");
    let counted = process.at.json("/health").await["log_counts"]["load"].clone();
    assert_eq!(counted, found.len(), "the counts were recovered, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asked_to_stop_it_stops_and_keeps_everything() {
    let dir = tempfile::tempdir().expect("a directory");
    let process = Process::start(dir.path());
    process.at.log("a", "INFO", "kept").await;
    assert!(process.terminate(), "it ends with success");
    let process = Process::start(dir.path());
    assert_eq!(messages(&process.at.entries().await), [("kept".to_owned(), 1)].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_consumes_a_bus_every_shipped_record_is_there_once() {
    const ROUNDS: u64 = 4;
    const PER_BATCH: usize = 5;
    let dir = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite:{}", dir.path().join("bus.db").display());
    let logs = dir.path().join("logs");
    let bus = Bus::connect(&url).await.expect("a bus");
    let stop = CancellationToken::new();
    let services: Vec<_> = (0..4)
        .map(|service| {
            let (bus, stop) = (bus.clone(), stop.clone());
            tokio::spawn(async move {
                let mut mine = Vec::new();
                for batch in 0.. {
                    if stop.is_cancelled() {
                        break;
                    }
                    let messages: Vec<_> = (0..PER_BATCH).map(|n| format!("{service} {batch} {n}")).collect();
                    let records =
                        messages.iter().map(|message| LogRecord::new("", "INFO", message)).collect();
                    let batch = LogBatch { service: format!("s{service}"), records, dropped: Vec::new() };
                    bus.publish(batch).await.expect("published");
                    mine.extend(messages);
                }
                mine
            })
        })
        .collect();
    // Number of records that a process has stored, without the records about its own starts.
    let counted = async |process: &Process| -> u64 {
        let health = process.at.json("/health").await;
        let counts = health["log_counts"].as_object().expect("counts").iter();
        counts.filter(|(name, _)| *name != "logthon").map(|(_, count)| count.as_u64().expect("a count")).sum()
    };
    let mut seen = 0;
    for _ in 0..ROUNDS {
        let process = Process::consuming(&logs, &url);
        let before = seen;
        until(async || {
            seen = counted(&process).await;
            // Between two commits: batches are in flight, some of them stored but not yet acknowledged.
            seen >= before + 100
        })
        .await;
        process.kill();
    }
    stop.cancel();
    let mut shipped = BTreeSet::new();
    for service in services {
        shipped.extend(service.await.expect("a service"));
    }
    let process = Process::consuming(&logs, &url);
    until(async || counted(&process).await >= shipped.len() as u64).await;
    // A process that ends in order has settled all its deliveries; batches that remain on the bus are delivered to
    // the next process.
    assert!(process.terminate(), "it ends with success");
    let process = Process::consuming(&logs, &url);
    until(async || {
        let groups = bus.admin().groups().await.expect("a list");
        groups.iter().all(|group| group.waiting + group.in_flight + group.retrying == 0)
    })
    .await;
    let found = messages(&process.at.entries().await);
    let missing: Vec<_> = shipped.iter().filter(|message| !found.contains_key(*message)).collect();
    assert!(missing.is_empty(), "{} of {} lost: {missing:?}", missing.len(), shipped.len());
    assert!(found.values().all(|count| *count == 1), "doubled");
    assert_eq!(found.len(), shipped.len());
}
