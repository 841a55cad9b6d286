//! Tests the NATS transport against real servers: refused input, foreign messages, and the view of other
//! clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use event_client::subject::Group;
use event_client::transport::{DeadLetter, DeadLetterFilter, Transport};
use test_servers::{Generation, Nats};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::broker::{group, message, open, refused};

mod batches;
mod durability;
mod foreign;
mod logins;
mod micro;
mod refusals;
mod removed;
mod rights;
mod unreadable;

/// The shared server with a namespace that only this test uses.
async fn shared() -> (String, String) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let namespace = format!("it-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let server = Nats::shared(Generation::Old).await;
    (format!("{}?namespace={namespace}", server.url()), namespace)
}

/// A plain client, without this library.
async fn plain(url: &str) -> async_nats::Client {
    async_nats::connect(url.split('?').next().expect("a URL")).await.expect("connected")
}

/// Waits until a group has `count` dead letters, and returns them.
async fn letters(bus: &Arc<dyn Transport>, name: &str, count: usize) -> Vec<DeadLetter> {
    let filter = DeadLetterFilter { group: Some(Group::new(name).expect("a group")), ..Default::default() };
    loop {
        let letters = bus.admin().dead_letters(filter.clone()).await.expect("listed");
        if letters.len() >= count {
            assert_eq!(letters.len(), count, "{letters:?}");
            return letters;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Publishes a message with raw header bytes that every client library would refuse.
async fn write(url: &str, subject: &str, headers: &[u8], payload: &[u8]) {
    let address = url.split("://").nth(1).and_then(|rest| rest.split('?').next()).expect("an address");
    let mut stream = BufReader::new(TcpStream::connect(address).await.expect("connected"));
    let mut line = br#"CONNECT {"verbose":false,"headers":true,"lang":"bytes","version":"1"}"#.to_vec();
    line.extend_from_slice(b"\r\nHPUB ");
    line.extend_from_slice(subject.as_bytes());
    line.extend_from_slice(format!(" {} {}\r\n", headers.len(), headers.len() + payload.len()).as_bytes());
    line.extend_from_slice(headers);
    line.extend_from_slice(payload);
    line.extend_from_slice(b"\r\nPING\r\n");
    stream.write_all(&line).await.expect("written");
    let mut answer = String::new();
    while !answer.contains("PONG") {
        answer.clear();
        assert!(stream.read_line(&mut answer).await.expect("an answer") > 0, "the server hung up");
        assert!(!answer.starts_with("-ERR"), "{answer}");
    }
}
