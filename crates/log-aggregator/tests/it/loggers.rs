//! Lines of common loggers, read as these loggers write them.

use event_client::log::LogRecord;
use jiff::{Timestamp, ToSpan};
use log_aggregator::store::{Order, Query};
use serde_json::{Value, json};

use crate::support::{Served, fixture};

async fn stored(served: &Served) -> Vec<LogRecord> {
    let query = Query { order: Order::Oldest, limit: 1000, ..Query::default() };
    let found = served.aggregator.query(query).await.expect("an answer").records;
    found.into_iter().map(|stored| stored.record).collect()
}

#[tokio::test]
async fn every_loggers_line_is_read_and_nothing_of_it_is_lost() {
    let served = Served::new().await;
    let lines = fixture("loggers/lines.ndjson");
    for case in &lines {
        let line = case["line"].as_str().expect("a line");
        assert_eq!(served.at.post(line).await.status(), 200, "{line}");
    }
    let records = stored(&served).await;
    assert_eq!(records.len(), lines.len());
    for (case, record) in lines.iter().zip(records) {
        let said = |name: &str| case.get(name).and_then(Value::as_str);
        let name = format!("{}: {}", case["logger"], case["line"]);
        assert_eq!(said("service"), Some(record.service.as_str()), "{name}");
        assert_eq!(said("level"), Some(record.level.as_str()), "{name}");
        assert_eq!(case["severity"], record.severity.number(), "{name}");
        assert_eq!(said("message"), Some(record.message.as_str()), "{name}");
        let arrived = record.arrived.expect("it arrived");
        match said("time") {
            Some(time) => assert_eq!(time.parse::<Timestamp>().expect("a time"), record.time, "{name}"),
            None => assert!(record.time <= arrived && record.time > arrived - 1.minute(), "{name}"),
        }
        assert_eq!(said("attributes"), Some(&*record.attributes.to_json()), "{name}");
        let ids = [
            ("trace_id", record.trace_id),
            ("span_id", record.span_id),
            ("request_id", record.request_id),
            ("correlation_id", record.correlation_id),
        ];
        for (id, found) in ids {
            assert_eq!(said(id), found.as_deref(), "{id} of {name}");
        }
        assert_eq!(record.raw, None, "{name}");
    }
}

#[tokio::test]
async fn a_whole_file_of_lines_is_one_body() {
    let served = Served::new().await;
    let lines = fixture("loggers/lines.ndjson");
    let body: Vec<&str> = lines.iter().map(|case| case["line"].as_str().expect("a line")).collect();
    assert_eq!(served.at.post(body.join("\n")).await.status(), 200);
    let found = stored(&served).await;
    let messages: Vec<_> = lines.iter().map(|case| case["message"].as_str().expect("text")).collect();
    assert_eq!(found.iter().map(|record| record.message.as_str()).collect::<Vec<_>>(), messages);
}

#[tokio::test]
async fn every_field_that_is_not_logthons_is_kept_as_it_was_sent() {
    let served = Served::new().await;
    let body = r#"{"zebra": 18446744073709551617, "service":"s", "order_id":9007199254740993, "message":"m",
        "metadata":{"b":1,"a":[0.10,-0, 1E2],"stack":"inner"}, "stack":"at a\nat \u00e9", "10":{"z":null,"a":true},
        "timestamp":"yesterday", "message_2":"x", "order_id":2, "trace_id":{"no":"id"}, "big": 1e999}"#;
    assert_eq!(served.at.post(body).await.status(), 200);
    let expected = r#"{"b":1,"a":[0.10,-0,1E2],"stack":"inner","zebra":18446744073709551617,"order_id":9007199254740993,"stack_2":"at a\nat é","10":{"z":null,"a":true},"timestamp":"yesterday","message_2":"x","order_id_2":2,"trace_id":{"no":"id"},"big":"1e999"}"#;
    for path in ["/logs", "/api/v1/query"] {
        let text = served.at.get(path).await.text().await.expect("text");
        assert!(text.contains(expected), "{path}: {text}");
    }
    let mut tail = served.at.get("/api/v1/tail?backlog=1").await;
    let chunk = tail.chunk().await.expect("a chunk").expect("the record");
    assert!(String::from_utf8_lossy(&chunk).contains(expected), "{chunk:?}");
}

