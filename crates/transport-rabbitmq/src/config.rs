//! Parses the options of an `amqp:` or `amqps:` URL.
//!
//! `docs.md` describes them.

use std::fmt;
use std::time::Duration;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use percent_encoding::percent_decode_str;

use event_transport::Provision;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::url::BusUrl;

/// The checked settings of a URL.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) namespace: String,
    pub(super) provision: Provision,
    pub(super) max_payload: usize,
    pub(super) connect_timeout: Duration,
    pub(super) publish_timeout: Duration,
    pub(super) delivery_limit: u32,
    pub(super) keyed_backlog: usize,
    pub(super) vhost: String,
    /// One for each host.
    pub(super) uris: Vec<AMQPUri>,
    pub(super) tls: OwnedTLSConfig,
}

impl Config {
    pub(super) fn from_url(mut url: BusUrl) -> Result<Self> {
        let provision = Provision::take(&mut url)?;
        let namespace: String = url.take("namespace", "a name")?.unwrap_or_else(|| "backbone".into());
        let named = (1..=24).contains(&namespace.len())
            && namespace.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        if !named {
            return Err(config(format!(
                "option `namespace` takes 1 to 24 of a-z 0-9 _ -, not {namespace:?}"
            )));
        }
        let max_payload = url.take("max_payload", "a number of bytes")?.unwrap_or(1024 * 1024);
        let patience = Duration::from_nanos(1)..=Duration::from_secs(86_400);
        let connect_timeout =
            url.take_duration("connect_timeout", Duration::from_secs(5), patience.clone())?;
        let publish_timeout = url.take_duration("publish_timeout", Duration::from_secs(10), patience)?;
        // The protocol has 16 bits for the number of seconds.
        let heartbeats = Duration::from_nanos(1)..=Duration::from_secs(u16::MAX.into());
        let heartbeat = url.take_duration("heartbeat", Duration::from_secs(10), heartbeats)?;
        let delivery_limit = url.take("delivery_limit", "a number of deliveries")?.unwrap_or(100);
        let keyed_backlog = url.take("keyed_backlog", "a number of messages")?.unwrap_or(4096);
        if delivery_limit == 0 || !(1..=60_000).contains(&keyed_backlog) {
            return Err(config(
                "option `delivery_limit` takes at least 1, option `keyed_backlog` 1 to 60000".into(),
            ));
        }
        let external = match url.take::<String>("auth", "plain or external")?.as_deref() {
            None | Some("plain") => false,
            Some("external") => true,
            Some(other) => {
                return Err(config(format!("option `auth` takes plain or external, not {other:?}")));
            }
        };
        let tls = tls(&mut url)?;
        url.finish()?;
        let (uris, vhost) = uris(&url, external, heartbeat)?;
        Ok(Self {
            namespace,
            provision,
            max_payload,
            connect_timeout,
            publish_timeout,
            delivery_limit,
            keyed_backlog,
            vhost,
            uris,
            tls,
        })
    }
}

fn config(text: String) -> Error {
    Error::new(ErrorKind::Config, text)
}

