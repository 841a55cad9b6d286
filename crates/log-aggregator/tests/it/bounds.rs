//! Responses with many large records: complete, or in parts that are marked as such.

use event_client::log::LogRecord;
use serde_json::Value;

use crate::support::Served;

const MEGABYTE: usize = 1_000_000;

fn large(n: usize) -> LogRecord {
    LogRecord::new("bulk", "INFO", format!("{n} {}", "x".repeat(MEGABYTE)))
}

/// Returns the number at the beginning of a record's message.
fn number(record: &Value) -> usize {
    let message = record["message"].as_str().expect("text");
    message.split(' ').next().expect("a word").parse().expect("a number")
}

#[tokio::test]
async fn a_partial_answer_is_gone_on_with_until_everything_was_seen() {
    let served = Served::new().await;
    const RECORDS: usize = 70;
    for n in 0..RECORDS {
        served.aggregator.store(vec![large(n)]).await.expect("stored");
    }
    let (mut seen, mut answers, mut cursor) = (Vec::new(), 0, String::new());
    loop {
        let answer = served.at.json(&format!("/api/v1/query?limit=1000{cursor}")).await;
        answers += 1;
        seen.extend(answer["records"].as_array().expect("a list").iter().map(number));
        assert_eq!(answer["partial"].as_bool(), Some(answer["next"].is_string()));
        let Some(next) = answer["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, (0..RECORDS).rev().collect::<Vec<_>>());
    assert_eq!(answers, 3, "32 MiB at a time");
    // Logthon's list returns the last records in one response.
    let list = served.at.json("/logs?limit=50").await;
    let list = list["logs"].as_array().expect("a list");
    assert_eq!(list.iter().map(number).collect::<Vec<_>>(), (20..RECORDS).collect::<Vec<_>>());
}

#[tokio::test]
async fn records_larger_than_a_page_do_not_end_the_list() {
    let served = Served::new().await;
    for n in 0..3 {
        let message = format!("{n} {}", "x".repeat(2 * MEGABYTE));
        served.aggregator.store(vec![LogRecord::new("bulk", "INFO", message)]).await.expect("stored");
    }
    let entries = served.at.entries().await;
    assert_eq!(entries.iter().map(number).collect::<Vec<_>>(), [0, 1, 2]);
}
