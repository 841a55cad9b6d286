//! Live viewers, over Logthon's WebSocket and over server-sent events.

use std::time::Duration;

use event_client::log::LogRecord;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::support::{Door, Served};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

const DEADLINE: Duration = Duration::from_secs(60);

async fn watch(door: &Door, path: &str) -> Socket {
    let url = format!("ws://{}{path}", door.address);
    tokio_tungstenite::connect_async(url).await.expect("a handshake").0
}

async fn next(socket: &mut Socket) -> Value {
    loop {
        let message = tokio::time::timeout(DEADLINE, socket.next()).await.expect("in time").expect("open");
        if let Message::Text(text) = message.expect("a frame") {
            return serde_json::from_str(&text).expect("JSON");
        }
    }
}

fn many(count: usize, bytes: usize) -> Vec<LogRecord> {
    (0..count).map(|n| LogRecord::new("bulk", "INFO", format!("{n} {}", "x".repeat(bytes)))).collect()
}

#[tokio::test]
async fn a_viewer_gets_the_newest_and_then_what_comes() {
    let served = Served::with(|config| config.initial_logs = 3).await;
    for n in 0..5 {
        served.at.log("a", "INFO", &n.to_string()).await;
    }
    for path in ["/ws", "/api/logs/ws", "/api/logthon/ws"] {
        let mut socket = watch(&served.at, path).await;
        for n in 2..5 {
            assert_eq!(next(&mut socket).await["message"], n.to_string(), "{path}");
        }
    }
    let mut socket = watch(&served.at, "/ws").await;
    for _ in 0..3 {
        next(&mut socket).await;
    }
    futures_util::SinkExt::send(&mut socket, Message::text("what a viewer says is ignored"))
        .await
        .expect("sent");
    served.at.log("a", "WARN", "live").await;
    let entry = next(&mut socket).await;
    assert_eq!(
        (&entry["message"], &entry["level"], &entry["metadata"]),
        (&json!("live"), &json!("WARN"), &json!({}))
    );
}

#[tokio::test]
async fn over_the_limit_the_handshake_answers_403() {
    let served = Served::with(|config| config.max_viewers = 1).await;
    let first = watch(&served.at, "/ws").await;
    let info = served.at.json("/websocket/info").await;
    assert_eq!(
        info,
        json!({"active_connections": 1, "max_connections": 1, "connection_limit_reached": true})
    );
    let refused = tokio_tungstenite::connect_async(format!("ws://{}/ws", served.at.address)).await;
    match refused.expect_err("one too many") {
        tungstenite::Error::Http(response) => assert_eq!(response.status(), 403),
        other => panic!("{other}"),
    }
    drop(first);
    let free = async || served.at.json("/websocket/info").await["active_connections"] == 0;
    tokio::time::timeout(DEADLINE, async { while !free().await {} }).await.expect("the place is free again");
    watch(&served.at, "/ws").await;
}

#[tokio::test]
async fn one_that_never_reads_costs_the_others_nothing_and_is_told() {
    let served = Served::new().await;
    let mut stalled = watch(&served.at, "/ws").await;
    let mut awake = watch(&served.at, "/ws").await;
    // Far more than Logthon's 7,972, and more than the sockets and the ring can hold together.
    const BULK: usize = 30_000;
    const POSTS: usize = 500;
    let reading = tokio::spawn(async move {
        let (mut seen, mut missed) = (0, 0);
        while seen + missed < BULK + POSTS {
            let entry = next(&mut awake).await;
            match entry["metadata"]["missed"].as_u64() {
                Some(count) => missed += count as usize,
                None => seen += 1,
            }
        }
        seen
    });
    for _ in 0..BULK / 500 {
        served.aggregator.store(many(500, 500)).await.expect("stored");
    }
    for n in 0..POSTS {
        served.at.log("post", "INFO", &n.to_string()).await;
    }
    assert!(reading.await.expect("the other viewer") >= POSTS);
    let (mut seen, mut missed) = (0, 0);
    while seen + missed < BULK + POSTS {
        let entry = next(&mut stalled).await;
        match entry["metadata"]["missed"].as_u64() {
            Some(count) => {
                assert_eq!((&entry["service"], &entry["level"]), (&json!("logthon"), &json!("WARNING")));
                missed += count as usize;
            }
            None => seen += 1,
        }
    }
    assert!(missed > 0 && seen > 0, "{seen} seen, {missed} missed");
    assert_eq!(served.aggregator.count().await.expect("a count"), (BULK + POSTS) as u64);
}

