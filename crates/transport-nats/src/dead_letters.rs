//! Dead letters: a stream of copies of rejected messages with the reason of each, and their replay to the group.

use std::sync::{Arc, OnceLock};

use async_nats::HeaderMap;
use jiff::Timestamp;
use serde_json::json;
use smol_str::{SmolStr, format_smolstr};

use super::client::Client;
use super::codec;
use super::group::consumer::{self, Durable};
use super::group::{Groups, Record, StartAt};
use super::kv::{self, Raw};
use super::names;
use super::streams::{self, Kind};
use event_transport::delivery::{DeliveryInfo, Reason, Rejection};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::{Message, MessageId};
use event_transport::subject::{Group, Subject};
use event_transport::{DeadLetter, DeadLetterFilter, Provision, headers};

/// A message that a group gave up, with data about its deliveries.
pub(super) struct DeadLettering {
    pub(super) message: Arc<Message>,
    pub(super) info: DeliveryInfo,
    /// Unix milliseconds of the first attempt.
    pub(super) first_ms: i64,
    /// The dedup id, equal for every attempt to store this dead letter.
    pub(super) id: String,
}

/// The dead letters of all groups.
pub(super) struct DeadLetters {
    pub(super) client: Arc<Client>,
    pub(super) groups: Arc<Groups>,
    /// Set once the stream of dead letters is known to exist.
    ready: OnceLock<()>,
}

impl DeadLetters {
    pub(super) fn new(groups: &Arc<Groups>) -> Arc<Self> {
        Arc::new(Self { client: groups.client.clone(), groups: groups.clone(), ready: OnceLock::new() })
    }

    /// Stores a copy of a message that `group` gave up. Returns when the server has confirmed the copy.
    pub(super) async fn store(
        &self,
        group: &Group,
        dead_lettering: &DeadLettering,
        rejection: Rejection,
    ) -> Result<()> {
        let client = &self.client;
        if self.ready.get().is_none() {
            streams::ensure(client, Kind::Dead).await?;
            let _ = self.ready.set(());
        }
        let message = &dead_lettering.message;
        let mut headers = codec::headers(message);
        let mut put = |name: &str, value: &str| codec::put(&mut headers, name, value);
        put(headers::SUBJECT, message.subject.as_str());
        put(headers::DLQ_GROUP, group.as_str());
        put(headers::DLQ_REASON, rejection.reason.as_str());
        put(headers::DLQ_ERROR, &headers::escape(&rejection.error).to_string());
        put(headers::DLQ_ATTEMPTS, &dead_lettering.info.attempt.to_string());
        if let Some(at) = dead_lettering.info.published_at {
            put(headers::PUBLISHED, &headers::millis(at));
        }
        put(headers::FIRST_ATTEMPT, &dead_lettering.first_ms.to_string());
        if let Some(position) = dead_lettering.info.position {
            put(codec::POSITION, &position.to_string());
        }
        // With this id, a dead letter that is sent twice is stored once.
        put(codec::DEDUP_ID, &dead_lettering.id);
        let subject = client.names.dead_letter(group, message.subject.topic());
        let store = || client.outbound.store(subject.clone(), headers.clone(), message.payload.clone());
        match store().await {
            // No responder: the stream may have been deleted.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                streams::ensure(client, Kind::Dead).await?;
                store().await.map(drop)
            }
            stored => stored.map(drop),
        }
    }

    /// Returns the letters that match `filter`, oldest first.
    pub(super) async fn letters(&self, filter: &DeadLetterFilter) -> Result<Vec<(DeadLetter, Raw)>> {
        let stream = self.client.names.dead();
        let subject = match &filter.group {
            Some(group) => self.client.names.dead_letters_of(group),
            None => format!("{}.dlq.>", self.client.config.namespace),
        };
        let limit = if filter.limit == 0 { usize::MAX } else { filter.limit };
        let mut letters = Vec::new();
        let mut next = 1;
        while letters.len() < limit {
            let which = json!({ "seq": next, "next_by_subj": subject });
            let Some(raw) = kv::read_raw(&self.client, &stream, which).await? else { break };
            next = raw.seq + 1;
            if let Some(letter) = letter(&raw)
                && chosen(&letter, filter)
            {
                letters.push((letter, raw));
            }
        }
        Ok(letters)
    }

    /// Sends letters to their groups again. When one of the groups does not exist, no letter is sent.
    pub(super) async fn replay(&self, filter: &DeadLetterFilter) -> Result<u64> {
        let letters = self.letters(filter).await?;
        let mut groups: Vec<&Group> = letters.iter().map(|(letter, _)| &letter.group).collect();
        groups.sort();
        groups.dedup();
        for group in &groups {
            if self.groups.group(group).await?.is_none() {
                return Err(
                    Error::new(ErrorKind::NotFound, "no group of this name exists").with("group", group)
                );
            }
        }
        for group in groups {
            self.open_replays(group).await?;
        }
        let mut count = 0;
        for (letter, raw) in &letters {
            let mut headers = HeaderMap::new();
            for (name, values) in raw.headers().iter() {
                let name: &str = name.as_ref();
                if !name.starts_with("bus-dlq-") && !name.eq_ignore_ascii_case(codec::DEDUP_ID) {
                    values.iter().for_each(|value| codec::put(&mut headers, name, value.as_str()));
                }
            }
            codec::put(&mut headers, headers::REPLAYED, "1");
            codec::put(&mut headers, codec::DEDUP_ID, &format!("replay/{}/{}", raw.seq, raw.time));
            // Stored before the delete: after a crash in between, a second replay is harmless because of the dedup
            // id.
            let subject = self.client.names.replayed(&letter.group);
            self.client.outbound.store(subject, headers, raw.payload().into()).await?;
            kv::delete_message(&self.client, &self.client.names.dead(), raw.seq).await?;
            count += 1;
        }
        if count > 0 {
            streams::tell_news(&self.client);
        }
        Ok(count)
    }

    /// Deletes the letters that match `filter` and returns their number.
    pub(super) async fn drop_letters(&self, filter: &DeadLetterFilter) -> Result<u64> {
        let mut count = 0;
        for (_, raw) in self.letters(filter).await? {
            count += u64::from(kv::delete_message(&self.client, &self.client.names.dead(), raw.seq).await?);
        }
        Ok(count)
    }

    /// Records that the group has replayed letters, so that its members fetch them.
    async fn open_replays(&self, group: &Group) -> Result<()> {
        loop {
            let Some(stored) = self.groups.group(group).await? else { return Ok(()) };
            ensure_replays(&self.client, group, &stored.value).await?;
            if stored.value.replays {
                return Ok(());
            }
            let next = Record { replays: true, ..stored.value };
            if kv::write(&self.client, &self.groups.group_subject(group), &next, stored.sequence)
                .await?
                .is_some()
            {
                return Ok(());
            }
        }
    }

    /// Returns the number of dead letters of a group.
    pub(super) async fn count(&self, group: &Group) -> Result<u64> {
        let subjects =
            kv::subjects(&self.client, &self.client.names.dead(), &self.client.names.dead_letters_of(group))
                .await?;
        Ok(subjects.iter().map(|(_, count)| count).sum())
    }
}

