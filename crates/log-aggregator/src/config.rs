//! What an aggregator can be told, with Logthon's names where they mean the same.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// Settings of an aggregator.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Directory of the log store.
    pub dir: PathBuf,
    /// Address to listen on, for the program that serves the router (`LOGTHON_HOST`). Default: loopback, where
    /// Logthon's was every address: the API has no login.
    pub host: String,
    /// Port to listen on (`LOGTHON_PORT`). Default 5000.
    pub port: u16,
    /// Viewers at once, over WebSocket and server-sent events together (`LOGTHON_MAX_WS_CONNECTIONS`). Default 100.
    pub max_viewers: usize,
    /// Records that a WebSocket viewer gets first (`LOGTHON_INITIAL_LOGS`). Default 50.
    pub initial_logs: usize,
    /// How long the page waits before it connects again (`LOGTHON_RECONNECT_DELAY`, milliseconds). Default 3 s.
    pub reconnect_delay: Duration,
    /// What `/storage/info` gives as `max_size`, by service (`LOGTHON_Custom_CLIENT_MAX_LOGS`,
    /// `LOGTHON_SERVICE_SINK_MAX_LOGS`, `LOGTHON_LOGTHON_MAX_LOGS`). Default 1000 for every service. Unlike
    /// Logthon's, this store drops nothing when that many are there.
    pub max_logs: BTreeMap<String, u64>,
    /// Base URL of the service behind `/files` (`FILE_STORAGE_URL`). Default: none, `/files` says so.
    pub file_storage_url: Option<String>,
    /// Longest body of a submission in bytes; a longer one answers 413. Default 1 MiB.
    pub max_body: usize,
    /// Longest time a sender may take over a body; then 408. Default 10 s.
    pub body_timeout: Duration,
    /// Bound of a day's file, see [`SqliteOptions::max_day_bytes`](crate::store::SqliteOptions::max_day_bytes).
    pub max_day_bytes: Option<u64>,
    /// Origins, such as `https://ops.example:8443`, whose pages may watch over WebSocket and send changes, beside the
    /// server's own (`LOGTHON_ALLOWED_ORIGINS`, separated by commas). Default: none. Needed where a proxy rewrites
    /// `Host` and sends no `X-Forwarded-Host`. Pages of these origins still cannot read answers: no CORS header is sent.
    pub allowed_origins: Vec<String>,
    /// Whether the aggregator logs its own start as service `logthon`, as the original does. Default true.
    pub announce: bool,
}

impl Config {
    /// The defaults, with the store in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            host: "127.0.0.1".into(),
            port: 5000,
            max_viewers: 100,
            initial_logs: 50,
            reconnect_delay: Duration::from_secs(3),
            max_logs: BTreeMap::new(),
            file_storage_url: None,
            max_body: 1024 * 1024,
            body_timeout: Duration::from_secs(10),
            max_day_bytes: None,
            allowed_origins: Vec::new(),
            announce: true,
        }
    }

    /// The defaults, changed by Logthon's variables; other variables are left alone.
    ///
    /// `LOGTHON_LOG_LEVEL` and `LOGTHON_ACCESS_LOG` belong to the program around the aggregator.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when a value is not what the variable asks for.
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
                "LOGTHON_HOST" => config.host = value.into(),
                "LOGTHON_PORT" => config.port = number(name, value)?,
                "LOGTHON_MAX_WS_CONNECTIONS" => config.max_viewers = number(name, value)?,
                "LOGTHON_INITIAL_LOGS" => config.initial_logs = number::<usize>(name, value)?.min(10_000),
                "LOGTHON_RECONNECT_DELAY" => {
                    config.reconnect_delay = Duration::from_millis(number(name, value)?);
                }
                "LOGTHON_Custom_CLIENT_MAX_LOGS" => max_logs("custom-client", number(name, value)?),
                "LOGTHON_SERVICE_SINK_MAX_LOGS" => max_logs("service-sink", number(name, value)?),
                "LOGTHON_LOGTHON_MAX_LOGS" => max_logs("logthon", number(name, value)?),
                "LOGTHON_ALLOWED_ORIGINS" => config.allowed_origins = origins(name, value)?,
                "FILE_STORAGE_URL" => {
                    config.file_storage_url = (!value.is_empty()).then(|| value.trim_end_matches('/').into());
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

/// Origins as browsers write them: lower case, no usual port, no slash at the end.
fn origins(name: &str, value: &str) -> Result<Vec<String>> {
    let given = value.split(',').map(str::trim).filter(|text| !text.is_empty());
    given
        .map(|text| match reqwest::Url::parse(text) {
            // What follows the host would never match anything: the writer meant something else.
            Ok(url)
                if url.origin().is_tuple()
                    && url.as_str() == format!("{}/", url.origin().ascii_serialization()) =>
            {
                Ok(url.origin().ascii_serialization())
            }
            _ => {
                let text =
                    format!("{name} has to list origins such as https://ops.example:8443, found {text:?}");
                Err(Error::new(ErrorKind::Config, text))
            }
        })
        .collect()
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
            ("FILE_STORAGE_URL", "http://files:9000/"),
            ("HOME", "/root"),
        ];
        let config = Config::from_vars("logs", vars).expect("sound values");
        assert_eq!((config.port, config.max_viewers), (5001, 7));
        assert_eq!(config.max_logs["custom-client"], 20);
        assert_eq!(config.file_storage_url.as_deref(), Some("http://files:9000"));
        assert_eq!((config.host.as_str(), config.initial_logs), ("127.0.0.1", 50));
    }

    #[test]
    fn origins_are_read_as_browsers_write_them() {
        let read = |text: &str| Config::from_vars("logs", [("LOGTHON_ALLOWED_ORIGINS", text)]);
        let config = read("https://Ops.example:443/, http://a:8080,").expect("sound values");
        assert_eq!(config.allowed_origins, ["https://ops.example", "http://a:8080"]);
        for wrong in ["*", "null", "ops.example", "localhost:5000", "https://a/path", "https://a?x"] {
            let error = read(wrong).expect_err(wrong);
            assert!(error.to_string().contains(&format!("{wrong:?}")), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_is_named() {
        let error = Config::from_vars("logs", [("LOGTHON_PORT", "99999")]).expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_eq!(error.to_string(), "LOGTHON_PORT has to be a whole number in range, found \"99999\"");
    }
}
