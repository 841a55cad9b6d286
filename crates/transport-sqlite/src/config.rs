//! Reads and checks the options of a `sqlite:PATH?…` URL.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use event_transport::Provision;
use event_transport::bounds::LONGEST;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::Durability;
use event_transport::url::BusUrl;

/// The options of a URL, as described in `docs.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) path: PathBuf,
    /// The durability that `Durability::Default` means, and the strongest one that is supported.
    pub(super) durability: Durability,
    pub(super) max_payload: usize,
    pub(super) provision: Provision,
    pub(super) storage: Storage,
}

/// The options that all handles of one file in one process share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) retention_age: Duration,
    pub(super) retention_bytes: u64,
    pub(super) dedup_window: Duration,
    pub(super) busy_timeout: Duration,
}

/// The largest allowed `max_payload`, in bytes.
pub(super) const MAX_PAYLOAD: usize = 64 << 20;

impl Config {
    /// Reads a URL.
    pub(super) fn read(mut url: BusUrl) -> Result<Self> {
        let wrong = |what: &str, url: &BusUrl| Error::new(ErrorKind::Config, what).with("url", url);
        let durability = match url.take::<String>("synchronous", "full or normal")?.as_deref() {
            None | Some("full") => Durability::Fsync,
            Some("normal") => Durability::PageCache,
            Some(_) => return Err(wrong("option `synchronous` takes full or normal", &url)),
        };
        const SIZE: &str = "a number of bytes, optionally with k, m or g, such as 64k";
        const DAY: Duration = Duration::from_secs(86_400);
        let max_payload = url.take("max_payload", SIZE)?.map_or(1 << 20, |Size(bytes)| bytes);
        let storage = Storage {
            retention_age: url.take_duration("retention_age", 7 * DAY, Duration::ZERO..=LONGEST)?,
            retention_bytes: url.take("retention_bytes", SIZE)?.map_or(1 << 30, |Size(bytes)| bytes),
            dedup_window: url.take_duration(
                "dedup_window",
                Duration::from_secs(600),
                Duration::ZERO..=DAY,
            )?,
            busy_timeout: url.take_duration(
                "busy_timeout",
                Duration::from_secs(5),
                Duration::ZERO..=Duration::from_secs(60),
            )?,
        };
        let provision = Provision::take(&mut url)?;
        url.finish()?;
        if !(1 << 10..=MAX_PAYLOAD as u64).contains(&max_payload) {
            return Err(wrong("option `max_payload` takes 1k to 64m", &url));
        }
        let path = url.rest().strip_prefix("//").unwrap_or(url.rest());
        if path.is_empty() {
            return Err(wrong("the URL names no file; use `sqlite:PATH`", &url));
        }
        if path == ":memory:" {
            return Err(wrong("`:memory:` is not a file; use `memory:` for a bus without a file", &url));
        }
        Ok(Self { path: path.into(), durability, max_payload: max_payload as usize, provision, storage })
    }
}

/// A number of bytes such as `65536` or `64k`.
struct Size(u64);

impl FromStr for Size {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (number, shift) = match text.as_bytes().last() {
            Some(b'k') => (&text[..text.len() - 1], 10),
            Some(b'm') => (&text[..text.len() - 1], 20),
            Some(b'g') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        number.parse::<u64>().map_err(drop)?.checked_mul(1 << shift).map(Self).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Config> {
        Config::read(url.parse().unwrap())
    }

    #[test]
    fn defaults_are_safe() {
        let config = read("sqlite:data/bus.db").unwrap();
        assert_eq!(config.path, PathBuf::from("data/bus.db"));
        assert_eq!(config.durability, Durability::Fsync);
        assert_eq!(config.max_payload, 1024 * 1024);
        assert_eq!(read("sqlite:///var/bus.db").unwrap().path, PathBuf::from("/var/bus.db"));
    }

    #[test]
    fn the_page_has_every_option_and_its_default() {
        event_transport::options_page::check(include_str!("docs.md"), "sqlite:b", read);
    }

    #[test]
    fn every_option_is_read() {
        let config = read(
            "sqlite:b?synchronous=normal&max_payload=64k&retention_age=12h&retention_bytes=2g&dedup_window=90s&busy_timeout=250ms",
        )
        .unwrap();
        assert_eq!(config.durability, Durability::PageCache);
        assert_eq!(config.max_payload, 65536);
        assert_eq!(
            config.storage,
            Storage {
                retention_age: Duration::from_secs(12 * 3600),
                retention_bytes: 2 << 30,
                dedup_window: Duration::from_secs(90),
                busy_timeout: Duration::from_millis(250),
            }
        );
    }

    #[test]
    fn wrong_options_say_what_would_work() {
        for (url, hint) in [
            ("sqlite:b?synchronous=off", "full or normal"),
            ("sqlite:b?max_payload=1", "1k to 64m"),
            ("sqlite:b?max_payload=999999999999999999g", "64k"),
            ("sqlite:b?retention_age=7", "12h"),
            ("sqlite:b?retention_age=99999999999999999d", "12h"),
            ("sqlite:b?dedup_window=2d", "1d"),
            ("sqlite:b?busy_timeout=2m", "60s"),
            ("sqlite:b?colour=red", "synchronous"),
            ("sqlite:", "sqlite:PATH"),
            ("sqlite::memory:", "memory:"),
        ] {
            let error = read(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{url}");
            assert!(error.to_string().contains(hint), "{url}: {error}");
        }
    }
}