/// Reads server-sent events line by line.
struct Events {
    stream: TcpStream,
    buffer: String,
}

impl Events {
    async fn open(door: &Door, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(door.address).await.expect("a connection");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut events = Self { stream, buffer: String::new() };
        let head = events.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"), "{head}");
        events
    }

    async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.buffer.find(end) {
                let rest = self.buffer.split_off(at + end.len());
                return std::mem::replace(&mut self.buffer, rest);
            }
            let mut bytes = vec![0; 64 * 1024];
            let read = tokio::time::timeout(DEADLINE, self.stream.read(&mut bytes)).await.expect("in time");
            let read = read.expect("a read");
            assert!(read > 0, "the stream ended");
            self.buffer.push_str(std::str::from_utf8(&bytes[..read]).expect("text"));
        }
    }

    /// Returns the next event's name, id and data.
    async fn next(&mut self) -> (String, String, Value) {
        loop {
            let block = self.until("\n\n").await;
            let field = |name: &str| {
                block
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                    .unwrap_or_default()
                    .to_owned()
            };
            let data = field("data");
            if !data.is_empty() {
                return (field("event"), field("id"), serde_json::from_str(&data).expect("JSON"));
            }
        }
    }
}

#[tokio::test]
async fn a_tail_is_filtered_here_and_comes_back_without_a_gap() {
    let served = Served::new().await;
    served.at.log("a", "WARN", "first match").await;
    served.at.log("a", "INFO", "too light").await;
    let path = "/api/v1/tail?service=a&level=warning&text=MATCH&backlog=10";
    let mut events = Events::open(&served.at, path, "").await;
    assert_eq!(events.next().await.2["message"], "first match");
    served.at.log("b", "ERROR", "other service, match").await;
    served.at.log("a", "ERROR", "no such word").await;
    served.at.log("a", "ERROR", "second match").await;
    let (_, id, record) = events.next().await;
    assert_eq!((&record["message"], record["severity"].as_u64()), (&json!("second match"), Some(17)));
    assert_eq!(record["seq"].to_string(), id);
    drop(events);
    served.at.log("a", "ERROR", "third match").await;
    let mut events = Events::open(&served.at, path, &format!("Last-Event-ID: {id}\r\n")).await;
    assert_eq!(events.next().await.2["message"], "third match");
    let mut events = Events::open(&served.at, &format!("{path}&after={id}"), "").await;
    assert_eq!(events.next().await.2["message"], "third match");
    served.at.log("a", "FATAL", "fourth match").await;
    assert_eq!(events.next().await.2["message"], "fourth match");
}

#[tokio::test]
async fn a_tail_that_was_away_too_long_is_told() {
    let served = Served::new().await;
    served.at.log("a", "INFO", "seen").await;
    let mut events = Events::open(&served.at, "/api/v1/tail?backlog=1", "").await;
    let (_, id, _) = events.next().await;
    drop(events);
    for _ in 0..21 {
        served.aggregator.store(many(500, 1)).await.expect("stored");
    }
    let mut events = Events::open(&served.at, "/api/v1/tail", &format!("Last-Event-ID: {id}\r\n")).await;
    assert_eq!(events.next().await, ("dropped".into(), String::new(), json!({"count": null})));
    served.at.log("a", "INFO", "new").await;
    assert_eq!(events.next().await.2["message"], "new");
}

/// Returns the close frame of a WebSocket; skips all frames before it.
async fn parting(socket: &mut Socket) -> (u16, String) {
    loop {
        let message = tokio::time::timeout(DEADLINE, socket.next()).await.expect("in time");
        if let Message::Close(close) = message.expect("no end without a close").expect("a frame") {
            let close = close.expect("a code");
            return (close.code.into(), close.reason.to_string());
        }
    }
}

