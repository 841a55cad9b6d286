//! Logthon's API as its clients use it.

use serde_json::{Value, json};
use service_kit::config::Url;

use crate::support::Served;

/// Returns type and location of FastAPI's problem for an invalid body.
fn problem(answer: &Value) -> (&str, String) {
    let problem = &answer["detail"][0];
    (problem["type"].as_str().expect("a type"), problem["loc"].to_string())
}

#[tokio::test]
async fn every_spelling_takes_a_record() {
    let served = Served::new().await;
    let spellings = [
        "/logs",
        "/logs/",
        "/api/logs",
        "/api/logs/",
        "/api/logs/logs",
        "/api/logs/logs/",
        "/api/logthon/logs",
        "/api/logthon/logs/",
    ];
    for path in spellings {
        let response = served.at.post_to(path, r#"{"service":"x","message":"a"}"#).await;
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(
            response.text().await.expect("a body"),
            r#"{"status":"success","message":"Log entry added"}"#
        );
    }
    assert_eq!(served.at.entries().await.len(), spellings.len());
}

#[tokio::test]
async fn an_entry_has_logthons_six_keys() {
    let served = Served::new().await;
    served
        .at
        .post(r#"{"service":"x","message":"a","metadata":null,"timestamp":"2026-01-01T00:00:00Z"}"#)
        .await;
    let entries = served.at.entries().await;
    let entry = entries[0].as_object().expect("an object");
    assert_eq!(
        entry.keys().collect::<std::collections::BTreeSet<_>>(),
        ["id", "level", "message", "metadata", "service", "timestamp"].map(String::from).iter().collect()
    );
    assert_eq!((&entry["level"], &entry["metadata"]), (&json!("INFO"), &json!({})));
    let timestamp = entry["timestamp"].as_str().expect("text");
    assert_eq!(timestamp.len(), "2026-01-31T12:00:00.000000".len(), "microseconds and no zone: {timestamp}");
    assert!(timestamp.parse::<jiff::civil::DateTime>().is_ok());
}

#[tokio::test]
async fn limits_are_pythons_slices() {
    let served = Served::new().await;
    for n in 0..5 {
        served.at.log(["a", "b"][n % 2], "INFO", &n.to_string()).await;
    }
    let cases = [
        ("", "0 1 2 3 4"),
        ("?limit=2", "3 4"),
        ("?limit=99", "0 1 2 3 4"),
        ("?limit=5000", "0 1 2 3 4"),
        ("?limit=0", "0 1 2 3 4"),
        ("?limit=-2", "2 3 4"),
        ("?limit=-9", ""),
        ("?service=a", "0 2 4"),
        ("?service=a&limit=1", "4"),
        ("?service=b&limit=-1", "3"),
        ("?service=unknown", ""),
        ("?service=unknown&limit=0", ""),
    ];
    for (query, expected) in cases {
        let answer = served.at.json(&format!("/logs{query}")).await;
        let logs = answer["logs"].as_array().expect("a list");
        let found: Vec<_> = logs.iter().map(|entry| entry["message"].as_str().expect("text")).collect();
        assert_eq!(found.join(" "), expected, "{query}");
        assert_eq!(answer["count"], found.len(), "{query}");
    }
    let refused = served.at.get("/logs?limit=ten").await;
    assert_eq!(refused.status(), 422);
    let refused: Value = refused.json().await.expect("JSON");
    assert_eq!(problem(&refused), ("int_parsing", r#"["query","limit"]"#.into()));
    assert_eq!(refused["detail"][0]["input"], "ten");
}

#[tokio::test]
async fn a_long_list_comes_whole_and_in_order() {
    let served = Served::new().await;
    let records = (0..2500).map(|n| event_client::log::LogRecord::new("s", "INFO", n.to_string())).collect();
    served.aggregator.store(records).await.expect("stored");
    let entries = served.at.entries().await;
    assert!(entries.iter().enumerate().all(|(n, entry)| entry["message"].as_str() == Some(&n.to_string())));
    assert_eq!(entries.len(), 2500);
    let last = served.at.json("/logs?limit=2100").await;
    assert_eq!((&last["count"], &last["logs"][0]["message"]), (&json!(2100), &json!("400")));
}

#[tokio::test]
async fn refusals_are_fastapis() {
    let served = Served::new().await;
    let cases = [
        (r#"{"service":"x"}"#, "missing", r#"["body","message"]"#),
        (r#"{"message":"a"}"#, "missing", r#"["body","service"]"#),
        (r#"{"service":"x","message":5}"#, "string_type", r#"["body","message"]"#),
        (r#"{"service":"x","message":"a","level":[7]}"#, "string_type", r#"["body","level"]"#),
        (r#"{"service":"x","message":"a","metadata":[1]}"#, "dict_type", r#"["body","metadata"]"#),
        (r#"[{"service":"x","message":"a"}]"#, "model_attributes_type", r#"["body"]"#),
        ("", "missing", r#"["body"]"#),
    ];
    for (body, kind, place) in cases {
        let response = served.at.post(body).await;
        assert_eq!(response.status(), 422, "{body}");
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(problem(&answer), (kind, place.to_owned()), "{body}");
        let keys: Vec<_> = answer["detail"][0].as_object().expect("an object").keys().cloned().collect();
        assert_eq!(keys, ["input", "loc", "msg", "type"], "{body}");
    }
    let unmarked = served.at.client.post(served.at.url("/logs")).body(r#"{"service":"x","message":"a"}"#);
    let unmarked = unmarked.header("content-type", "text/plain").send().await.expect("an answer");
    assert_eq!(unmarked.status(), 422);
    let zipped = served.at.client.post(served.at.url("/logs")).header("content-type", "application/json");
    let zipped =
        zipped.header("content-encoding", "gzip").body(vec![31, 139, 8]).send().await.expect("an answer");
    assert_eq!(zipped.status(), 415);
    assert_eq!(
        zipped.text().await.expect("text"),
        r#"{"detail":"Content-Encoding \"gzip\" is not supported: send the body without encoding"}"#
    );
    assert!(served.at.entries().await.is_empty());
}

#[tokio::test]
async fn logs_are_cleared_for_one_or_all() {
    let served = Served::new().await;
    for service in ["a", "b", "b"] {
        served.at.log(service, "INFO", "m").await;
    }
    let delete = async |path: &str| {
        let response = served.at.client.delete(served.at.url(path)).send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        response.json::<Value>().await.expect("JSON")
    };
    assert_eq!(
        delete("/logs?service=b").await,
        json!({"status": "success", "message": "Logs cleared for b"})
    );
    assert_eq!(served.at.entries().await.len(), 1);
    assert_eq!(delete("/api/logs?service=never").await["message"], "Logs cleared for never");
    assert_eq!(delete("/logs/").await["message"], "Logs cleared for all services");
    assert!(served.at.entries().await.is_empty());
}

#[tokio::test]
async fn whoever_clears_leaves_a_trace() {
    let served = Served::with(|config| config.announce = true).await;
    served.at.log("a", "INFO", "m").await;
    for (path, whose, records) in [("/logs?service=a", "a", 1), ("/logs", "all services", 2)] {
        let request = served.at.client.delete(served.at.url(path)).header("user-agent", "cleaner/1");
        let request = request.header("x-forwarded-for", "10.0.0.9");
        assert_eq!(request.send().await.expect("an answer").status(), 200);
        let entries = served.at.entries().await;
        let trace = entries.last().expect("a trace");
        assert_eq!((&trace["service"], &trace["level"]), (&json!("logthon"), &json!("WARNING")));
        assert_eq!(trace["message"], format!("Logs cleared for {whose}: {records} records"));
        let fields = &trace["metadata"];
        assert_eq!(
            (&fields["cleared_service"], &fields["cleared_records"]),
            (&json!(whose), &json!(records))
        );
        assert!(fields["client.address"].as_str().expect("text").starts_with("127.0.0.1:"), "{fields}");
        assert_eq!(
            (&fields["user_agent.original"], &fields["forwarded_for"]),
            (&json!("cleaner/1"), &json!("10.0.0.9"))
        );
    }
}

#[tokio::test]
async fn how_things_stand_is_told_in_bounded_space() {
    let served = Served::new().await;
    let name = |n: usize| {
        if n.is_multiple_of(2) { format!("service {n}") } else { format!("{n} {}", "x".repeat(1000)) }
    };
    for chunk in (0..2400).collect::<Vec<_>>().chunks(200) {
        let records =
            chunk.iter().map(|n| event_client::log::LogRecord::new(name(*n), "INFO", "m")).collect();
        served.aggregator.store(records).await.expect("stored");
    }
    for (path, counts) in [("/health", "log_counts"), ("/storage/info", "")] {
        let text = served.at.get(path).await.text().await.expect("text");
        assert!(text.len() < 200_000, "{path}: {} bytes", text.len());
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let counts = if counts.is_empty() { &answer } else { &answer[counts] };
        let count = |value: &Value| value.as_u64().or(value["count"].as_u64()).expect("a number");
        let counts = counts.as_object().expect("an object");
        assert_eq!(counts.values().map(count).sum::<u64>(), 2400, "{path}: every record is counted");
        assert!(counts.contains_key("(others)"), "{path}");
    }
}

#[tokio::test]
async fn how_things_stand_is_told_under_every_spelling() {
    let served = Served::with(|config| {
        config.max_logs.insert("a".into(), 2);
    })
    .await;
    for service in ["a", "a", "b"] {
        served.at.log(service, "INFO", "m").await;
    }
    for prefix in ["", "/api/logs", "/api/logthon"] {
        let health = served.at.json(&format!("{prefix}/health")).await;
        assert_eq!((&health["status"], &health["service"]), (&json!("healthy"), &json!("logthon")));
        assert_eq!(
            (&health["connected_clients"], &health["log_counts"]),
            (&json!(0), &json!({"a": 2, "b": 1}))
        );
        assert!(health["timestamp"].is_string());
    }
    for path in ["/storage/info", "/api/storage/info", "/api/logs/storage/info/"] {
        let expected = json!({
            "a": {"count": 2, "max_size": 2, "is_full": true},
            "b": {"count": 1, "max_size": 1000, "is_full": false},
        });
        assert_eq!(served.at.json(path).await, expected, "{path}");
    }
    for path in ["/websocket/info", "/api/websocket/info"] {
        let expected =
            json!({"active_connections": 0, "max_connections": 100, "connection_limit_reached": false});
        assert_eq!(served.at.json(path).await, expected, "{path}");
    }
}

#[tokio::test]
async fn files_are_handed_on() {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::get;
    let storage = Router::new()
        .route("/files", get(|| async { r#"{"files":[]}"# }).delete(|| async { r#"{"deleted":2}"# }))
        .route(
            "/files/{name}",
            get(|axum::extract::Path(name): axum::extract::Path<String>| async move {
                match name.as_str() {
                    "a b.txt" => Ok(r#"{"content":"hi"}"#),
                    "broken" => Err(StatusCode::BAD_GATEWAY),
                    _ => Err(StatusCode::NOT_FOUND),
                }
            }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, storage).await });
    let served =
        Served::with(|config| config.file_storage_url = Some(Url::new(format!("http://{address}/")))).await;
    assert_eq!(served.at.json("/files").await, json!({"files": []}));
    assert_eq!(served.at.json("/api/logs/files/a%20b.txt").await, json!({"content": "hi"}));
    let missing = served.at.get("/files/none.txt").await;
    assert_eq!(missing.status(), 404);
    assert_eq!(missing.json::<Value>().await.expect("JSON"), json!({"detail": "File 'none.txt' not found"}));
    assert_eq!(served.at.get("/files/broken").await.status(), 500);
    let escape = served.at.get("/files/..%2F..%2Fhealth").await;
    assert_eq!(escape.status(), 404, "a name is a name");
    for name in ["a%09b", "%09", ".%0a.", "%7f", "a%00"] {
        let path = served.at.url(&format!("/files/{name}"));
        let refused = served.at.client.delete(path).send().await.expect("an answer");
        assert_eq!(refused.status(), 400, "{name}");
    }
    let removed = served.at.client.delete(served.at.url("/files")).send().await.expect("an answer");
    assert_eq!(removed.json::<Value>().await.expect("JSON"), json!({"deleted": 2}));
    for url in ["http://app:hunter2@127.0.0.1:1/", "app:hunter2@files", "ftp://app:hunter2@files"] {
        let served = Served::with(|config| config.file_storage_url = Some(Url::new(url))).await;
        let failed = served.at.get("/files").await;
        assert_eq!(failed.status(), 500, "{url}");
        let text = failed.text().await.expect("text");
        assert!(!text.contains("hunter2"), "{text}");
    }
    let none = Served::new().await.at.get("/files").await;
    assert_eq!(none.status(), 500);
    assert!(none.text().await.expect("text").contains("FILE_STORAGE_URL"));
}