/// Returns the original message of a copy and fills `info` with its position and publication time.
pub(super) fn copy(headers: &HeaderMap, payload: bytes::Bytes, info: &mut DeliveryInfo) -> Option<Message> {
    let original = original(headers, payload)?;
    info.position = codec::get(headers, codec::POSITION).and_then(|text| text.parse().ok());
    if let Some(at) = codec::get(headers, headers::PUBLISHED).and_then(headers::time) {
        info.published_at = Some(at);
    }
    info.replayed = true;
    Some(original)
}

fn original(headers: &HeaderMap, payload: bytes::Bytes) -> Option<Message> {
    let subject = Subject::new(codec::get(headers, headers::SUBJECT)?).ok()?;
    let position = codec::get(headers, codec::POSITION).unwrap_or_default();
    let id = || MessageId::Text(format_smolstr!("{subject}/{position}"));
    Some(codec::message(Some(headers), payload, subject.clone(), id))
}

/// Creates the stream for replayed letters and, unless the group is keyed, the group's consumer in it.
pub(super) async fn ensure_replays(client: &Client, group: &Group, record: &Record) -> Result<()> {
    streams::ensure(client, Kind::Work).await?;
    if record.keyed {
        return Ok(()); // the leader of a keyed group reads the stream without a consumer, see `keyed/`
    }
    let durable = Durable {
        stream: &client.names.work(),
        name: &names::consumer(group, 0),
        filters: &[client.names.replayed(group)],
        from: &StartAt::All,
        lease: record.lease(),
        most_pending: consumer::most_pending(client),
    };
    consumer::put(client, durable, Provision::Create).await.map(drop)
}

/// Decodes a dead letter from a message that the API returned.
fn letter(raw: &Raw) -> Option<DeadLetter> {
    let headers = raw.headers();
    let message = original(&headers, raw.payload().into())?;
    let get = |name| codec::get(&headers, name);
    let group = Group::new(get(headers::DLQ_GROUP)?).ok()?;
    let reason = Reason::ALL.into_iter().find(|reason| Some(reason.as_str()) == get(headers::DLQ_REASON));
    let id = SmolStr::new(raw.seq.to_string());
    let mut letter = DeadLetter::new(id, group, message, reason.unwrap_or(Reason::Permanent), raw.time);
    letter.error = get(headers::DLQ_ERROR).map(headers::unescape).unwrap_or_default();
    letter.attempts = get(headers::DLQ_ATTEMPTS).and_then(|text| text.parse().ok()).unwrap_or(0);
    let time = |name| get(name).and_then(headers::time).map(|at: Timestamp| at.min(raw.time));
    letter.published_at = time(headers::PUBLISHED).unwrap_or(raw.time);
    letter.first_attempt_at = time(headers::FIRST_ATTEMPT).unwrap_or(raw.time);
    Some(letter)
}

fn chosen(letter: &DeadLetter, filter: &DeadLetterFilter) -> bool {
    (filter.ids.is_empty() || filter.ids.contains(&letter.id))
        && filter.group.as_ref().is_none_or(|group| *group == letter.group)
        && filter.subject.as_ref().is_none_or(|pattern| pattern.matches(&letter.message.subject))
        && filter.reason.is_none_or(|reason| reason == letter.reason)
}
