//! Settings of the commands that run the whole backbone: built-in defaults, a settings file, the environment and flags.

use std::path::PathBuf;

use event_client::Bus;
use serde::Deserialize;
use service_kit::config::{Loader, Url};
use service_kit::{http, shutdown, telemetry};

/// The settings of `up`, and those of `demo` as far as it does not set them itself. Each field is a section of the
/// settings file.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    /// Directory of the task store and the logs, and of the bus unless `bus.url` names another one.
    pub(crate) data_dir: PathBuf,
    pub(crate) bus: BusSettings,
    pub(crate) http: http::Settings,
    pub(crate) log: telemetry::Settings,
    /// Limits of the log port.
    pub(crate) logs: log_aggregator::Config,
    pub(crate) shutdown: shutdown::Settings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct BusSettings {
    /// URL of the bus; default: a file in the data directory.
    pub(crate) url: Option<Url>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: Bus::DEFAULT_FOLDER.into(),
            bus: BusSettings::default(),
            http: http::Settings::default(),
            log: telemetry::Settings::default(),
            logs: log_aggregator::Config::default(),
            shutdown: shutdown::Settings::default(),
        }
    }
}

/// Returns a loader with every variable of the backbone; a command adds its flags.
pub(crate) fn loader() -> Loader {
    let own = [("BACKBONE_DATA_DIR", "data_dir"), ("BACKBONE_SHUTDOWN_NOTICE", "shutdown.notice")];
    let variables = own.into_iter().chain(log_aggregator::Config::VARIABLES);
    variables.fold(Loader::new("backbone"), |loader, (variable, key)| loader.alias(variable, key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn load(variables: &[(&str, &str)]) -> Result<Settings, service_kit::config::Error> {
        Ok(loader().environment(variables.iter().copied()).load::<Settings>()?.into_inner())
    }

    #[test]
    fn every_variable_sets_its_key() {
        let settings = load(&[
            ("BACKBONE_DATA_DIR", "/var/lib/backbone"),
            ("BACKBONE_SHUTDOWN_NOTICE", "5s"),
            ("BACKBONE__SHUTDOWN__DRAIN", "1m"),
            ("EVENT_BUS_URL", "nats://h"),
            ("LOGTHON_HOST", "0.0.0.0"),
            ("LOGTHON_PORT", "5001"),
            ("PORT", "5002"),
            ("LOGTHON_ALLOW_UNAUTHENTICATED", "true"),
            ("LOGTHON_ALLOWED_HOSTS", "backbone,logthon"),
            ("LOGTHON_ALLOWED_ORIGINS", "https://ops.example"),
            ("LOGTHON_MAX_WS_CONNECTIONS", "7"),
            ("LOG_LEVEL", "warn"),
        ])
        .expect("sound");
        assert_eq!(settings.data_dir, PathBuf::from("/var/lib/backbone"));
        assert_eq!(settings.bus.url.as_ref().map(Url::expose), Some("nats://h"));
        let http = http::Settings {
            host: "0.0.0.0".into(),
            port: 5001,
            allow_unauthenticated: true,
            allowed_hosts: vec!["backbone".into(), "logthon".into()],
            allowed_origins: vec!["https://ops.example".into()],
        };
        assert_eq!(settings.http, http);
        assert_eq!(settings.log.level, telemetry::Level::Warn);
        assert_eq!(settings.logs.max_viewers, 7);
        let limits = shutdown::Settings { notice: Duration::from_secs(5), drain: Duration::from_secs(60) };
        assert_eq!(settings.shutdown, limits);
    }

    #[test]
    fn the_port_is_taken_from_the_most_specific_variable() {
        let port = |variables: &[(&str, &str)]| load(variables).expect("sound").http.port;
        assert_eq!(port(&[]), 5000);
        assert_eq!(port(&[("PORT", "1")]), 1);
        assert_eq!(port(&[("PORT", "1"), ("LOGTHON_PORT", "2")]), 2);
        assert_eq!(port(&[("BACKBONE__HTTP__PORT", "3"), ("LOGTHON_PORT", "2")]), 3);
        let error = load(&[("PORT", "many")]).expect_err("no number").to_string();
        assert!(error.contains("the variable PORT") && error.contains("many"), "{error}");
    }

    #[test]
    fn the_file_sets_keys_and_an_unknown_one_is_refused_with_a_suggestion() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("backbone.toml");
        let file = |text: &str| {
            std::fs::write(&path, text).expect("written");
            load(&[("BACKBONE__CONFIG", path.to_str().expect("UTF-8")), ("PORT", "5002")])
        };
        let settings = file(
            "data_dir = '/srv'\n[bus]\nurl = 'memory:'\n[http]\nport = 1\nallowed_hosts = ['a']\n\
             [logs]\nreconnect_delay = '9s'\nmax_logs = { shop = 7 }\n[shutdown]\nnotice = '2s'\n",
        )
        .expect("sound");
        assert_eq!((settings.http.port, &*settings.http.allowed_hosts), (5002, &["a".to_owned()][..]));
        assert_eq!(settings.logs.reconnect_delay, Duration::from_secs(9));
        assert_eq!(settings.logs.max_logs["shop"], 7);
        assert_eq!(settings.shutdown.notice, Duration::from_secs(2));
        assert_eq!(settings.bus.url.as_ref().map(Url::expose), Some("memory:"));
        let error = file("[http]\nprot = 1\n").expect_err("unknown").to_string();
        assert!(error.starts_with("http.prot: unknown key; did you mean \"port\"? (from"), "{error}");
    }
}
