//! Settings of an aggregator and the environment variables that set them; the names are Logthon's where the meaning
//! is the same.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use service_kit::config::{Loader, Url, duration};
use service_kit::http;

use crate::error::{Error, ErrorKind, Result};

/// Upper bound of the setting `initial_logs`.
const MOST_INITIAL: usize = 10_000;
/// Upper bound of the setting `reconnect_delay`. A browser's timer treats more than 24 days as zero.
const LONGEST_DELAY: Duration = Duration::from_secs(3600);

/// Settings of an aggregator.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Config {
    /// Directory of the log store.
    #[serde(skip)]
    pub dir: PathBuf,
    /// Address and port to listen on, and the allowed clients, for the program that serves the router: address
    /// (`LOGTHON_HOST`), port (`LOGTHON_PORT`), `LOGTHON_ALLOW_UNAUTHENTICATED`, and the comma-separated lists
    /// `LOGTHON_ALLOWED_HOSTS` and `LOGTHON_ALLOWED_ORIGINS`. Default: port 5000 on loopback. Logthon listened on
    /// every address; this default differs because the API has no login.
    #[serde(skip)]
    pub http: http::Settings,
    /// Maximum number of simultaneous viewers, WebSocket and server-sent events together
    /// (`LOGTHON_MAX_WS_CONNECTIONS`). Default 100; at most 100 000.
    pub max_viewers: usize,
    /// Interval between pings to a WebSocket viewer; a viewer that sends nothing between two pings is disconnected.
    /// Default 20 s.
    #[serde(skip)]
    pub ping: Duration,
    /// Number of stored records that a WebSocket viewer receives first (`LOGTHON_INITIAL_LOGS`). Default 50,
    /// at most 10 000.
    #[serde(deserialize_with = "initial_logs")]
    pub initial_logs: usize,
    /// Time that the page waits before it reconnects (`LOGTHON_RECONNECT_DELAY`, milliseconds). Default 3 s, at most
    /// an hour.
    #[serde(deserialize_with = "reconnect_delay")]
    pub reconnect_delay: Duration,
    /// The `max_size` that `/storage/info` reports, by service (`LOGTHON_Custom_CLIENT_MAX_LOGS`,
    /// `LOGTHON_SERVICE_SINK_MAX_LOGS`, `LOGTHON_LOGTHON_MAX_LOGS`). Default 1000 for every service. Unlike
    /// Logthon's, this store deletes no record when that number is reached.
    pub max_logs: BTreeMap<String, u64>,
    /// Base URL of the service behind `/files` (`FILE_STORAGE_URL`). Default: none; `/files` then answers with an
    /// error.
    pub file_storage_url: Option<Url>,
    /// Longest body of a submission in bytes; a longer one is answered with 413. Default 1 MiB.
    #[serde(skip)]
    pub max_body: usize,
    /// Longest time in which a sender has to send a body; afterwards the answer is 408. Default 10 s.
    #[serde(skip)]
    pub body_timeout: Duration,
    /// Size limit of a day's file, see [`SqliteOptions::max_day_bytes`](crate::store::SqliteOptions::max_day_bytes).
    #[serde(skip)]
    pub max_day_bytes: Option<u64>,
    /// Whether the aggregator stores log records about itself as service `logthon`: its start, as the original does,
    /// and each clearing of the logs with the client's address. Default true.
    #[serde(skip)]
    pub announce: bool,
}

impl Config {
    /// Returns the defaults, with the store in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            http: http::Settings::default(),
            max_viewers: 100,
            ping: Duration::from_secs(20),
            initial_logs: 50,
            reconnect_delay: Duration::from_secs(3),
            max_logs: BTreeMap::new(),
            file_storage_url: None,
            max_body: 1024 * 1024,
            body_timeout: Duration::from_secs(10),
            max_day_bytes: None,
            announce: true,
        }
    }

    /// The environment variables that an aggregator reads, each with the key that it sets: `http.…` of the listener,
    /// `logs.…` of the aggregator.
    pub const VARIABLES: [(&'static str, &'static str); 12] = [
        ("LOGTHON_HOST", "http.host"),
        ("LOGTHON_PORT", "http.port"),
        ("LOGTHON_ALLOW_UNAUTHENTICATED", "http.allow_unauthenticated"),
        ("LOGTHON_ALLOWED_HOSTS", "http.allowed_hosts"),
        ("LOGTHON_ALLOWED_ORIGINS", "http.allowed_origins"),
        ("LOGTHON_MAX_WS_CONNECTIONS", "logs.max_viewers"),
        ("LOGTHON_INITIAL_LOGS", "logs.initial_logs"),
        ("LOGTHON_RECONNECT_DELAY", "logs.reconnect_delay"),
        ("LOGTHON_Custom_CLIENT_MAX_LOGS", "logs.max_logs.custom-client"),
        ("LOGTHON_SERVICE_SINK_MAX_LOGS", "logs.max_logs.service-sink"),
        ("LOGTHON_LOGTHON_MAX_LOGS", "logs.max_logs.logthon"),
        ("FILE_STORAGE_URL", "logs.file_storage_url"),
    ];

    /// Returns the defaults, changed by the environment variables of this process, see
    /// [`from_vars`](Self::from_vars).
    ///
    /// # Errors
    /// As [`from_vars`](Self::from_vars).
    pub fn from_env(dir: impl Into<PathBuf>) -> Result<Self> {
        // A variable whose name is not UTF-8 does not belong to the aggregator.
        let vars = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        });
        Self::from_vars(dir, vars)
    }

    /// Returns the defaults, changed by [`VARIABLES`](Self::VARIABLES); other variables are ignored, and an empty one
    /// counts as unset.
    ///
    /// `LOGTHON_LOG_LEVEL` and `LOGTHON_ACCESS_LOG` belong to the program around the aggregator.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the value of a variable is not valid.
    pub fn from_vars<K, V>(dir: impl Into<PathBuf>, vars: impl IntoIterator<Item = (K, V)>) -> Result<Self>
    where
        K: AsRef<str>,
        V: AsRef<str>,
    {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Settings {
            http: http::Settings,
            logs: Config,
        }
        let read = |name: &str| Self::VARIABLES.iter().any(|(variable, _)| *variable == name);
        let vars = vars.into_iter().filter(|(name, _)| read(name.as_ref()));
        let vars = vars.map(|(name, value)| (name.as_ref().to_owned(), value.as_ref().trim().to_owned()));
        let loader = Loader::new("log-aggregator").environment(vars);
        let loader =
            Self::VARIABLES.iter().fold(loader, |loader, (variable, key)| loader.alias(*variable, *key));
        let Settings { http, logs } =
            loader.load().map_err(|error| Error::new(ErrorKind::Config, error.to_string()))?.into_inner();
        Ok(Self { dir: dir.into(), http, ..logs })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new("logs")
    }
}

