//! Replays the recorded requests of real clients.

use event_client::log::Severity;
use log_aggregator::store::{Order, Query};
use serde_json::{Map, Value, json};

use crate::support::{Served, fixture};

const POSTS: &str = "edge-terrarium/captured_client_posts.ndjson";

#[tokio::test]
async fn every_recorded_post_is_taken_and_reads_back() {
    let served = Served::new().await;
    let posts = fixture(POSTS);
    for post in &posts {
        let path = post["path"].as_str().expect("a path");
        let body = post["body"].as_str().expect("a body");
        let response = served.at.post_to(path, body).await;
        assert_eq!(response.status(), 200, "{body}");
    }
    let entries = served.at.entries().await;
    assert_eq!(entries.len(), posts.len());
    let mut broken = 0;
    for (post, entry) in posts.iter().zip(&entries) {
        let body = post["body"].as_str().expect("a body");
        if post["valid_json"] == true {
            let sent: Map<String, Value> = serde_json::from_str(body).expect("sound");
            for key in ["service", "level", "message", "metadata"] {
                assert_eq!(entry[key], sent[key], "{key} of {body}");
            }
            assert!(entry.get("repaired").is_none() && entry.get("raw").is_none());
        } else {
            broken += 1;
            assert_eq!((&entry["repaired"], &entry["raw"]), (&json!(true), &json!(body)));
            assert_eq!(entry["service"], "custom-client");
            let message = entry["message"].as_str().expect("text");
            assert!(message.starts_with("Successfully created file via API: {\"filename\":"), "{message}");
            assert!(message.ends_with("created successfully\"}"), "{message}");
            assert_eq!(entry["metadata"]["container_name"], "edge-terrarium-custom-client");
        }
    }
    assert!(broken > 0, "the fixture has broken posts");
}

#[tokio::test]
async fn every_contract_case_is_answered_as_the_original_did_or_better() {
    let served = Served::new().await;
    for case in fixture("edge-terrarium/contract_cases.ndjson") {
        let (name, body) = (case["name"].as_str().expect("a name"), case["body"].as_str().expect("a body"));
        let request = served.at.client.request(
            case["method"].as_str().expect("a method").parse().expect("a method"),
            served.at.url(case["path"].as_str().expect("a path")),
        );
        let request = request.header("content-type", case["content_type"].as_str().expect("a type"));
        let response = request.body(body.to_owned()).send().await.expect("an answer");
        let sound = serde_json::from_str::<Value>(body).is_ok();
        // The only deviation: broken JSON of the C clients is repaired; the original refused and lost it.
        let expected = if sound { case["original_status"].as_u64().expect("a status") } else { 200 };
        assert_eq!(u64::from(response.status().as_u16()), expected, "{name}");
        if !sound {
            let last = served.at.json("/logs?limit=1").await["logs"][0].clone();
            assert_eq!((&last["repaired"], &last["raw"]), (&json!(true), &json!(body)), "{name}");
            assert_eq!(
                (&last["service"], &last["level"]),
                (&json!("custom-client"), &json!("INFO")),
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn both_words_for_a_warning_are_found_as_one() {
    let served = Served::new().await;
    for post in fixture(POSTS) {
        served.at.post(post["body"].as_str().expect("a body")).await;
    }
    served.at.log("file-storage", "WARNING", "python's word").await;
    let found = served.at.json("/api/v1/query?level=warn&limit=1000").await;
    let levels: std::collections::BTreeSet<_> = found["records"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|record| record["level"].as_str().expect("text"))
        .collect();
    assert_eq!(levels, ["ERROR", "WARN", "WARNING"].into());
}

#[tokio::test]
async fn the_documented_shape_keeps_its_time_and_its_ids() {
    let served = Served::new().await;
    let lines = fixture("synthetic/services.ndjson");
    for line in &lines {
        assert_eq!(served.at.post(line.to_string()).await.status(), 200);
    }
    let query = Query { order: Order::Oldest, limit: lines.len() + 1, ..Query::default() };
    let stored = served.aggregator.query(query).await.expect("an answer").records;
    assert_eq!(stored.len(), lines.len());
    for (line, stored) in lines.iter().zip(&stored) {
        let record = &stored.record;
        let said = line["timestamp"].as_str().expect("text").parse().expect("a time");
        assert_eq!(record.time, said);
        assert_eq!(record.trace_id.as_deref(), line["trace_id"].as_str());
        assert_eq!(record.request_id.as_deref(), line["metadata"]["request_id"].as_str());
        assert_eq!(Value::Object(record.attributes.clone().into_map()), line["metadata"]);
        assert_eq!(record.severity >= Severity::WARN, matches!(record.level.as_str(), "WARNING" | "ERROR"));
    }
    let trace = lines[1]["trace_id"].as_str().expect("text");
    let expected = lines.iter().filter(|line| line["trace_id"] == trace).count();
    let found = served.at.json(&format!("/api/v1/query?trace_id={trace}")).await;
    assert_eq!(found["records"].as_array().expect("a list").len(), expected);
}
