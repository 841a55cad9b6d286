//! Parses and checks the options of a `memory:` URL.

use std::time::Duration;

use super::log::OVERHEAD;
use crate::Provision;
use crate::bounds::LONGEST;
use crate::error::{Error, ErrorKind, Result};
use crate::url::BusUrl;

/// Options and limits of one bus in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// Largest number of messages kept: history, messages that groups still need, delayed messages and dead letters
    /// together. Default 1,000,000.
    pub max_messages: usize,
    /// Largest number of bytes kept. Each message counts as [`Message::size`](crate::message::Message::size) plus a
    /// fixed overhead. Default 256 MiB.
    pub max_bytes: usize,
    /// Largest message in bytes. Default 1 MiB.
    pub max_payload: usize,
    /// How long a dedup id is remembered. Default 2 minutes.
    pub dedup_window: Duration,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            max_messages: 1_000_000,
            max_bytes: 256 * 1024 * 1024,
            max_payload: 1024 * 1024,
            dedup_window: Duration::from_secs(120),
        }
    }
}

impl MemoryConfig {
    /// Returns the name, the options and the provision mode of a URL. Options that the URL omits have their defaults.
    pub(super) fn from_url(mut url: BusUrl) -> Result<(String, Self, Provision)> {
        let mut config = Self::default();
        let provision = Provision::take(&mut url)?;
        let name = match url.rest() {
            "" => "default".to_owned(),
            name if name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) => {
                name.to_owned()
            }
            name => {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("the name of a bus in memory may contain a-z A-Z 0-9 . _ -, not {name:?}"),
                ));
            }
        };
        if let Some(count) = url.take("max_messages", "a number of messages")? {
            config.max_messages = count;
        }
        if let Some(bytes) = url.take("max_bytes", "a number of bytes")? {
            config.max_bytes = bytes;
        }
        if let Some(bytes) = url.take("max_payload", "a number of bytes")? {
            config.max_payload = bytes;
        }
        config.dedup_window =
            url.take_duration("dedup_window", config.dedup_window, Duration::ZERO..=LONGEST)?;
        url.finish()?;
        config.check()?;
        Ok((name, config, provision))
    }

    /// Refuses limits under which no message could be stored.
    pub(super) fn check(&self) -> Result<()> {
        if self.max_messages == 0 {
            return Err(Error::new(ErrorKind::Config, "option `max_messages` must be at least 1"));
        }
        if self.max_bytes < self.max_payload.saturating_add(OVERHEAD) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("option `max_bytes` must be at least `max_payload` plus {} bytes", OVERHEAD),
            )
            .with("max_bytes", self.max_bytes)
            .with("max_payload", self.max_payload));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<(String, MemoryConfig, Provision)> {
        MemoryConfig::from_url(url.parse()?)
    }

    #[test]
    fn names_and_options() {
        assert_eq!(parse("memory:").unwrap(), ("default".into(), MemoryConfig::default(), Provision::Create));
        let (name, config, _) = parse("memory:a?max_messages=10&dedup_window=1500ms").unwrap();
        assert_eq!(
            (name.as_str(), config.max_messages, config.dedup_window),
            ("a", 10, Duration::from_millis(1500))
        );
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (url, word) in [
            ("memory:a/b", "a/b"),
            ("memory:?max_messages=0", "max_messages"),
            ("memory:?max_messages=many", "max_messages"),
            ("memory:?max_bytes=1000", "max_bytes"),
            ("memory:?dedup_window=-2s", "dedup_window"),
            ("memory:?synchronous=full", "synchronous"),
            ("memory:?provision=perhaps", "off, verify, create or update"),
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(word), "{url}: {error}");
        }
    }

    #[test]
    fn the_page_has_every_option_and_its_default() {
        crate::options_page::check(include_str!("docs.md"), "memory:", parse);
    }
}