#[tokio::test]
async fn pages_of_records_from_the_future_have_no_gap_and_no_double() {
    let served = Served::new().await;
    for n in 0..7 {
        let body = json!({"service": "s", "message": n.to_string(), "timestamp": format!("{}-01-01T00:00:00Z", 2190 + n)});
        assert_eq!(served.at.post(body.to_string()).await.status(), 200);
    }
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = served.at.json(&format!("/api/v1/query?limit=2&cursor={cursor}")).await;
        let records = page["records"].as_array().expect("a list").clone();
        found.extend(records.iter().map(|record| record["message"].as_str().expect("text").to_owned()));
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    assert_eq!(found, ["6", "5", "4", "3", "2", "1", "0"]);
}

#[tokio::test]
async fn names_are_known_in_every_spelling() {
    let served = Served::new().await;
    let bodies = [
        r#"{"service":"s","severity":"SEVERITY_WARN2","message":"m","traceId":"t","spanId":"sp","requestId":"r","correlationId":"c"}"#,
        r#"{"service":"s","lvl":"WARN+1","msg":"m","trace":{"id":"t"},"span":{"id":"sp"},"req":{"id":"r"},"correlation.id":"c"}"#,
        r#"{"service.name":"s","log.level":"WARN2","message":"m","trace.id":"t","span.id":"sp","request.id":"r","correlation-id":"c"}"#,
        r#"{"service":{"name":"s"},"log":{"level":"warn2"},"Message":"m","TraceID":"t","SpanID":"sp","metadata":{"requestId":"r","correlation_id":"c"}}"#,
        r#"{"service_name":"s","severityText":"Warn2","body":"m","trace_id":"t","span_id":"sp","request_id":"r","correlation_id":"c"}"#,
        r#"{"serviceName":"s","severity_number":14,"event":"m","otelTraceID":"t","otelSpanID":"sp","req_id":"r","correlationID":"c"}"#,
    ];
    for body in bodies {
        assert_eq!(served.at.post(body).await.status(), 200, "{body}");
    }
    for (body, record) in bodies.iter().zip(stored(&served).await) {
        assert_eq!((record.service.as_str(), record.message.as_str()), ("s", "m"), "{body}");
        assert_eq!(record.severity.number(), 14, "{body}");
        let ids = [&record.trace_id, &record.span_id, &record.request_id, &record.correlation_id];
        assert_eq!(ids.map(Option::as_deref), [Some("t"), Some("sp"), Some("r"), Some("c")], "{body}");
    }
}

#[tokio::test]
async fn logthons_own_level_is_answered_as_it_was_sent() {
    let served = Served::new().await;
    let bodies = [
        (r#"{"service":"s","message":"m","level":"BANANA","severity":"ERROR"}"#, "BANANA", 17),
        (r#"{"service":"s","message":"m","level":"[ERROR]"}"#, "[ERROR]", 17),
        (r#"{"service":"s","message":"m","level":50}"#, "50", 17),
        (r#"{"service":"s","message":"m","level":"50"}"#, "50", 17),
        (r#"{"service":"s","message":"m","level":4711}"#, "4711", 9),
        (r#"{"service":"s","message":"m","level":400,"level_name":"ERROR"}"#, "ERROR", 17),
        (r#"{"service":"s","message":"m","priority":"high"}"#, "INFO", 9),
        (r#"{"service":"s","message":"m","severity":"high"}"#, "INFO", 9),
    ];
    for (body, level, severity) in bodies {
        assert_eq!(served.at.post(body).await.status(), 200, "{body}");
        let entry = served.at.json("/logs?limit=1").await["logs"][0].clone();
        assert_eq!(entry["level"], level, "{body}");
        let record = served.at.json("/api/v1/query?limit=1").await["records"][0].clone();
        assert_eq!((&record["level"], &record["severity"]), (&json!(level), &json!(severity)), "{body}");
    }
    let entry = served.at.json("/logs?limit=1").await["logs"][0].clone();
    assert_eq!(entry["metadata"], json!({"severity": "high"}), "an unknown word is kept");
}
