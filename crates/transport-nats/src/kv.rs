//! The state stream: the latest record of each group, attempt, connection and leader, with one subject for each.

use async_nats::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::api::{ApiError, Failure};
use super::client::Client;
use super::codec;
use super::streams::StreamInfo;
use event_transport::error::{Error, ErrorKind, Result};

/// A record with its sequence and time in the state stream.
#[derive(Clone, Debug)]
pub(super) struct Stored<T> {
    pub(super) sequence: u64,
    /// Time of the write by the server's clock.
    pub(super) time: Timestamp,
    pub(super) value: T,
}

/// A message as the API returns it.
#[derive(Deserialize)]
pub(super) struct Raw {
    pub(super) seq: u64,
    #[serde(default)]
    pub(super) subject: String,
    #[serde(default)]
    pub(super) data: String,
    #[serde(default)]
    pub(super) hdrs: Option<String>,
    pub(super) time: Timestamp,
}

#[derive(Deserialize)]
struct Got {
    message: Raw,
}

impl Raw {
    pub(super) fn payload(&self) -> Vec<u8> {
        STANDARD.decode(&self.data).unwrap_or_default()
    }

    /// Returns the headers as raw bytes.
    pub(super) fn header_bytes(&self) -> Vec<u8> {
        self.hdrs.as_ref().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default()
    }

    /// Returns the headers. Bytes that are not UTF-8 are replaced, so that they cannot break a connection.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in String::from_utf8_lossy(&self.header_bytes()).lines().skip(1) {
            if let Some((name, value)) = line.split_once(':')
                && let Ok(name) = name.parse::<async_nats::HeaderName>()
                && let Ok(value) = value.trim().parse::<async_nats::HeaderValue>()
            {
                headers.append(name, value);
            }
        }
        headers
    }
}

/// Reads a message of a stream. `which` is `{"last_by_subj": …}`, `{"seq": …}` or
/// `{"seq": …, "next_by_subj": …}`.
pub(super) async fn read_raw(client: &Client, stream: &str, which: serde_json::Value) -> Result<Option<Raw>> {
    match client.api::<Got>(&format!("STREAM.MSG.GET.{stream}"), &which).await {
        Ok(got) => Ok(Some(got.message)),
        Err(Failure::Api(error)) if error.err_code == 10037 || error.err_code == 10059 => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

/// Reads the record under `subject`.
pub(super) async fn read<T: DeserializeOwned>(client: &Client, subject: &str) -> Result<Option<Stored<T>>> {
    let Some(raw) = read_raw(client, &client.names.state(), json!({ "last_by_subj": subject })).await? else {
        return Ok(None);
    };
    let payload = raw.payload();
    if payload.is_empty() {
        return Ok(None);
    }
    let value = serde_json::from_slice(&payload).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "a record of this library could not be parsed")
            .with("nats_subject", subject)
            .because(error)
    })?;
    Ok(Some(Stored { sequence: raw.seq, time: raw.time, value }))
}

/// Writes a record if its last sequence is `after` (0: none). Returns `None` when another client wrote first.
pub(super) async fn write(
    client: &Client,
    subject: &str,
    value: &impl serde::Serialize,
    after: u64,
) -> Result<Option<u64>> {
    #[derive(Deserialize)]
    struct Ack {
        #[serde(default)]
        seq: u64,
        error: Option<ApiError>,
    }
    let mut headers = HeaderMap::new();
    codec::put(&mut headers, "Nats-Expected-Last-Subject-Sequence", &after.to_string());
    let payload = serde_json::to_vec(value).expect("plain data");
    let bytes = client
        .ask_with_headers(subject.to_owned(), headers, payload.into(), client.config.request_timeout)
        .await?;
    let ack: Ack = serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(ErrorKind::Internal, "the server's confirmation could not be parsed").because(error)
    })?;
    match ack.error {
        None => Ok(Some(ack.seq)),
        Some(error) if error.err_code == 10071 => Ok(None),
        Some(error) => Err(error.into()),
    }
}

/// Removes the records under `filter`.
pub(super) async fn purge(client: &Client, stream: &str, filter: &str) -> Result<()> {
    match client
        .api::<serde_json::Value>(&format!("STREAM.PURGE.{stream}"), &json!({ "filter": filter }))
        .await
    {
        Ok(_) => Ok(()),
        Err(Failure::Api(error)) if error.err_code == 10059 => Ok(()),
        Err(failure) => Err(failure.into()),
    }
}

/// Removes messages under `filter` whose sequence is below `sequence`.
pub(super) async fn purge_below(client: &Client, stream: &str, filter: &str, sequence: u64) -> Result<()> {
    let body = json!({ "filter": filter, "seq": sequence });
    let _: serde_json::Value = client.api(&format!("STREAM.PURGE.{stream}"), &body).await?;
    Ok(())
}

/// Removes one message. Returns whether it existed.
pub(super) async fn delete_message(client: &Client, stream: &str, sequence: u64) -> Result<bool> {
    let body = json!({ "seq": sequence, "no_erase": true });
    match client.api::<serde_json::Value>(&format!("STREAM.MSG.DELETE.{stream}"), &body).await {
        Ok(_) => Ok(true),
        Err(Failure::Api(error))
            if error.code == 404 || error.err_code == 10043 || error.err_code == 10057 =>
        {
            Ok(false)
        }
        Err(failure) => Err(failure.into()),
    }
}

/// Returns the number of messages of each subject under `filter`.
pub(super) async fn subjects(client: &Client, stream: &str, filter: &str) -> Result<Vec<(String, u64)>> {
    let body = json!({ "subjects_filter": filter });
    match client.api::<StreamInfo>(&format!("STREAM.INFO.{stream}"), &body).await {
        Ok(info) => Ok(info.state.subjects.unwrap_or_default().into_iter().collect()),
        Err(Failure::Api(error)) if error.err_code == 10059 => Ok(Vec::new()),
        Err(failure) => Err(failure.into()),
    }
}

/// Returns all records under `filter`, in the order of their subjects.
pub(super) async fn read_all<T: DeserializeOwned>(
    client: &Client,
    filter: &str,
) -> Result<Vec<(String, Stored<T>)>> {
    let subjects = subjects(client, &client.names.state(), filter).await?;
    let mut records = futures_util::stream::iter(subjects)
        .map(|(subject, _)| async move { (read::<T>(client, &subject).await, subject) })
        .buffer_unordered(64);
    let mut all = Vec::new();
    while let Some((record, subject)) = records.next().await {
        // A record that was removed in between is omitted.
        if let Some(record) = record? {
            all.push((subject, record));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}
