//! Invalid requests: each gets a clear error response and affects no other request.

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::Served;

async fn detail(response: reqwest::Response) -> String {
    let body: Value = response.json().await.expect("JSON");
    match &body["detail"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[tokio::test]
async fn bodies_that_are_no_record_are_refused_and_the_next_is_taken() {
    let served = Served::new().await;
    let deep = format!(
        r#"{{"service":"x","message":"a","metadata":{{"k":{}{}}}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let cases: [(&[u8], &str); 8] = [
        (b"hello", "JSON decode error"),
        (b"{", "JSON decode error"),
        (b"{\"service\":\"x\"", "JSON decode error"),
        (b"\xff\xfe\x00", "JSON decode error"),
        (b"null", "valid dictionary or object"),
        (b"\"text\"", "valid dictionary or object"),
        (b"{\"service\":{\"a\":1},\"message\":[]}", "valid string"),
        (deep.as_bytes(), "nested deeper than 64 levels"),
    ];
    for (body, expected) in cases {
        let response = served.at.post(body).await;
        assert_eq!(response.status(), 422);
        let text = detail(response).await;
        assert!(text.contains(expected), "{text:.300}");
        served.at.log("x", "INFO", "fine").await;
    }
    assert_eq!(served.at.entries().await.len(), cases.len());
}

#[tokio::test]
async fn too_large_is_413_whether_announced_or_not() {
    let served = Served::with(|config| config.max_body = 1000).await;
    let body = format!(r#"{{"service":"x","message":"{}"}}"#, "x".repeat(1000));
    let response = served.at.post(body.clone()).await;
    assert_eq!(response.status(), 413);
    assert_eq!(detail(response).await, "the body is larger than 1000 bytes: send a smaller one");
    // In chunks, without an announced total length.
    let mut stream = tokio::net::TcpStream::connect(served.at.address).await.expect("a connection");
    let head = "POST /logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    stream
        .write_all(format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes())
        .await
        .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let fits = format!(r#"{{"service":"x","message":"{}"}}"#, "x".repeat(900));
    assert_eq!(served.at.post(fits).await.status(), 200);
}

#[tokio::test]
async fn a_refusal_reaches_a_sender_of_far_too_much() {
    let served = Served::new().await;
    let body = vec![b'x'; 8 * 1024 * 1024];
    for more in ["", "Content-Encoding: gzip\r\n"] {
        let status = if more.is_empty() { "413" } else { "415" };
        let mut stream = tokio::net::TcpStream::connect(served.at.address).await.expect("a connection");
        let head = format!(
            "POST /logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{more}Connection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&body).await.expect("the whole body is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer, and no reset");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    served.at.log("x", "INFO", "fine").await;
}

#[tokio::test]
async fn a_sender_that_dawdles_is_told_and_blocks_nobody() {
    let served = Served::with(|config| config.body_timeout = std::time::Duration::from_millis(200)).await;
    let mut stream = tokio::net::TcpStream::connect(served.at.address).await.expect("a connection");
    let head = "POST /logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.expect("sent");
    served.at.log("x", "INFO", "meanwhile").await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn questions_that_make_no_sense_say_which_part() {
    let served = Served::new().await;
    for (path, expected) in [
        ("/api/v1/query?level=loud", "level has to be"),
        ("/api/v1/query?limit=0", "limit has to be a whole number from 1 to 10000"),
        ("/api/v1/query?limit=99999", "limit has to be"),
        ("/api/v1/query?since=yesterday", "since has to be a time"),
        ("/api/v1/query?cursor=abc", "cursor is not valid"),
        ("/api/v1/query?sevrice=a", "unknown parameter \"sevrice\""),
        ("/api/v1/tail?backlog=many", "limit has to be"),
        ("/api/v1/tail?after=x", "after has to be the number of a record"),
    ] {
        let response = served.at.get(path).await;
        assert_eq!(response.status(), 400, "{path}");
        let text = detail(response).await;
        assert!(text.contains(expected), "{path}: {text}");
    }
    for since in ["0", "-1", "1767225600", "1767225600000", "2026-01-01T00:00:00Z", "2026-01-01%2000:00:00,5"]
    {
        assert_eq!(served.at.get(&format!("/api/v1/query?since={since}")).await.status(), 200, "{since}");
    }
    let method = served.at.client.put(served.at.url("/logs")).send().await.expect("an answer");
    assert_eq!(method.status(), 405);
    for (path, status, expected) in [
        ("/nothing", 404, "Not Found"),
        ("/api/v1/query?limit=1&limit=2", 400, "the parameter \"limit\" is given more than once"),
        ("/api/v1/query?since=1&since=2", 400, "\"since\" is given more than once"),
        ("/logs?limit=1&limit=2", 400, "\"limit\" is given more than once"),
        ("/logs?service=a&service=b", 400, "\"service\" is given more than once"),
        ("/files/%ff", 400, "UTF-8"),
        ("/ws", 400, "upgrade"),
    ] {
        let response = served.at.get(path).await;
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(response.headers()["content-type"], "application/json", "{path}");
        let text = detail(response).await;
        assert!(text.contains(expected), "{path}: {text}");
    }
    assert_eq!(served.at.get("/api/v1/query?service=a&service=b&text=a&text=b").await.status(), 200);
}

#[tokio::test]
async fn strange_but_sound_records_read_back() {
    let served = Served::new().await;
    let long = "y".repeat(500_000);
    let records = [
        serde_json::json!({"service": "", "message": "", "level": ""}),
        serde_json::json!({"service": "a\u{0}b", "message": "\u{0}\u{202e}😀", "metadata": {"": {"": []}}}),
        serde_json::json!({"service": "s".repeat(10_000), "message": long}),
        serde_json::json!({"service": "n", "message": "m", "metadata": {"big": u64::MAX, "small": i64::MIN, "tiny": 5e-324}}),
        serde_json::json!({"service": "f", "message": "m", "metadata": (0..2000).map(|n| (format!("k{n}"), n.into())).collect::<serde_json::Map<_, _>>()}),
    ];
    for record in &records {
        assert_eq!(served.at.post(record.to_string()).await.status(), 200);
    }
    for (record, entry) in records.iter().zip(served.at.entries().await) {
        assert_eq!((&entry["service"], &entry["message"]), (&record["service"], &record["message"]));
        if let Some(metadata) = record.get("metadata") {
            assert_eq!(&entry["metadata"], metadata);
        }
    }
}