fn initial_logs<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<usize, D::Error> {
    Ok(usize::deserialize(deserializer)?.min(MOST_INITIAL))
}

/// Reads a duration, or a number of milliseconds, as Logthon's variable has it.
fn reconnect_delay<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Duration, D::Error> {
    struct Delay;

    impl Visitor<'_> for Delay {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number of milliseconds, or a duration such as `3s`")
        }

        fn visit_u64<E: serde::de::Error>(self, millis: u64) -> std::result::Result<Duration, E> {
            Ok(Duration::from_millis(millis))
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Duration, E> {
            let length = text.parse().ok().map(Duration::from_millis).or_else(|| duration::parse(text));
            length.ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
        }
    }

    Ok(deserializer.deserialize_any(Delay)?.min(LONGEST_DELAY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logthons_names_are_understood() {
        let vars = [
            ("LOGTHON_PORT", "5001"),
            ("LOGTHON_MAX_WS_CONNECTIONS", "7"),
            ("LOGTHON_Custom_CLIENT_MAX_LOGS", "20"),
            ("LOGTHON_ALLOWED_HOSTS", "backbone, logthon:5001,"),
            ("LOGTHON_ALLOWED_ORIGINS", "https://ops.example"),
            ("LOGTHON_ALLOW_UNAUTHENTICATED", "True"),
            ("FILE_STORAGE_URL", "http://files:9000/"),
            ("HOME", "/nowhere"),
        ];
        let config = Config::from_vars("logs", vars).expect("sound values");
        let http = &config.http;
        assert_eq!((http.port, http.host.as_str(), http.allow_unauthenticated), (5001, "127.0.0.1", true));
        assert_eq!(http.allowed_hosts, ["backbone", "logthon:5001"]);
        assert_eq!(http.allowed_origins, ["https://ops.example"]);
        assert_eq!((config.max_viewers, config.initial_logs), (7, 50));
        assert_eq!(config.max_logs["custom-client"], 20);
        assert_eq!(config.file_storage_url.as_ref().map(Url::expose), Some("http://files:9000/"));
    }

    #[test]
    fn no_password_is_shown() {
        let vars = [("FILE_STORAGE_URL", "http://app:hunter2@files:9000/?token=hunter3")];
        let shown = format!("{:?}", Config::from_vars("logs", vars).expect("sound"));
        assert!(shown.contains("app:***@files") && !shown.contains("hunter"), "{shown}");
    }

    #[test]
    fn the_largest_numbers_are_refused_or_bounded() {
        let read = |name: &'static str, value: &'static str| Config::from_vars("logs", [(name, value)]);
        let most = "18446744073709551615";
        let delay = read("LOGTHON_RECONNECT_DELAY", most).expect("bounded").reconnect_delay;
        assert_eq!(delay, LONGEST_DELAY);
        assert_eq!(read("LOGTHON_INITIAL_LOGS", most).expect("bounded").initial_logs, 10_000);
        for (value, millis) in [("250", 250), ("1m 5s", 65_000), ("", 3000)] {
            let delay = read("LOGTHON_RECONNECT_DELAY", value).expect("sound").reconnect_delay;
            assert_eq!(delay, Duration::from_millis(millis));
        }
        for (name, value) in [("LOGTHON_RECONNECT_DELAY", "-1"), ("LOGTHON_MAX_WS_CONNECTIONS", "many")] {
            let error = read(name, value).expect_err("no number").to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        read("LOGTHON_PORT", "-1").expect_err("no port");
        read("LOGTHON_ALLOW_UNAUTHENTICATED", "maybe").expect_err("no answer");
    }

    #[test]
    fn a_wrong_value_is_named() {
        let error = Config::from_vars("logs", [("LOGTHON_PORT", "99999")]).expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::Config);
        let text = "http.port: expected u16, got integer `99999` (from the variable LOGTHON_PORT)";
        assert_eq!(error.to_string(), text);
    }
}
