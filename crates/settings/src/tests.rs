//! Tests every source and every kind of error, and that no error shows a secret.

use super::*;
use serde::Deserialize;
use std::time::Duration;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    http: Http,
    bus: Bus,
    auth: Auth,
    log: Log,
    peers: BTreeMap<String, Url>,
    origins: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Http {
    host: String,
    port: u16,
    tls: bool,
    ratio: f64,
    #[serde(with = "crate::duration::text")]
    timeout: Duration,
}

impl Default for Http {
    fn default() -> Self {
        let timeout = Duration::from_secs(30);
        Self { host: "127.0.0.1".into(), port: 5000, tls: false, ratio: 0.5, timeout }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Bus {
    url: Url,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    secret: Option<Secret>,
    pin: Secret,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Log {
    level: Level,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Level {
    #[default]
    Info,
    Warn,
}

const NOTHING: [(&str, &str); 0] = [];

fn loader() -> Loader {
    Loader::new("api-gateway").environment(NOTHING)
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[track_caller]
fn refused(loader: Loader, kind: ErrorKind, text: &str) {
    let error = loader.load::<Settings>().expect_err("refused");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn later_sources_win_and_are_remembered() {
    let (_folder, path) = file("[http]\nport = 1001\nhost = 'file'\ntls = true\ntimeout = '1m 30s'\n");
    let loaded = loader()
        .flag("--port", "http.port", Some(1003))
        .flag("--host", "http.host", None::<String>)
        .environment([("API_GATEWAY__HTTP__PORT", "1002"), ("API_GATEWAY__HTTP__RATIO", "2")])
        .defaults("[http]\nport = 1000\n[bus]\nurl = 'memory:'\n")
        .file(&path)
        .load::<Settings>()
        .unwrap();
    assert_eq!(loaded.settings.http.port, 1003);
    assert_eq!(loaded.settings.http.host, "file");
    assert!(loaded.settings.http.tls);
    assert_eq!(loaded.settings.http.ratio, 2.0);
    assert_eq!(loaded.settings.http.timeout, Duration::from_secs(90));
    assert_eq!(loaded.settings.bus.url.expose(), "memory:");
    assert_eq!(loaded.origin("http.port"), Some(&Origin::Flag("--port".into())));
    assert_eq!(loaded.origin("http.host"), Some(&Origin::File(path.display().to_string(), 3)));
    assert_eq!(loaded.origin("http.ratio"), Some(&Origin::Variable("API_GATEWAY__HTTP__RATIO".into())));
    assert_eq!(loaded.origin("bus.url"), Some(&Origin::Default));
    assert_eq!(loaded.origin("log.level"), None);
}

#[test]
fn names_of_other_systems_mean_the_same_thing() {
    let load = |variables: &[(&str, &str)]| {
        loader().environment(variables.iter().copied()).load::<Settings>().unwrap().into_inner()
    };
    assert_eq!(load(&[("PORT", "8080")]).http.port, 8080);
    assert_eq!(load(&[("API_GATEWAY_PORT", "1"), ("PORT", "2")]).http.port, 1);
    assert_eq!(load(&[("API_GATEWAY__HTTP__PORT", "3"), ("API_GATEWAY_PORT", "1")]).http.port, 3);
    assert_eq!(load(&[("API_GATEWAY_HOST", "0.0.0.0")]).http.host, "0.0.0.0");
    assert_eq!(load(&[("EVENT_BUS_URL", "sqlite:a.db")]).bus.url.expose(), "sqlite:a.db");
    assert_eq!(load(&[("LOG_LEVEL", "warn")]).log.level, Level::Warn);
    let auth = load(&[("SECRET_KEY", "weak"), ("JWT_ACCESS_SECRET", "strong")]).auth;
    assert_eq!(auth.secret.unwrap().expose(), "strong");
    let peers = load(&[("USER_SERVICE_URL", "http://u"), ("AUTH_API_URL", "http://a")]).peers;
    assert_eq!((peers["user"].expose(), peers["auth"].expose()), ("http://u", "http://a"));
}

#[test]
fn what_is_not_meant_for_this_process_is_passed_over() {
    let variables = [
        ("PORT", ""),                                // unset, as compose files write it
        ("API_GATEWAY_PORT", "tcp://10.0.0.1:5000"), // set by Kubernetes
        ("CELERY_BROKER_URL", "redis://elsewhere"),  // this process has no tasks
        ("VAULT_TOKEN", "root"),
        ("OTHER__HTTP__PORT", "9"),
        ("HOST", "my-laptop"),
    ];
    let settings = loader().environment(variables).load::<Settings>().unwrap().into_inner();
    assert_eq!((settings.http.port, &*settings.http.host), (5000, "127.0.0.1"));
}

#[test]
fn an_alias_of_the_process_is_stronger_than_the_shared_table() {
    let variables = [("LOGTHON_PORT", "5001"), ("PORT", "1")];
    let loader = loader().alias("LOGTHON_PORT", "http.port").environment(variables);
    assert_eq!(loader.load::<Settings>().unwrap().settings.http.port, 5001);
}

#[test]
fn lists_and_switches_are_read_from_words() {
    let variables = [("API_GATEWAY__ORIGINS", "a, b ,"), ("API_GATEWAY__HTTP__TLS", "on")];
    let settings = loader().environment(variables).load::<Settings>().unwrap().into_inner();
    assert_eq!(settings.origins, ["a", "b"]);
    assert!(settings.http.tls);
}

#[test]
fn the_environment_may_name_the_file() {
    let (_folder, path) = file("[http]\nport = 7\n");
    let variables = [("API_GATEWAY__CONFIG", path.to_str().unwrap())];
    let loader = loader().file_if_present("not-there.toml").environment(variables);
    assert_eq!(loader.load::<Settings>().unwrap().settings.http.port, 7);
}

#[test]
fn unknown_keys_suggest_the_nearest() {
    let (_folder, path) = file("[http]\nhost = 'x'\n\nprot = 1\n");
    refused(loader().file(&path), ErrorKind::UnknownKey, "http.prot: unknown key; did you mean \"port\"?");
    refused(loader().file(&path), ErrorKind::UnknownKey, "app.toml:4)");
    refused(
        loader().environment([("API_GATEWAY__LOGS__LEVEL", "info")]),
        ErrorKind::UnknownKey,
        "logs: unknown key; did you mean \"log\"? (from the variable API_GATEWAY__LOGS__LEVEL)",
    );
    refused(
        loader().flag("-x", "bus.zzz", Some("")),
        ErrorKind::UnknownKey,
        "known here: url (from the flag -x)",
    );
}

#[test]
fn values_that_do_not_fit_name_key_and_source() {
    let port = |value: &str| loader().environment([("PORT", value.to_owned())]);
    refused(
        port("many"),
        ErrorKind::InvalidValue,
        "http.port: expected a number, got \"many\" (from the variable PORT)",
    );
    refused(port("70000"), ErrorKind::InvalidValue, "http.port: ");
    refused(port("-1"), ErrorKind::InvalidValue, "http.port: ");
    let (_folder, path) = file("http.port = 'many'\n");
    refused(loader().file(&path), ErrorKind::InvalidValue, "http.port: expected u16, got text");
    refused(loader().flag("--t", "http.timeout", Some("soon")), ErrorKind::InvalidValue, "http.timeout: ");
    refused(
        loader().flag("--level", "log.level", Some("wran")),
        ErrorKind::InvalidValue,
        "did you mean \"warn\"?",
    );
    refused(
        loader().flag("--http", "http", Some("x")),
        ErrorKind::InvalidValue,
        "http: expected a table with the keys host",
    );
    refused(
        loader().environment([("API_GATEWAY__HTTP__TLS", "perhaps")]),
        ErrorKind::InvalidValue,
        "expected true or false",
    );
}

#[test]
fn broken_and_missing_files_are_errors() {
    let (folder, path) = file("[http]\nport = = 1\n");
    refused(loader().file(&path), ErrorKind::Syntax, "app.toml:2: ");
    refused(loader().file(folder.path().join("none.toml")), ErrorKind::Unreadable, "none.toml");
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    refused(loader().file_if_present(&path), ErrorKind::Unreadable, "app.toml");
}

#[test]
fn required_keys_say_how_to_be_set() {
    #[derive(Debug, Deserialize)]
    struct Strict {
        #[expect(dead_code, reason = "only its absence matters")]
        bus: Required,
    }
    #[derive(Debug, Deserialize)]
    struct Required {
        #[expect(dead_code, reason = "only its absence matters")]
        url: Url,
    }
    let (_folder, path) = file("[bus]\n");
    let error = loader().file(path).load::<Strict>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingKey);
    let text = "bus.url: is not set and has no default; set it in the file or as EVENT_BUS_URL or API_GATEWAY__BUS__URL";
    assert_eq!(error.to_string(), text);
    let error = loader().load::<Strict>().unwrap_err();
    assert!(error.to_string().starts_with("bus: is not set"), "{error}");
}

#[test]
fn secrets_are_never_shown() {
    let variables = [
        ("JWT_SECRET", "hunter2"),
        ("EVENT_BUS_URL", "nats://a:hunter2@h"),
        ("API_GATEWAY__AUTH__PIN", "hunter2"),
    ];
    let loaded = loader().environment(variables).load::<Settings>().unwrap();
    assert!(!format!("{loaded:?}").contains("hunter2"), "{loaded:?}");
    assert_eq!(loaded.settings.auth.pin.expose(), "hunter2");
    for text in
        ["auth.pin = 1234567", "auth.pin = { a = '1234567' }", "bus.url = 1234567", "auth.secret = [1234567]"]
    {
        let (_folder, path) = file(text);
        let error = loader().file(path).load::<Settings>().unwrap_err();
        assert!(error.to_string().contains("expected text (the value is not shown"), "{error}");
        assert!(!format!("{error:?}").contains("1234567"), "{error:?}");
    }
    let (_folder, path) = file("auth.pin = 'hunter2\n");
    let error = loader().file(path).load::<Settings>().unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[test]
fn a_caller_can_refuse_in_the_same_form() {
    let loaded = loader().environment([("EVENT_BUS_URL", "ftp://x")]).load::<Settings>().unwrap();
    assert_eq!(
        loaded.invalid("bus.url", "no such scheme").to_string(),
        "bus.url: no such scheme (from the variable EVENT_BUS_URL)"
    );
    let text = loaded.invalid("http.port", "is taken").to_string();
    assert_eq!(text, "http.port: is taken (the default; set it with API_GATEWAY__HTTP__PORT)");
}
