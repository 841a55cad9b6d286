//! The options of a `redis://HOST?…` URL, parsed and checked.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use smol_str::SmolStr;

use event_transport::Provision;
use event_transport::bounds::LONGEST;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::Durability;
use event_transport::url::BusUrl;

/// The settings in a URL, as described in `docs.md`.
#[derive(Clone, PartialEq)]
pub(super) struct Config {
    pub(super) server: Server,
    pub(super) namespace: SmolStr,
    pub(super) provision: Provision,
    pub(super) max_payload: usize,
    pub(super) dedup_window: Duration,
    pub(super) retention: Retention,
    /// The option `durability`; `None` uses the server's report.
    pub(super) durability: Option<Durability>,
    pub(super) may_evict: bool,
    pub(super) wait_replicas: u32,
    pub(super) publish_timeout: Duration,
}

/// The server, and how to log in to it.
#[derive(Clone, PartialEq)]
pub(super) struct Server {
    pub(super) hosts: Vec<Host>,
    pub(super) tls: Option<Tls>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) db: i64,
    pub(super) sentinel: Option<Sentinel>,
    pub(super) connect_timeout: Duration,
}

/// The limits of housekeeping, and its interval.
#[derive(Clone, PartialEq)]
pub(super) struct Retention {
    pub(super) age: Duration,
    pub(super) messages: u64,
    pub(super) dead_letters: u64,
    /// The time between two trims of a topic.
    pub(super) interval: Duration,
}

/// The address of a server or sentinel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Tcp(String, u16),
    Socket(PathBuf),
}

/// PEM files, read when connecting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

#[derive(Clone, PartialEq)]
pub(super) struct Sentinel {
    pub(super) master: String,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
}

