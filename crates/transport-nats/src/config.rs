//! Parses and checks the options of `nats://…` and `tls://…` URLs.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use event_transport::Provision;
use event_transport::bounds::LONGEST;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::url::BusUrl;

/// Options of a URL, as described in `docs.md`.
#[derive(Clone, PartialEq)]
pub(super) struct Config {
    pub(super) servers: Vec<String>,
    pub(super) login: Login,
    /// Present for `tls://` URLs.
    pub(super) tls: Option<Tls>,
    pub(super) namespace: String,
    pub(super) provision: Provision,
    pub(super) streams: StreamOptions,
    pub(super) max_unsettled: u64,
    pub(super) max_payload: Option<usize>,
    pub(super) publish_timeout: Duration,
    pub(super) request_timeout: Duration,
    pub(super) service_discovery: bool,
}

/// The files of TLS, and the time of its handshake.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Tls {
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<(PathBuf, PathBuf)>,
    /// The handshake comes before the server's greeting.
    pub(super) first: bool,
}

/// The settings of the streams that this transport creates.
#[derive(Clone, PartialEq)]
pub(super) struct StreamOptions {
    pub(super) storage: Storage,
    pub(super) replicas: usize,
    pub(super) max_age: Duration,
    pub(super) max_bytes: u64,
    pub(super) dead_letter_max_age: Duration,
    pub(super) dedup_window: Duration,
    /// The operator states that the server syncs each message.
    pub(super) sync_always: bool,
}

/// Login method and its data.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    None,
    User(String, String),
    Token(String),
    Nkey(PathBuf),
    Creds(PathBuf),
}

/// Storage of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    File,
    Memory,
}

impl Storage {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Memory => "memory",
        }
    }
}

const DAY: Duration = Duration::from_secs(86_400);
/// Range of the timeouts for replies of the server.
const PATIENCE: RangeInclusive<Duration> = Duration::from_nanos(1)..=DAY;

