//! Settings of an aggregator and the environment variables that set them; the names are Logthon's where the meaning
//! is the same.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use service_kit::config::Url;
use service_kit::http;

use crate::error::{Error, ErrorKind, Result};

/// Settings of an aggregator.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Directory of the log store.
    pub dir: PathBuf,
    /// Address and port to listen on, and the allowed clients, for the program that serves the router: address
    /// (`LOGTHON_HOST`), port (`LOGTHON_PORT`), `LOGTHON_ALLOW_UNAUTHENTICATED`, and the comma-separated lists
    /// `LOGTHON_ALLOWED_HOSTS` and `LOGTHON_ALLOWED_ORIGINS`. Default: port 5000 on loopback. Logthon listened on
    /// every address; this default differs because the API has no login.
    pub http: http::Settings,
    /// Maximum number of simultaneous viewers, WebSocket and server-sent events together
    /// (`LOGTHON_MAX_WS_CONNECTIONS`). Default 100; at most 100 000.
    pub max_viewers: usize,
    /// Interval between pings to a WebSocket viewer; a viewer that sends nothing between two pings is disconnected.
    /// Default 20 s.
    pub ping: Duration,
    /// Number of stored records that a WebSocket viewer receives first (`LOGTHON_INITIAL_LOGS`). Default 50.
    pub initial_logs: usize,
    /// Time that the page waits before it reconnects (`LOGTHON_RECONNECT_DELAY`, milliseconds). Default 3 s, at most
    /// an hour.
    pub reconnect_delay: Duration,
    /// The `max_size` that `/storage/info` reports, by service (`LOGTHON_Custom_CLIENT_MAX_LOGS`,
    /// `LOGTHON_SERVICE_SINK_MAX_LOGS`, `LOGTHON_LOGTHON_MAX_LOGS`). Default 1000 for every service. Unlike
    /// Logthon's, this store deletes no record when that number is reached.
    pub max_logs: BTreeMap<String, u64>,
    /// Base URL of the service behind `/files` (`FILE_STORAGE_URL`). Default: none; `/files` then answers with an
    /// error.
    pub file_storage_url: Option<Url>,
    /// Longest body of a submission in bytes; a longer one is answered with 413. Default 1 MiB.
    pub max_body: usize,
    /// Longest time in which a sender has to send a body; afterwards the answer is 408. Default 10 s.
    pub body_timeout: Duration,
    /// Size limit of a day's file, see [`SqliteOptions::max_day_bytes`](crate::store::SqliteOptions::max_day_bytes).
    pub max_day_bytes: Option<u64>,
    /// Whether the aggregator stores log records about itself as service `logthon`: its start, as the original does,
    /// and each clearing of the logs with the client's address. Default true.
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

    /// Returns the defaults, changed by Logthon's variables; other variables are ignored.
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
        let mut config = Self::new(dir);
        for (name, value) in vars {
            let (name, value) = (name.as_ref(), value.as_ref().trim());
            let mut max_logs = |service: &str, count: u64| _ = config.max_logs.insert(service.into(), count);
            match name {
                "LOGTHON_HOST" => config.http.host = value.into(),
                "LOGTHON_PORT" => config.http.port = number(name, value)?,
                "LOGTHON_ALLOW_UNAUTHENTICATED" => config.http.allow_unauthenticated = yes(name, value)?,
                "LOGTHON_ALLOWED_HOSTS" => config.http.allowed_hosts = list(value),
                "LOGTHON_ALLOWED_ORIGINS" => config.http.allowed_origins = list(value),
                "LOGTHON_MAX_WS_CONNECTIONS" => config.max_viewers = number(name, value)?,
                "LOGTHON_INITIAL_LOGS" => config.initial_logs = number::<usize>(name, value)?.min(10_000),
                "LOGTHON_RECONNECT_DELAY" => {
                    // A browser's timer treats more than 24 days as zero.
                    config.reconnect_delay =
                        Duration::from_millis(number::<u64>(name, value)?.min(3_600_000));
                }
                "LOGTHON_Custom_CLIENT_MAX_LOGS" => max_logs("custom-client", number(name, value)?),
                "LOGTHON_SERVICE_SINK_MAX_LOGS" => max_logs("service-sink", number(name, value)?),
                "LOGTHON_LOGTHON_MAX_LOGS" => max_logs("logthon", number(name, value)?),
                "FILE_STORAGE_URL" => {
                    config.file_storage_url = (!value.is_empty()).then(|| Url::new(value));
                }
                _ => {}
            }
        }
        Ok(config)
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| {
        let text = format!("{name} has to be a whole number in range, found {value:?}");
        Error::new(ErrorKind::Config, text)
    })
}

fn yes(name: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" | "" => Ok(false),
        _ => {
            let text = format!("{name} has to be true or false, found {value:?}");
            Err(Error::new(ErrorKind::Config, text))
        }
    }
}

fn list(value: &str) -> Vec<String> {
    value.split(',').map(str::trim).filter(|one| !one.is_empty()).map(String::from).collect()
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
        assert_eq!(delay, Duration::from_secs(3600));
        assert_eq!(read("LOGTHON_INITIAL_LOGS", most).expect("bounded").initial_logs, 10_000);
        read("LOGTHON_PORT", "-1").expect_err("no port");
        read("LOGTHON_ALLOW_UNAUTHENTICATED", "maybe").expect_err("no answer");
    }

    #[test]
    fn a_wrong_value_is_named() {
        let error = Config::from_vars("logs", [("LOGTHON_PORT", "99999")]).expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_eq!(error.to_string(), "LOGTHON_PORT has to be a whole number in range, found \"99999\"");
    }
}