#[tokio::test]
async fn a_tail_catches_up_with_large_records_in_order() {
    let served = Served::new().await;
    served.at.log("a", "INFO", "seen").await;
    let (_, id, _) = Events::open(&served.at, "/api/v1/tail?backlog=1", "").await.next().await;
    for n in 0..12 {
        let record = LogRecord::new("bulk", "INFO", format!("{n} {}", "x".repeat(900_000)));
        served.aggregator.store(vec![record]).await.expect("stored");
    }
    let mut after = Events::open(&served.at, &format!("/api/v1/tail?after={id}"), "").await;
    let mut backlog = Events::open(&served.at, "/api/v1/tail?backlog=12", "").await;
    for events in [&mut after, &mut backlog] {
        for n in 0..12 {
            let (name, _, record) = events.next().await;
            let begins = record["message"].as_str().is_some_and(|text| text.starts_with(&format!("{n} ")));
            assert!(name.is_empty() && begins, "{n}: {record:.80}");
        }
    }
    served.at.log("a", "INFO", "new").await;
    for events in [&mut after, &mut backlog] {
        assert_eq!(events.next().await.2["message"], "new");
    }
}

#[tokio::test]
async fn viewers_are_sent_home_when_the_server_stops() {
    let mut served = Served::new().await;
    let mut socket = watch(&served.at, "/ws").await;
    let mut events = Events::open(&served.at, "/api/v1/tail", "").await;
    let stopping = served.shutdown.clone();
    stopping.ask("the test says so");
    assert_eq!(parting(&mut socket).await, (1001, "the log aggregator stops".into()));
    // The stream was finished with its last chunk, not interrupted: the shutdown did not wait for it.
    assert!(events.until("0\r\n\r\n").await.ends_with("0\r\n\r\n"));
    let report = served.stop().await;
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn the_last_records_are_refused_when_the_aggregator_has_ended() {
    let served = Served::new().await;
    let mut socket = watch(&served.at, "/ws").await;
    served.aggregator.drain(DEADLINE).await.expect("drained");
    assert_eq!(parting(&mut socket).await.0, 1001);
    let refused = served.at.post(r#"{"service":"a","message":"late"}"#).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
}

#[tokio::test]
async fn a_viewer_that_leaves_is_answered_with_its_code() {
    let served = Served::new().await;
    for code in [tungstenite::protocol::frame::coding::CloseCode::Normal, 4321.into()] {
        let mut socket = watch(&served.at, "/ws").await;
        let close = tungstenite::protocol::CloseFrame { code, reason: "enough".into() };
        socket.close(Some(close)).await.expect("sent");
        assert_eq!(parting(&mut socket).await.0, u16::from(code));
    }
}

#[tokio::test]
async fn a_viewer_that_answers_no_ping_loses_its_place() {
    let served = Served::with(|config| {
        config.max_viewers = 1;
        config.ping = Duration::from_millis(20);
    })
    .await;
    // The client does not read from this socket, so it does not answer pings.
    let mut silent = watch(&served.at, "/ws").await;
    let free = async || served.at.json("/websocket/info").await["active_connections"] == 0;
    tokio::time::timeout(DEADLINE, async { while !free().await {} }).await.expect("the place is free again");
    assert_eq!(parting(&mut silent).await, (1008, "no answer to a ping".into()));
}

#[tokio::test]
async fn a_viewer_that_answers_pings_keeps_its_place() {
    let served = Served::with(|config| config.ping = Duration::from_secs(3)).await;
    let mut socket = watch(&served.at, "/ws").await;
    for _ in 0..3 {
        let message = tokio::time::timeout(DEADLINE, socket.next()).await.expect("in time").expect("open");
        assert!(message.expect("a frame").is_ping());
    }
    served.at.log("a", "INFO", "still there").await;
    assert_eq!(next(&mut socket).await["message"], "still there");
}
