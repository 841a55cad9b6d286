//! Findings about the server: version, encryption, access, JetStream's limits, replicas, durability and clock.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::Failure;
use super::client::Client;
use super::config::{Login, Storage};
use super::durability::keeps_promise;
use super::kv;
use super::streams::{self, Kind};
use event_transport::Finding;
use event_transport::diagnosis::{clock, plain_text, room};
use event_transport::error::{Error, Result};

/// Older servers lack features that save consumers and round trips.
const BETTER: (u32, u32) = (2, 10);

/// JetStream's account as `$JS.API.INFO` reports it. A limit below one means no limit.
#[derive(Deserialize)]
struct Account {
    #[serde(default)]
    storage: u64,
    #[serde(default)]
    memory: u64,
    #[serde(default)]
    streams: u64,
    #[serde(default)]
    consumers: u64,
    #[serde(default)]
    limits: Limits,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Limits {
    max_storage: i64,
    max_memory: i64,
    max_streams: i64,
    max_consumers: i64,
}

/// Returns findings about the server.
///
/// # Errors
/// Fails when a request to the server fails.
pub(super) async fn diagnose(client: &Client) -> Result<Vec<Finding>> {
    let info = client.link.nats.server_info();
    let mut findings = vec![if client.server.at_least(BETTER.0, BETTER.1) {
        Finding::good("version", format!("NATS {}", info.version))
    } else {
        Finding::advice(
            "version",
            format!(
                "NATS {} is supported; from 2.10 on a group with several patterns needs one consumer instead of many",
                info.version
            ),
        )
    }];
    let hosts = client.config.servers.iter().map(|server| host(server));
    findings.extend(plain_text(
        client.config.tls.is_some() || info.tls_required,
        hosts,
        "connect with tls://",
    ));
    if matches!(client.config.login, Login::None) && !info.auth_required {
        findings.push(Finding::advice(
            "access",
            "every client that reaches the server has full access; set users, tokens or keys in its configuration",
        ));
    }
    diagnose_account(client, &mut findings).await?;
    findings.push(diagnose_storage(client, info.cluster.is_some()).await);
    diagnose_durability(client, &mut findings).await?;
    findings.push(if client.config.streams.sync_always {
        Finding::good("fsync", "`sync=always` is set: the server is assumed to run with `sync_interval: always`")
    } else {
        Finding::advice(
            "fsync",
            "confirmed messages reach the disk within the server's `sync_interval` (2 minutes unless set); if a power failure must not lose messages, run the server with `sync_interval: always` and connect with `sync=always`",
        )
    });
    findings.push(match read_clock(client).await {
        Ok((before, server, after)) => clock(before, server, after),
        Err(error) => Finding::advice("clock", format!("the server's clock could not be read: {error}")),
    });
    Ok(findings)
}

async fn diagnose_account(client: &Client, findings: &mut Vec<Finding>) -> Result<()> {
    let account: Account = client.api("INFO", &json!({})).await.map_err(Error::from)?;
    let limit = |limit: i64| u64::try_from(limit).ok();
    let Limits { max_storage, max_memory, max_streams, max_consumers } = account.limits;
    let grow = "raise the account's limit, or lower `max_age` or `max_bytes`";
    findings.extend(
        [
            room("storage", "bytes on disk", account.storage, limit(max_storage), grow),
            room("storage", "bytes in memory", account.memory, limit(max_memory), grow),
            room("limits", "streams", account.streams, limit(max_streams), "raise the account's limit"),
            room("limits", "consumers", account.consumers, limit(max_consumers), "raise the account's limit"),
        ]
        .into_iter()
        .flatten(),
    );
    Ok(())
}

/// Reports storage and replicas of the state stream. All other streams of the namespace use the same settings.
async fn diagnose_storage(client: &Client, clustered: bool) -> Finding {
    let name = Kind::State.name(&client.names);
    let asked: Result<Value, Failure> = client.api(&format!("STREAM.INFO.{name}"), &json!({})).await;
    let (replicas, storage) = match asked {
        Ok(info) => (
            info["config"]["num_replicas"].as_u64().unwrap_or(1),
            info["config"]["storage"].as_str().unwrap_or_default().to_owned(),
        ),
        // The stream does not exist yet, so the options of the URL apply.
        Err(Failure::Api(error)) if error.err_code == 10059 => {
            (client.config.streams.replicas as u64, client.config.streams.storage.as_str().to_owned())
        }
        Err(failure) => return Finding::bad("streams", Error::from(failure).to_string()),
    };
    let text =
        format!("streams are kept in {storage}, {replicas} replica{}", if replicas == 1 { "" } else { "s" });
    if storage == Storage::Memory.as_str() {
        Finding::advice(
            "streams",
            format!("{text}: all messages are lost when the server stops; use `storage=file`"),
        )
    } else if clustered && replicas < 3 {
        Finding::advice(
            "streams",
            format!("{text} in a cluster: one lost machine loses messages; use `replicas=3`"),
        )
    } else {
        Finding::good("streams", text)
    }
}

/// Reports streams of the namespace that confirm messages without keeping them as promised.
async fn diagnose_durability(client: &Client, findings: &mut Vec<Finding>) -> Result<()> {
    let topics = streams::topics(client).await?;
    let kinds = topics.iter().map(|topic| Kind::Topic(topic)).chain([Kind::Dead, Kind::Work]);
    for kind in kinds {
        let (Some(info), _) = streams::compare(client, kind).await? else { continue };
        let name = kind.name(&client.names);
        if let Err(error) = keeps_promise(&client.config, &name, &info.config) {
            findings.push(Finding::bad("durability", error.to_string()));
        }
    }
    Ok(())
}

/// Writes a record, reads the time at which the server stored it, and deletes it.
async fn read_clock(client: &Client) -> Result<(Timestamp, Timestamp, Timestamp)> {
    streams::ensure(client, Kind::State).await?;
    let subject = client.names.record("clock", &client.id);
    let before = Timestamp::now();
    kv::write(client, &subject, &(), 0).await?;
    let after = Timestamp::now();
    let stored = kv::read::<()>(client, &subject).await;
    kv::purge(client, &client.names.state(), &subject).await?;
    let time = stored?.map(|stored| stored.time).ok_or_else(|| {
        Error::new(
            event_transport::ErrorKind::Unavailable,
            "the record that was just written cannot be found",
        )
    })?;
    Ok((before, time, after))
}

/// Returns `host` of `nats://host:4222`.
fn host(server: &str) -> &str {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => rest.split_once(':').map_or(rest, |(host, _)| host),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn hosts_are_found_in_addresses() {
        for (server, host) in
            [("nats://a:1", "a"), ("tls://u:p@b.c:1", "b.c"), ("nats://[::1]:4222", "::1"), ("d", "d")]
        {
            assert_eq!(super::host(server), host);
        }
    }
}