impl Config {
    /// Parses a URL.
    pub(super) fn read(mut url: BusUrl) -> Result<Self> {
        const SIZE: &str = "a number of bytes, with k, m or g if you like, such as 64k";
        let shown = url.to_string();
        let wrong = move |what: &str| Error::new(ErrorKind::Config, what).with("url", &shown);
        url.renamed("housekeeping", "housekeeping_interval")?;
        url.renamed("dead_letters", "max_dead_letters")?;
        let provision = Provision::take(&mut url)?;
        let namespace = match url.take::<SmolStr>("namespace", "a name")? {
            None => SmolStr::new_static("backbone"),
            Some(name)
                if (1..=100).contains(&name.len())
                    && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')) =>
            {
                name
            }
            Some(_) => return Err(wrong("option `namespace` takes 1 to 100 of a-z 0-9 _ -")),
        };
        let max_payload = url.take("max_payload", SIZE)?.map_or(1 << 20, |Size(bytes)| bytes);
        if !(1 << 10..=64 << 20).contains(&max_payload) {
            return Err(wrong("option `max_payload` takes 1k to 64m"));
        }
        const SECOND: Duration = Duration::from_secs(1);
        let patience = Duration::from_millis(100)..=300 * SECOND;
        let day = 86_400 * SECOND;
        let dedup_window = url.take_duration("dedup_window", 600 * SECOND, Duration::ZERO..=day)?;
        let age = url.take_duration("retention_age", 7 * day, Duration::ZERO..=LONGEST)?;
        let publish_timeout = url.take_duration("publish_timeout", 10 * SECOND, patience.clone())?;
        let connect_timeout = url.take_duration("connect_timeout", 5 * SECOND, patience)?;
        let interval = Duration::from_millis(100)..=3600 * SECOND;
        let interval = url.take_duration("housekeeping_interval", 60 * SECOND, interval)?;
        let durability = match url.take::<String>("durability", "fsync, page-cache or none")?.as_deref() {
            None => None,
            Some("fsync") => Some(Durability::Fsync),
            Some("page-cache") => Some(Durability::PageCache),
            Some("none") => Some(Durability::Default),
            Some(_) => return Err(wrong("option `durability` takes fsync, page-cache or none")),
        };
        let may_evict = match url.take::<String>("eviction", "allow or refuse")?.as_deref() {
            None | Some("refuse") => false,
            Some("allow") => true,
            Some(_) => return Err(wrong("option `eviction` takes allow or refuse")),
        };
        let count = "a number";
        let messages = url.take("retention_messages", count)?.unwrap_or(1_000_000);
        let dead_letters = url.take("max_dead_letters", count)?.unwrap_or(100_000);
        if dead_letters == 0 {
            return Err(wrong("option `max_dead_letters` takes at least 1"));
        }
        let wait_replicas = url.take("wait_replicas", count)?.unwrap_or(0);
        let sentinel = match (
            url.take("sentinel", "the name of a master")?,
            url.take("sentinel_user", "a name")?,
            url.take("sentinel_password", "a password")?,
        ) {
            (None, None, None) => None,
            (None, ..) => {
                return Err(wrong("options `sentinel_user` and `sentinel_password` need `sentinel=NAME`"));
            }
            (Some(master), user, password) => Some(Sentinel { master, user, password }),
        };
        let files = Tls {
            ca: url.take("ca", "a file")?,
            cert: url.take("cert", "a file")?,
            key: url.take("key", "a file")?,
        };
        url.finish()?;
        let tls = match url.scheme() {
            "rediss" => Some(files),
            _ if files == Tls::default() => None,
            _ => return Err(wrong("options `ca`, `cert` and `key` are for `rediss://`")),
        };
        if tls.as_ref().is_some_and(|tls| tls.cert.is_some() != tls.key.is_some()) {
            return Err(wrong("options `cert` and `key` belong together"));
        }
        let default_port = if sentinel.is_some() { 26379 } else { 6379 };
        let place = Place::read(url.rest(), default_port).map_err(|what| wrong(&what))?;
        if place.hosts.len() > 1 && sentinel.is_none() {
            return Err(wrong(
                "several hosts are allowed only as sentinels: set the master's name with `sentinel=NAME`",
            ));
        }
        if tls.is_some() && place.hosts.iter().any(|host| matches!(host, Host::Socket(_))) {
            return Err(wrong("a socket file needs no TLS; use `redis:///PATH`"));
        }
        Ok(Self {
            server: Server {
                hosts: place.hosts,
                tls,
                user: place.user,
                password: place.password,
                db: place.db,
                sentinel,
                connect_timeout,
            },
            namespace,
            provision,
            max_payload: max_payload as usize,
            dedup_window,
            retention: Retention { age, messages, dead_letters, interval },
            durability,
            may_evict,
            wait_replicas,
            publish_timeout,
        })
    }
}

/// The part of a URL before the options.
struct Place {
    hosts: Vec<Host>,
    user: Option<String>,
    password: Option<String>,
    db: i64,
}

