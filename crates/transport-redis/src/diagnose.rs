//! Diagnoses the server: version, encryption, access, memory, durability, replicas, clock.

use std::collections::HashMap;

use jiff::Timestamp;

use super::client::Client;
use super::codec::{number, parts};
use super::config::Host;
use super::server_info::parse_info;
use event_transport::Finding;
use event_transport::diagnosis::{clock, plain_text, room};
use event_transport::error::{ErrorKind, Result};
use event_transport::message::Durability;

/// # Errors
/// When the server cannot be queried.
pub(super) async fn diagnose(client: &Client) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let hosts = client.config.server.hosts.iter().map(|host| match host {
        Host::Tcp(name, _) => name.as_str(),
        Host::Socket(_) => "localhost",
    });
    findings.extend(plain_text(client.config.server.tls.is_some(), hosts, "connect with rediss://"));
    match client.connection.ask(redis::cmd("INFO")).await {
        Ok(info) => diagnose_info(&parse_info(&info), &mut findings),
        Err(error) if error.kind() == ErrorKind::Denied => findings.push(Finding::advice(
            "server",
            "the ACL forbids INFO: version, memory and persistence cannot be checked; allow `+info`",
        )),
        Err(error) => return Err(error),
    }
    findings.push(durability(client.facts.durability));
    if client.config.server.password.is_none()
        && matches!(client.config.server.hosts.first(), Some(Host::Tcp(..)))
    {
        findings.push(Finding::advice(
            "access",
            "any client that reaches the server may run any command; set `requirepass` or ACL users there",
        ));
    }
    let before = Timestamp::now();
    let told = parts(client.connection.ask(redis::cmd("TIME")).await?);
    let after = Timestamp::now();
    if let [seconds, micros] = told.as_slice()
        && let Ok(server) = Timestamp::from_microsecond(number(seconds) * 1_000_000 + number(micros))
    {
        findings.push(clock(before, server, after));
    }
    Ok(findings)
}

fn durability(is: Durability) -> Finding {
    match is {
        Durability::Fsync => Finding::good("fsync", "`appendonly yes` and `appendfsync always`"),
        Durability::PageCache => Finding::advice(
            "fsync",
            "confirmed messages reach the disk within a second; if a power failure must lose no message, set `appendfsync always`",
        ),
        Durability::Default => Finding::bad(
            "fsync",
            "the server keeps no append-only file: confirmed messages are lost when it stops; set `appendonly yes`",
        ),
    }
}

fn diagnose_info(info: &HashMap<String, String>, findings: &mut Vec<Finding>) {
    let word = |name: &str| info.get(name).map_or("", String::as_str);
    let count = |name: &str| word(name).parse::<u64>().unwrap_or(0);
    let product = if word("valkey_version").is_empty() { "Redis" } else { "Valkey" };
    let version = if product == "Valkey" { word("valkey_version") } else { word("redis_version") };
    findings.push(Finding::good("version", format!("{product} {version}")));

    let policy = word("maxmemory_policy");
    let evicting = !policy.is_empty() && policy != "noeviction";
    let budget = Some(count("maxmemory")).filter(|bytes| *bytes > 0);
    match (evicting, budget) {
        (true, _) => findings.push(Finding::bad(
            "memory",
            format!("`maxmemory-policy {policy}` may evict keys of the bus; set `noeviction`"),
        )),
        (false, None) => findings.push(Finding::advice(
            "memory",
            "no `maxmemory` is set: the server grows until the system kills it; set it below the machine's memory, then the server refuses publishes with an error instead",
        )),
        (false, Some(_)) => findings.extend(room(
            "memory",
            "bytes",
            count("used_memory"),
            budget,
            "raise `maxmemory`, or lower `retention_age` and `retention_messages`",
        )),
    }
    for (name, what) in [
        ("aof_last_write_status", "the append-only file"),
        ("aof_last_bgrewrite_status", "a rewrite of the append-only file"),
        ("rdb_last_bgsave_status", "a snapshot"),
    ] {
        if !matches!(word(name), "" | "ok") {
            findings.push(Finding::bad(
                "disk",
                format!(
                    "writing {what} failed last time ({name}: {}); check the server's log and its disk",
                    word(name)
                ),
            ));
        }
    }
    let clients = room(
        "limits",
        "clients",
        count("connected_clients"),
        Some(count("maxclients")),
        "raise `maxclients`",
    );
    findings.extend(clients);
    if word("role") != "master" && !word("role").is_empty() {
        findings
            .push(Finding::bad("role", "this server is a replica and refuses writes; connect to its master"));
    } else if count("connected_slaves") > 0 {
        findings.push(Finding::good(
            "replicas",
            format!(
                "{}; replicas lag behind, so a failover may lose messages that were confirmed just before, unless `wait_replicas` is set",
                count("connected_slaves")
            ),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_transport::Severity;

    fn of(pairs: &[(&str, &str)]) -> Vec<(String, Severity)> {
        let info = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut findings = Vec::new();
        diagnose_info(&info, &mut findings);
        findings.into_iter().map(|finding| (finding.check.to_string(), finding.severity)).collect()
    }

    #[test]
    fn a_loss_of_messages_is_bad_and_a_risk_is_advice() {
        let good = [("redis_version", "8.0"), ("maxmemory_policy", "noeviction")];
        assert_eq!(of(&good)[1], ("memory".into(), Severity::Advice));
        let with = |name, value| {
            let mut pairs = good.to_vec();
            pairs.push((name, value));
            of(&pairs)
        };
        assert!(with("aof_last_write_status", "err").contains(&("disk".into(), Severity::Bad)));
        assert!(with("role", "slave").contains(&("role".into(), Severity::Bad)));
        assert!(of(&[("maxmemory_policy", "allkeys-lru")]).contains(&("memory".into(), Severity::Bad)));
        let full = [("maxmemory_policy", "noeviction"), ("maxmemory", "100"), ("used_memory", "95")];
        assert!(of(&full).contains(&("memory".into(), Severity::Bad)));
    }
}
