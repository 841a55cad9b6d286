//! Responses with many large records are never completely in the memory of the program.

use std::time::Duration;

use event_client::log::LogRecord;
use log_aggregator::store::{LogStore as _, RecordBatch, SqliteOptions, SqliteStore};

use crate::support::{Door, Process};

const MEGABYTE: usize = 1_000_000;

fn large(n: usize) -> LogRecord {
    LogRecord::new("bulk", "INFO", format!("{n} {}", "x".repeat(MEGABYTE)))
}

/// Reads a response as a slow client does; returns its length and its last bytes.
async fn drink(door: &Door, path: &str) -> (usize, String) {
    // Limits each read, not the whole response: the time for 800 MB depends on the machine.
    let client = reqwest::Client::builder().read_timeout(Duration::from_secs(60)).build().expect("a client");
    let mut answer = client.get(door.url(path)).send().await.expect("an answer");
    let (mut length, mut end) = (0, Vec::new());
    while let Some(piece) = answer.chunk().await.expect("it does not break off") {
        length += piece.len();
        end = piece[piece.len().saturating_sub(100)..].to_vec();
    }
    (length, String::from_utf8_lossy(&end).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_eight_hundred_megabytes_fit_through_little_memory() {
    const RECORDS: usize = 800;
    let dir = tempfile::tempdir().expect("a directory");
    let options = SqliteOptions { dir: dir.path().to_owned(), max_day_bytes: None };
    let store = SqliteStore::open(options).await.expect("opens");
    for chunk in (0..RECORDS).collect::<Vec<_>>().chunks(20) {
        let records = chunk.iter().copied().map(large).collect();
        store.append(vec![RecordBatch { delivery: None, records }]).await.expect("kept");
    }
    store.close().await;
    drop(store);
    let process = Process::start(dir.path());
    // The newest record is the aggregator's own, about its start.
    for (path, records) in [("/logs?limit=0", RECORDS), ("/logs?limit=101", 100), ("/logs?limit=-760", 40)] {
        let (length, end) = drink(&process.at, path).await;
        assert!(length > records * MEGABYTE, "{path}: {length} bytes");
        assert!(end.contains("\"count\":"), "{path}: it is whole: {end}");
    }
    for path in ["/api/v1/query?limit=10000", "/api/v1/query?limit=10000&text=xxx"] {
        let (length, end) = drink(&process.at, path).await;
        assert!(length < 40 * MEGABYTE, "{path}: {length} bytes");
        assert!(end.ends_with("\"partial\":true}"), "{path}: {end}");
    }
    // In an earlier version each of these requests held every record in memory, some of them twice.
    let peak = process.peak() as usize;
    assert!(peak < 250 * MEGABYTE, "the process held {peak} bytes");
}