impl Place {
    fn read(rest: &str, default_port: u16) -> Result<Self, String> {
        let Some(rest) = rest.strip_prefix("//") else {
            return Err("the URL names no host; use `redis://HOST:PORT`".into());
        };
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (user, password) = match login {
            None => (None, None),
            Some(login) => match login.split_once(':') {
                Some((user, password)) => ((!user.is_empty()).then(|| decode(user)), Some(decode(password))),
                None => return Err("a name without a password; use `redis://NAME:PASSWORD@HOST`".into()),
            },
        };
        if rest.starts_with('/') {
            return Ok(Self { hosts: vec![Host::Socket(rest.into())], user, password, db: 0 });
        }
        let (hosts, db) = rest.split_once('/').unwrap_or((rest, ""));
        let db = match db {
            "" => 0,
            db => db.parse().ok().filter(|db| *db >= 0).ok_or("the database is a number, as in `/2`")?,
        };
        let hosts = hosts
            .split(',')
            .map(|host| {
                let bad = || format!("a host is NAME or NAME:PORT, not {host:?}");
                let (name, port) = match host.rsplit_once(':') {
                    Some((name, port)) if !name.ends_with(':') && !port.ends_with(']') => {
                        (name, port.parse().map_err(|_| bad())?)
                    }
                    _ => (host, default_port),
                };
                if name.is_empty() { Err(bad()) } else { Ok(Host::Tcp(name.to_owned(), port)) }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { hosts, user, password, db })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(name, port) => write!(f, "{name}:{port}"),
            Self::Socket(path) => write!(f, "{}", path.display()),
        }
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
    fn a_whole_url() {
        let config = read("rediss://app:p%40ss@h1:7000/3?namespace=shop&max_payload=64k&ca=/c.pem").unwrap();
        assert_eq!(config.server.hosts, [Host::Tcp("h1".into(), 7000)]);
        assert_eq!(
            (config.server.user.as_deref(), config.server.password.as_deref()),
            (Some("app"), Some("p@ss"))
        );
        assert_eq!((config.server.db, config.max_payload, config.namespace.as_str()), (3, 65536, "shop"));
        assert_eq!(config.server.tls.unwrap().ca, Some("/c.pem".into()));
    }

    #[test]
    fn hosts_and_defaults() {
        let config = read("redis://:secret@localhost").unwrap();
        assert_eq!(config.server.hosts, [Host::Tcp("localhost".into(), 6379)]);
        assert_eq!((config.server.user, config.server.password.as_deref()), (None, Some("secret")));
        let config = read("redis://a,b:1?sentinel=mymaster").unwrap();
        assert_eq!(config.server.hosts, [Host::Tcp("a".into(), 26379), Host::Tcp("b".into(), 1)]);
        assert_eq!(
            read("redis:///run/redis.sock").unwrap().server.hosts,
            [Host::Socket("/run/redis.sock".into())]
        );
        assert_eq!(read("redis://[::1]:7").unwrap().server.hosts, [Host::Tcp("[::1]".into(), 7)]);
        assert_eq!(read("redis://[::1]").unwrap().server.hosts, [Host::Tcp("[::1]".into(), 6379)]);
    }

    #[test]
    fn old_names_of_options_are_accepted() {
        let config = read("redis://a?housekeeping=2m&dead_letters=7").unwrap();
        assert_eq!((config.retention.interval, config.retention.dead_letters), (Duration::from_secs(120), 7));
        assert!(read("redis://a?dead_letters=7&max_dead_letters=7").is_err());
    }

    #[test]
    fn the_page_has_every_option_and_its_default() {
        event_transport::options_page::check(include_str!("docs.md"), "redis://a", read);
    }

    #[test]
    fn wrong_options_say_what_would_work() {
        for (url, hint) in [
            ("redis:", "redis://HOST"),
            ("redis://", "NAME:PORT"),
            ("redis://a:b", "NAME:PORT"),
            ("redis://a,b", "sentinel="),
            ("redis://a/x", "/2"),
            ("redis://me@a", "PASSWORD"),
            ("redis://a?namespace=A", "a-z"),
            ("redis://a?max_payload=1", "1k to 64m"),
            ("redis://a?dedup_window=2d", "1d"),
            ("redis://a?durability=some", "page-cache"),
            ("redis://a?eviction=yes", "allow or refuse"),
            ("redis://a?publish_timeout=0s", "100ms"),
            ("redis://a?housekeeping_interval=1ms", "100ms"),
            ("redis://a?sentinel_user=x", "`sentinel=NAME`"),
            ("redis://a?ca=/x", "rediss://"),
            ("rediss://a?cert=/x", "belong together"),
            ("redis://a?colour=red", "namespace"),
            ("redis://a?provision=perhaps", "off, verify, create or update"),
        ] {
            let error = read(url).err().unwrap_or_else(|| panic!("{url} was taken"));
            assert_eq!(error.kind(), ErrorKind::Config, "{url}");
            assert!(error.to_string().contains(hint), "{url}: {error}");
        }
    }
}
