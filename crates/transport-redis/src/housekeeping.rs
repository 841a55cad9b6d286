//! Housekeeping, by the first bus that finds it due: removes old messages that every group has settled, and dead
//! consumers.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::{Pipeline, Value};
use smol_str::SmolStr;

use super::client::Client;
use super::codec::{number, parts, text};
use super::scripts;
use event_transport::backoff::jitter;
use event_transport::bounds;
use event_transport::error::{ErrorKind, Result};
use event_transport::{supervise, telemetry};

/// A consumer that was idle for this number of rounds counts as dead.
const GONE: u32 = 60;

pub(super) fn start(client: &Arc<Client>) {
    let (weak, closing, every) =
        (Arc::downgrade(client), client.closing.clone(), client.config.retention.interval);
    tokio::spawn(supervise::again("redis housekeeping", move || run(weak.clone(), closing.clone(), every)));
}

async fn run(client: Weak<Client>, closing: tokio_util::sync::CancellationToken, every: Duration) {
    let mut reported: Vec<(SmolStr, String)> = Vec::new();
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            () = tokio::time::sleep(jitter(every)) => {}
        }
        let Some(client) = client.upgrade() else { return };
        if let Err(error) = round(&client, &mut reported).await {
            tracing::debug!(%error, "housekeeping failed; the next round tries again");
        }
    }
}

async fn round(client: &Client, reported: &mut Vec<(SmolStr, String)>) -> Result<()> {
    let mut held_back = Vec::new();
    for topic in client.topics().await? {
        if let Some(group) = trim(client, &topic).await? {
            held_back.push((topic.clone(), group));
        }
        remove_consumers(client, &topic).await?;
    }
    for (topic, group) in held_back.iter().filter(|known| !reported.contains(known)) {
        tracing::warn!(
            %topic, group,
            "this group keeps messages beyond their retention: no member reads it, or it is far behind; delete it if it is abandoned"
        );
    }
    metrics::gauge!("event_client_groups_holding_back", telemetry::TRANSPORT => "redis")
        .set(held_back.len() as f64);
    *reported = held_back;
    Ok(())
}

/// Trims a topic's log; returns the group that holds entries back.
async fn trim(client: &Client, topic: &str) -> Result<Option<String>> {
    let config = &client.config;
    let mut command =
        scripts::TRIM.on(&[&client.keys.log(topic), &client.keys.janitor(topic), &client.keys.floors(topic)]);
    command.arg(bounds::millis(config.retention.age)).arg(config.retention.messages);
    // Independent of the number of processes, each topic is trimmed about once a round.
    command.arg(bounds::millis(config.retention.interval) / 2);
    let answer = parts(client.connection.ask(command).await?);
    let Some(held) = answer.get(2) else { return Ok(None) };
    let trimmed = answer.first().map_or(0, number);
    if trimmed > 0 {
        tracing::debug!(topic, trimmed, "old messages were removed");
    }
    Ok(Some(text(held).to_owned()).filter(|group| !group.is_empty()))
}

/// Removes consumers that were idle for long and have nothing pending.
async fn remove_consumers(client: &Client, topic: &str) -> Result<()> {
    let gone = client.config.retention.interval * GONE;
    for group in groups(&info(client, topic).await?) {
        let mut ask = redis::cmd("XINFO");
        ask.arg("CONSUMERS").arg(client.keys.log(topic)).arg(&group);
        let mut pipeline = Pipeline::new();
        for consumer in parts(client.connection.ask(ask).await?) {
            let consumer = parts(consumer);
            let field = |name: &str| {
                consumer.chunks(2).find(|pair| text(&pair[0]) == name).and_then(|pair| pair.get(1))
            };
            let name = field("name").map(text).unwrap_or_default();
            // Only consumers of this library have a lease in their names.
            let ours = name.rsplit_once('.').is_some_and(|(_, lease)| lease.parse::<u64>().is_ok());
            let silent = field("idle").map_or(0, number) as u128 > gone.as_millis();
            if ours && silent && field("pending").map_or(1, number) == 0 {
                let mut command = scripts::LEAVE.on(&[&client.keys.log(topic)]);
                command.arg(&group).arg(name);
                pipeline.add_command(command);
            }
        }
        client.connection.ask_all(&pipeline).await?;
    }
    Ok(())
}

async fn info(client: &Client, topic: &str) -> Result<Value> {
    let mut ask = redis::cmd("XINFO");
    ask.arg("GROUPS").arg(client.keys.log(topic));
    match client.connection.ask(ask).await {
        // The stream does not exist yet.
        Err(error) if error.kind() == ErrorKind::Internal => Ok(Value::Nil),
        answer => answer,
    }
}

fn groups(info: &Value) -> Vec<String> {
    let Value::Array(groups) = info else { return Vec::new() };
    let name = |group: &Value| match group {
        Value::Array(fields) => fields.get(1).map(|name| text(name).to_owned()),
        _ => None,
    };
    groups.iter().filter_map(name).collect()
}
