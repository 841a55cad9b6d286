//! Reads the facts about the connected server: its version, its durability, and whether it may evict messages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};

use redis::Value;

use super::codec::{parts, text};
use super::config::Config;
use super::connection::Connection;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::Durability;

/// The oldest server that supports all commands in the scripts.
const OLDEST: (u32, u32) = (7, 0);

/// The facts that were read from the server.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The durability of a confirmed publish.
    pub(super) durability: Durability,
    /// The server keeps data over a restart.
    pub(super) persistent: bool,
}

/// The durability of a confirmed publish by the server's present settings: they can change while it runs, and after a
/// failover another server answers.
#[derive(Debug)]
pub(super) struct Kept(AtomicU8);

impl Kept {
    pub(super) fn new(durability: Durability) -> Self {
        Self(AtomicU8::new(durability as u8))
    }

    /// Whether the server still provides the durability that a message requires.
    pub(super) fn covers(&self, asked: Durability) -> bool {
        asked == Durability::Default || asked as u8 <= self.0.load(Ordering::Relaxed)
    }

    /// Reads the settings again. Where the server does not report them, the last known durability stays.
    pub(super) async fn look(&self, connection: &Connection) -> Result<()> {
        let Some(now) = Facts::durability(connection, &HashMap::new()).await? else { return Ok(()) };
        if self.0.swap(now as u8, Ordering::Relaxed) > now as u8 {
            tracing::warn!(
                durability = name(now),
                "the durability of Redis was reduced: publishes that require more are refused until `appendonly` and `appendfsync` are restored"
            );
        }
        Ok(())
    }
}

impl Facts {
    /// Queries the server; refuses a server that cannot or must not be used.
    pub(super) async fn ask(connection: &Connection, config: &Config) -> Result<Self> {
        let info = match connection.ask(redis::cmd("INFO")).await {
            Ok(info) => parse_info(&info),
            // Without `INFO`, the operator's settings count.
            Err(error) if error.kind() == ErrorKind::Denied => {
                tracing::warn!(
                    "the ACL forbids INFO: version and memory policy of the server are not checked"
                );
                HashMap::new()
            }
            Err(error) => return Err(error),
        };
        check_version(&info)?;
        check_eviction(&info, config)?;
        let told = Self::durability(connection, &info).await?;
        let durability = match (config.durability, told) {
            (Some(word), Some(is)) if word > is => {
                return Err(Error::new(
                    ErrorKind::Config,
                    "the server is less durable than the option `durability` claims; set `appendonly yes` and `appendfsync always` on the server for `fsync`",
                )
                .with("durability", name(word))
                .with("server", name(is)));
            }
            (Some(word), _) => word,
            (None, Some(is)) => is,
            (None, None) => {
                tracing::warn!(
                    "the ACL forbids CONFIG GET and INFO: the server's durability is unknown, so none is promised; set the option `durability`"
                );
                Durability::Default
            }
        };
        if durability == Durability::Default {
            tracing::warn!(
                "Redis keeps no append-only file: confirmed messages are lost when it stops; set `appendonly yes`"
            );
        }
        Ok(Self { durability, persistent: durability > Durability::Default })
    }

    async fn durability(
        connection: &Connection,
        info: &HashMap<String, String>,
    ) -> Result<Option<Durability>> {
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET").arg("append*");
        match connection.ask(ask).await {
            Ok(answer) => {
                let answer = parts(answer);
                let is = |name: &str, value: &str| {
                    answer
                        .chunks(2)
                        .any(|pair| text(&pair[0]) == name && pair.get(1).is_some_and(|v| text(v) == value))
                };
                Ok(Some(if !is("appendonly", "yes") {
                    Durability::Default
                } else if is("appendfsync", "always") {
                    Durability::Fsync
                } else {
                    Durability::PageCache
                }))
            }
            Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Internal) => {
                // Hosted servers hide `CONFIG`; `INFO` reports at least whether an append-only file exists.
                Ok(info
                    .get("aof_enabled")
                    .map(|on| if on == "1" { Durability::PageCache } else { Durability::Default }))
            }
            Err(error) => Err(error),
        }
    }
}

fn name(durability: Durability) -> &'static str {
    match durability {
        Durability::Default => "none",
        Durability::PageCache => "page-cache",
        Durability::Fsync => "fsync",
    }
}

pub(super) fn parse_info(info: &Value) -> HashMap<String, String> {
    let text = match info {
        Value::VerbatimString { text, .. } => text.as_str(),
        other => text(other),
    };
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

fn check_version(info: &HashMap<String, String>) -> Result<()> {
    let Some(version) = info.get("redis_version") else { return Ok(()) };
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let is = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if is >= OLDEST {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, "the server is too old; Redis 7.0 or Valkey 7.2 is needed")
        .with("server_version", version))
}

fn check_eviction(info: &HashMap<String, String>, config: &Config) -> Result<()> {
    let policy = info.get("maxmemory_policy").map_or("noeviction", String::as_str);
    let bounded = info.get("maxmemory").is_some_and(|bytes| bytes != "0");
    if policy == "noeviction" {
        return Ok(());
    }
    if policy.starts_with("allkeys") && bounded && !config.may_evict {
        return Err(Error::new(
            ErrorKind::Config,
            "the server evicts any keys when its memory is full, including streams; set `maxmemory-policy noeviction`, or connect with `eviction=allow`",
        )
        .with("maxmemory_policy", policy));
    }
    tracing::warn!(
        maxmemory_policy = policy,
        "Redis may evict keys of the bus when its memory is full; set `maxmemory-policy noeviction`"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn old_servers_are_refused_by_version() {
        for (version, fits) in [("7.0.15", true), ("8.0.6", true), ("6.2.14", false), ("7.2.4", true)] {
            assert_eq!(check_version(&info(&[("redis_version", version)])).is_ok(), fits, "{version}");
        }
        assert!(check_version(&info(&[])).is_ok());
    }

    #[test]
    fn eviction_of_streams_is_refused_unless_allowed() {
        let read = |url: &str| Config::read(url.parse().unwrap()).unwrap();
        let evicting = info(&[("maxmemory_policy", "allkeys-lru"), ("maxmemory", "1000")]);
        assert!(check_eviction(&evicting, &read("redis://a")).is_err());
        assert!(check_eviction(&evicting, &read("redis://a?eviction=allow")).is_ok());
        let unbounded = info(&[("maxmemory_policy", "allkeys-lru"), ("maxmemory", "0")]);
        assert!(check_eviction(&unbounded, &read("redis://a")).is_ok());
    }
}