fn tls(url: &mut BusUrl) -> Result<OwnedTLSConfig> {
    let mut read = |option: &str| -> Result<Option<Vec<u8>>> {
        let Some(path) = url.take::<String>(option, "the path of a PEM file")? else { return Ok(None) };
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => Err(config(format!("option `{option}`: the file cannot be read"))
                .with("file", path)
                .because(error)),
        }
    };
    let cert_chain = match read("ca")? {
        None => None,
        Some(bytes) => {
            Some(String::from_utf8(bytes).map_err(|_| config("option `ca`: the file is not PEM".into()))?)
        }
    };
    let identity = match (read("cert")?, read("key")?) {
        (None, None) => None,
        (Some(pem), Some(key)) => Some(OwnedIdentity::PKCS8 { pem, key }),
        _ => return Err(config("options `cert` and `key` go together".into())),
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

fn uris(url: &BusUrl, external: bool, heartbeat: Duration) -> Result<(Vec<AMQPUri>, String)> {
    let ill = |what: &str| config(format!("{what}; use amqp://[user:password@]host[:port][,host2…][/vhost]"));
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (scheme, port) = match url.scheme() {
        "amqps" => (AMQPScheme::AMQPS, 5671),
        _ => (AMQPScheme::AMQP, 5672),
    };
    let rest = url.rest().strip_prefix("//").ok_or_else(|| ill("the URL names no host"))?;
    let (who, rest) = rest.rsplit_once('@').map_or((None, rest), |(who, rest)| (Some(who), rest));
    let (hosts, vhost) = rest.split_once('/').map_or((rest, ""), |(hosts, vhost)| (hosts, vhost));
    // A missing or empty vhost is the default vhost.
    let vhost = if vhost.is_empty() { "/".to_owned() } else { decode(vhost) };
    let (username, password) = match who {
        None => ("guest".to_owned(), "guest".to_owned()),
        Some(who) => {
            let (user, password) = who.split_once(':').unwrap_or((who, ""));
            (decode(user), decode(password))
        }
    };
    let one = |host: &str| -> Result<AMQPUri> {
        let (host, port) = match host.rsplit_once(':').filter(|_| !host.ends_with(']')) {
            Some((host, text)) => (host, text.parse().map_err(|_| ill("a port is a number up to 65535"))?),
            None => (host, port),
        };
        let host = host.trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(ill("a host's name is empty"));
        }
        Ok(AMQPUri {
            scheme: scheme.clone(),
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username: username.clone(), password: password.clone() },
                host: host.to_owned(),
                port,
            },
            vhost: vhost.clone(),
            query: AMQPQueryString {
                heartbeat: Some(u16::try_from(heartbeat.as_secs().max(1)).unwrap_or(u16::MAX)),
                auth_mechanism: external.then_some(SASLMechanism::External),
                ..AMQPQueryString::default()
            },
        })
    };
    let uris = hosts.split(',').map(one).collect::<Result<Vec<_>>>()?;
    Ok((uris, vhost))
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URIs contain the password.
        f.debug_struct("Config")
            .field("namespace", &self.namespace)
            .field("vhost", &self.vhost)
            .field("provision", &self.provision)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Config> {
        Config::from_url(url.parse()?)
    }

    #[test]
    fn hosts_users_and_vhosts() {
        let config = parse("amqp://us%40er:p%3Aw@a,b:1234/%2Fx?namespace=n").unwrap();
        let [a, b] = config.uris.as_slice() else { panic!("{config:?}") };
        assert_eq!((a.authority.host.as_str(), a.authority.port), ("a", 5672));
        assert_eq!((b.authority.host.as_str(), b.authority.port), ("b", 1234));
        assert_eq!(a.authority.userinfo, AMQPUserInfo { username: "us@er".into(), password: "p:w".into() });
        assert_eq!((config.vhost.as_str(), config.namespace.as_str()), ("/x", "n"));
        assert!(!format!("{config:?}").contains("p:w"));
        for url in ["amqp://h", "amqp://h/", "amqps://h/%2f"] {
            assert_eq!(parse(url).unwrap().vhost, "/", "{url}");
        }
    }

    #[test]
    fn impossible_options_are_refused_by_name() {
        for (url, word) in [
            ("amqp:h", "host"),
            ("amqp://", "host"),
            ("amqp://h:port", "port"),
            ("amqp://h?namespace=A", "namespace"),
            ("amqp://h?heartbeat=0s", "heartbeat"),
            ("amqp://h?keyed_backlog=0", "keyed_backlog"),
            ("amqp://h?auth=ntlm", "plain or external"),
            ("amqp://h?cert=/nowhere/cert.pem", "/nowhere/cert.pem"),
            ("amqp://h?synchronous=full", "synchronous"),
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(word), "{url}: {error}");
        }
    }

    #[test]
    fn the_page_has_every_option_and_its_default() {
        // The TLS files cannot be compared, and have no default.
        let read = |url: &str| {
            let Config {
                namespace,
                provision,
                max_payload,
                connect_timeout,
                publish_timeout,
                delivery_limit,
                keyed_backlog,
                vhost,
                uris,
                tls: _,
            } = parse(url)?;
            let timeouts = (connect_timeout, publish_timeout);
            let numbers = (max_payload, delivery_limit, keyed_backlog);
            Ok((namespace, provision, timeouts, numbers, vhost, uris))
        };
        event_transport::options_page::check(include_str!("docs.md"), "amqp://h", read);
    }
}