impl Config {
    /// Parses a URL.
    pub(super) fn read(mut url: BusUrl) -> Result<Self> {
        let wrong = |what: &str| Error::new(ErrorKind::Config, what);
        url.renamed("dead_max_age", "dead_letter_max_age")?;
        url.renamed("services", "service_discovery")?;
        let (user, hosts) = match url.rest().strip_prefix("//") {
            None | Some("") => return Err(wrong("the URL names no server; use `nats://HOST:PORT`")),
            Some(rest) => match rest.rsplit_once('@') {
                Some((user, hosts)) => (Some(user.to_owned()), hosts.to_owned()),
                None => (None, rest.to_owned()),
            },
        };
        let hosts = hosts.trim_end_matches('/');
        if hosts.contains('/') {
            return Err(wrong("a NATS URL has no path; choose a `namespace` instead"));
        }
        let tls = url.scheme() == "tls";
        let scheme = if tls { "tls" } else { "nats" };
        let mut servers = Vec::new();
        for host in hosts.split(',') {
            // The URL has one login for all servers, so a host carries none.
            let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
            if host.is_empty() {
                return Err(wrong("a server of the URL has no name; use `nats://HOST:PORT,HOST:PORT`"));
            }
            servers.push(format!("{scheme}://{host}"));
        }
        let mut login = match user {
            None => Login::None,
            Some(user) => match user.split_once(':') {
                Some((user, password)) => Login::User(decode(user), decode(password)),
                None => Login::Token(decode(&user)),
            },
        };
        let path = |text: Option<String>| text.map(|text| PathBuf::from(decode(&text)));
        for other in [
            url.take::<String>("token", "a token")?.map(|token| Login::Token(decode(&token))),
            path(url.take("nkey", "a path")?).map(Login::Nkey),
            path(url.take("creds", "a path")?).map(Login::Creds),
        ]
        .into_iter()
        .flatten()
        {
            if login != Login::None {
                return Err(wrong(
                    "the URL has two ways to log in; use one of user and password, `token`, `nkey` and `creds`",
                ));
            }
            login = other;
        }
        let ca = path(url.take("ca", "a path")?);
        let cert = match (path(url.take("cert", "a path")?), path(url.take("key", "a path")?)) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(wrong("options `cert` and `key` go together")),
        };
        let tls_first = url.take("tls_first", "true or false")?.unwrap_or(false);
        if !tls && (ca.is_some() || cert.is_some() || tls_first) {
            return Err(wrong("options `ca`, `cert`, `key` and `tls_first` need a `tls://` URL"));
        }
        let namespace = url.take::<String>("namespace", "a name")?.unwrap_or_else(|| "backbone".into());
        let well_spelled = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if !(1..=32).contains(&namespace.len()) || !namespace.bytes().all(well_spelled) {
            return Err(wrong("option `namespace` takes 1 to 32 characters of a-z 0-9 -"));
        }
        let storage = match url.take::<String>("storage", "file or memory")?.as_deref() {
            None | Some("file") => Storage::File,
            Some("memory") => Storage::Memory,
            Some(_) => return Err(wrong("option `storage` takes file or memory")),
        };
        let sync_always = match url.take::<String>("sync", "default or always")?.as_deref() {
            None | Some("default") => false,
            Some("always") => true,
            Some(_) => return Err(wrong("option `sync` takes default or always")),
        };
        let provision = Provision::take(&mut url)?;
        let streams = StreamOptions {
            storage,
            replicas: url.take("replicas", "a number from 1 to 5")?.unwrap_or(1),
            max_age: url.take_duration("max_age", 7 * DAY, Duration::ZERO..=LONGEST)?,
            max_bytes: url.take("max_bytes", "a number of bytes")?.unwrap_or(0),
            dead_letter_max_age: url.take_duration(
                "dead_letter_max_age",
                30 * DAY,
                Duration::ZERO..=LONGEST,
            )?,
            dedup_window: url.take_duration(
                "dedup_window",
                Duration::from_secs(120),
                Duration::from_millis(100)..=DAY,
            )?,
            sync_always,
        };
        let config = Self {
            servers,
            login,
            tls: tls.then_some(Tls { ca, cert, first: tls_first }),
            namespace,
            provision,
            streams,
            max_unsettled: url.take("max_unsettled", "a number of messages")?.unwrap_or(100_000),
            max_payload: url.take("max_payload", "a number of bytes")?,
            publish_timeout: url.take_duration("publish_timeout", Duration::from_secs(10), PATIENCE)?,
            request_timeout: url.take_duration("request_timeout", Duration::from_secs(5), PATIENCE)?,
            service_discovery: url.take("service_discovery", "true or false")?.unwrap_or(true),
        };
        url.finish()?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::new(ErrorKind::Config, what));
        let StreamOptions { replicas, max_age, dedup_window, storage, sync_always, .. } = &self.streams;
        if !(1..=5).contains(replicas) {
            return wrong("option `replicas` takes a number from 1 to 5");
        }
        if !max_age.is_zero() && max_age < dedup_window {
            return wrong("option `max_age` must be at least `dedup_window`, or 0s to keep everything");
        }
        if self.max_unsettled == 0 {
            return wrong("option `max_unsettled` takes at least 1");
        }
        if *sync_always && *storage == Storage::Memory {
            return wrong("option `sync=always` needs `storage=file`");
        }
        Ok(())
    }
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Omits secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("servers", &self.servers)
            .field("namespace", &self.namespace)
            .field("provision", &self.provision)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Config> {
        Config::read(url.parse()?)
    }

    #[test]
    fn servers_logins_and_options() {
        let config = read("nats://us%40er:p%3Aw@a:1,b:2?namespace=shop&max_age=1h&replicas=3").unwrap();
        assert_eq!(config.servers, ["nats://a:1", "nats://b:2"]);
        assert!(config.login == Login::User("us@er".into(), "p:w".into()));
        assert_eq!((config.streams.replicas, config.streams.max_age), (3, Duration::from_secs(3600)));
        assert!(!format!("{config:?}").contains("p:w"));
        assert!(read("tls://secret@a?ca=/ca.pem").unwrap().login == Login::Token("secret".into()));
    }

    #[test]
    fn old_names_of_options_are_accepted() {
        let config = read("nats://a?dead_max_age=2d&services=false").unwrap();
        assert_eq!((config.streams.dead_letter_max_age, config.service_discovery), (2 * DAY, false));
        assert!(read("nats://a?services=true&service_discovery=true").is_err());
    }

    #[test]
    fn the_page_has_every_option_and_its_default() {
        event_transport::options_page::check(include_str!("docs.md"), "nats://a", read);
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (url, word) in [
            ("nats:", "nats://HOST:PORT"),
            ("nats://a/b", "namespace"),
            ("nats://a,", "no name"),
            ("nats://a?namespace=A", "namespace"),
            ("nats://a?namespace=a_b", "namespace"),
            ("nats://a?storage=tape", "storage"),
            ("nats://a?replicas=6", "replicas"),
            ("nats://a?max_age=1s", "max_age"),
            ("nats://a?ca=x", "tls://"),
            ("tls://a?cert=x", "`cert` and `key`"),
            ("nats://u:p@a?token=x", "two ways"),
            ("nats://a?sync=sometimes", "sync"),
            ("nats://a?synchronous=full", "max_unsettled"),
        ] {
            let error = read(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(word), "{url}: {error}");
        }
    }
}
