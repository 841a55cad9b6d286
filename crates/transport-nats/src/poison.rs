//! Finds messages of other clients that cannot be delivered: their subject is invalid, or the client cannot parse
//! them.
//!
//! The server accepts header bytes that the client library reads as the end of the protocol: the client drops the
//! connection and reconnects, and the message is delivered again when its lease ends, before all later ones. So after
//! a disconnect that the server did not cause, the messages in transit are checked through JetStream's API, whose
//! replies carry headers as base64. A message that cannot be parsed becomes a dead letter, and the group continues.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderName, StatusCode};
use futures_util::StreamExt;
use serde_json::json;
use tokio::time::Instant;

use super::attempts::{self, Attempt};
use super::client::Client;
use super::codec;
use super::dead_letters::{DeadLettering, DeadLetters};
use super::group::consumer;
use super::kv::{self, Raw};
use super::member::Member;
use super::names::Names;
use super::source::Source;
use event_transport::delivery::{DeliveryInfo, Reason, Rejection};
use event_transport::error::Result;
use event_transport::message::{Message, MessageId, Position};
use event_transport::subject::{Group, Subject};

/// Largest number of messages of one consumer that are checked after one disconnect. The next one continues after
/// them.
const MOST: u64 = 4096;
/// Number of messages that are checked at a time.
const AT_ONCE: usize = 64;

/// The disconnects that a subscription has recorded.
#[derive(Default)]
pub(super) struct Disconnects {
    server: String,
    last: Option<Instant>,
    /// Sequence up to which each stream is known to be readable.
    read_to: HashMap<String, u64>,
}

impl Disconnects {
    pub(super) fn new(client: &Client) -> Self {
        Self { server: client.link.nats.server_info().server_id, ..Self::default() }
    }

    /// Records a reconnect. Returns whether the server is the same as before, or the connection also broke recently.
    pub(super) fn are_odd(&mut self, client: &Client, lease: Duration) -> bool {
        let now = Instant::now();
        let server = client.link.nats.server_info().server_id;
        let before = self.last.replace(now);
        let soon = before.is_some_and(|before| now < before + lease * 2);
        std::mem::replace(&mut self.server, server.clone()) == server || soon
    }

    /// Stores unreadable messages among those that a consumer has delivered as dead letters. Returns their number.
    pub(super) async fn dead_letter_poison(
        &mut self,
        member: &Arc<Member>,
        source: &Arc<Source>,
    ) -> Result<usize> {
        let client = &member.client;
        let Some(info) = consumer::info(client, &source.stream, &source.consumer).await? else {
            return Ok(0);
        };
        let read_to = self.read_to.entry(source.stream.to_string()).or_default();
        let first = info.ack_floor.stream_seq.max(*read_to) + 1;
        let last = info.delivered.stream_seq.min(first.saturating_add(MOST));
        if info.num_ack_pending == 0 || last < first {
            return Ok(0);
        }
        let unseen = (first..=last).filter(|sequence| member.in_flight().at(source, *sequence).is_none());
        let unseen: Vec<u64> = unseen.collect();
        let mut looks = futures_util::stream::iter(unseen)
            .map(|sequence| kv::read_raw(client, &source.stream, json!({ "seq": sequence })))
            .buffered(AT_ONCE);
        let mut found = Vec::new();
        while let Some(raw) = looks.next().await {
            if let Some(raw) = raw?
                && let Some(why) = defect(&raw)
            {
                found.push((raw, why));
            }
        }
        for (raw, why) in &found {
            let message = original(&client.names, &source.stream, raw);
            dead_letter(member, source, raw.seq, raw.time, message, why).await?;
        }
        *read_to = last;
        Ok(found.len())
    }
}

/// Returns the reason why the client cannot parse the message. The rules are those of the client.
pub(super) fn defect(raw: &Raw) -> Option<&'static str> {
    if raw.subject.contains('\u{fffd}') {
        return Some("its subject is not UTF-8");
    }
    let bytes = raw.header_bytes();
    if bytes.is_empty() {
        return None;
    }
    let Ok(text) = str::from_utf8(&bytes) else { return Some("its headers are not UTF-8") };
    let mut lines = text.lines();
    let Some(status) = lines.next().and_then(|line| line.strip_prefix("NATS/1.0")) else {
        return Some("its headers do not begin with NATS/1.0");
    };
    let status = status.trim().split_once(' ').map_or(status.trim(), |(status, _)| status.trim());
    if !status.is_empty() && status.parse::<StatusCode>().is_err() {
        return Some("the status in front of its headers is none");
    }
    let mut first = true;
    for line in lines.filter(|line| !line.is_empty()) {
        // A line that begins with white space continues the previous one.
        if !std::mem::take(&mut first) && line.starts_with(char::is_whitespace) {
            continue;
        }
        match line.split_once(':') {
            None => return Some("a line of its headers has no colon"),
            Some((name, _)) if name.parse::<HeaderName>().is_err() => {
                return Some("a name among its headers breaks the rules");
            }
            Some(_) => {}
        }
    }
    None
}

