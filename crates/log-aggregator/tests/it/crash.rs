//! SIGKILL: what was acknowledged is there afterwards, once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::support::{Process, fixture};

fn messages(entries: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry["service"] != "logthon") {
        *counts.entry(entry["message"].as_str().expect("text").to_owned()).or_default() += 1;
    }
    counts
}

#[tokio::test]
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

#[tokio::test]
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

#[tokio::test]
async fn asked_to_stop_it_stops_and_keeps_everything() {
    let dir = tempfile::tempdir().expect("a directory");
    let process = Process::start(dir.path());
    process.at.log("a", "INFO", "kept").await;
    assert!(process.terminate(), "it ends with success");
    let process = Process::start(dir.path());
    assert_eq!(messages(&process.at.entries().await), [("kept".to_owned(), 1)].into());
}