/// Builds a message from the readable parts.
fn original(names: &Names, stream: &str, raw: &Raw) -> Message {
    let id = || MessageId::Text(format!("{stream}/{}", raw.seq).into());
    let subject = codec::subject(names, &raw.subject).unwrap_or_else(|| topic_of(names, stream));
    codec::message(Some(&raw.headers()), raw.payload().into(), subject, id)
}

/// Returns a subject for a message whose own is invalid.
pub(super) fn topic_of(names: &Names, stream: &str) -> Subject {
    let topic = names.topic(stream).unwrap_or("unknown");
    Subject::new(topic).unwrap_or_else(|_| Subject::new("unknown").expect("a subject"))
}

/// Stores a dead letter for the group, then settles the message; once, by the first member that finds it.
pub(super) async fn dead_letter(
    member: &Member,
    source: &Arc<Source>,
    sequence: u64,
    time: jiff::Timestamp,
    message: Message,
    why: &str,
) -> Result<()> {
    let client = &member.client;
    let record = attempts::subject(&client.names, source, sequence);
    let buried = kv::read::<Attempt>(client, &record).await?.is_some_and(|stored| stored.value.error == why);
    if !buried {
        // The server reads only the sequence.
        let ack = format!(
            "$JS.ACK.{}.{}.1.{sequence}.1.{}.0",
            source.stream,
            source.consumer,
            time.as_nanosecond()
        );
        let id = format!(
            "dlq/{}/{}/{sequence}/{}/unreadable",
            source.stream,
            source.consumer,
            time.as_nanosecond()
        );
        let first = store(&member.dead_letters, &member.group, sequence, time, message, id, why).await?;
        let mark = Attempt { delivered: 1, attempts: 1, due: 0, first, error: why.into() };
        kv::write(client, &record, &mark, 0).await?;
        let until = tokio::time::Instant::now() + client.config.request_timeout;
        client.outbound.ask(ack.into(), None, codec::ACK, until).await?;
    }
    Ok(())
}

/// Stores a dead letter of a message that the API returned. `id` is the same for every attempt to store it.
pub(super) async fn bury_raw(
    dead_letters: &DeadLetters,
    group: &Group,
    stream: &str,
    raw: &Raw,
    id: String,
    why: &str,
) -> Result<()> {
    let message = original(&dead_letters.client.names, stream, raw);
    store(dead_letters, group, raw.seq, raw.time, message, id, why).await.map(drop)
}

/// Stores a dead letter and logs it. Returns the time in Unix milliseconds.
async fn store(
    dead_letters: &DeadLetters,
    group: &Group,
    sequence: u64,
    time: jiff::Timestamp,
    message: Message,
    id: String,
    why: &str,
) -> Result<i64> {
    let mut info = DeliveryInfo::new(1);
    info.position = Some(Position(u128::from(sequence)));
    info.published_at = Some(time);
    let subject = message.subject.clone();
    let now = jiff::Timestamp::now().as_millisecond();
    let dead_lettering = DeadLettering { message: Arc::new(message), info, first_ms: now, id };
    dead_letters.store(group, &dead_lettering, Rejection::new(Reason::Undecodable, why)).await?;
    tracing::warn!(
        %group, %subject, position = sequence, error = why,
        "a message of another client cannot be read; it was stored as a dead letter"
    );
    metrics::counter!("event_client_unreadable_total", "transport" => "nats").increment(1);
    Ok(now)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    fn raw(headers: &[u8]) -> Raw {
        let body = json!({
            "subject": "shop.evt.orders.a", "seq": 7, "hdrs": STANDARD.encode(headers), "time": "2026-01-01T00:00:00Z",
        });
        serde_json::from_value(body).expect("as the API returns it")
    }

    #[test]
    fn what_breaks_the_client_is_known() {
        for good in [
            &b""[..],
            b"NATS/1.0\r\n\r\n",
            b"NATS/1.0\r\nA: b\r\n c\r\nD:\r\n\r\n",
            b"NATS/1.0 503 no\r\n\r\n",
        ] {
            assert_eq!(defect(&raw(good)), None, "{}", String::from_utf8_lossy(good));
        }
        for bad in [
            &b"NATS/1.0\r\nA: \xff\r\n\r\n"[..],
            b"HTTP/1.1\r\n\r\n",
            b"NATS/1.0 odd\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
        ] {
            assert!(defect(&raw(bad)).is_some(), "{}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_looked_at(bytes: Vec<u8>) {
            let raw = raw(&bytes);
            let _ = (defect(&raw), raw.headers());
        }
    }
}
