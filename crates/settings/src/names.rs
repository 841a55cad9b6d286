//! Maps environment variables to keys: the process' own variables, and those of other systems.
//!
//! For a service `api-gateway`, in order of precedence:
//!
//! | variable | key | systems that use this name |
//! |---|---|---|
//! | `API_GATEWAY__HTTP__PORT` | `http.port` | the process' own: the service's name, then the key, with `__` between its parts; works for every key, and an unknown key is an error |
//! | `API_GATEWAY__CONFIG` | | the process' own: path of the configuration file |
//! | variables added by [`Loader::alias`](crate::Loader::alias) | | the process |
//! | `API_GATEWAY_HOST`, `API_GATEWAY_PORT` | `http.host`, `http.port` | SecureBox (`STORAGE_SERVICE_PORT`, …), Logthon (`LOGTHON_PORT`) |
//! | `API_GATEWAY_LOG_LEVEL` | `log.level` | Logthon (`LOGTHON_LOG_LEVEL`) |
//! | `PORT` | `http.port` | Render, the chatbot, most hosting services |
//! | `SERVICE_NAME` | `service.name` | all |
//! | `RUST_LOG` | `log.filter` | Rust programs |
//! | `LOG_LEVEL` | `log.level` | all |
//! | `EVENT_BUS_URL`, `EVENT_BUS_NAMESPACE` | `bus.url`, `bus.namespace` | event-client |
//! | `CELERY_BROKER_URL`, `CELERY_RESULT_BACKEND` | `tasks.url`, `tasks.results_url` | SecureBox, every Celery program |
//! | `JWT_ACCESS_SECRET`, `JWT_SECRET_KEY`, `JWT_SECRET`, `SECRET_KEY` | `auth.secret` | chatbot, SecureBox, users and orders, Django |
//! | `VAULT_ADDR`, `VAULT_TOKEN` | `vault.url`, `vault.token` | Edge-Terrarium, HashiCorp's own client |
//! | `USER_SERVICE_URL`, `AUTH_API_URL`, … | `peers.user`, `peers.auth`, … | all: `<PEER>_SERVICE_URL`, then `<PEER>_API_URL` |
//!
//! A process that has no such key ignores these shared names. `HOST` is not in the table on purpose: shells set it to
//! the machine's name. A value `tcp://…` of a port is ignored: Kubernetes sets `<NAME>_PORT` to such a value for
//! every Service of that name.

use crate::origin::Origin;
use crate::tree::{Leaf, Tree, Value};

/// The fixed rows of the table above, in order of precedence.
const SHARED: &[(&str, &str)] = &[
    ("PORT", "http.port"),
    ("SERVICE_NAME", "service.name"),
    ("RUST_LOG", "log.filter"),
    ("LOG_LEVEL", "log.level"),
    ("EVENT_BUS_URL", "bus.url"),
    ("EVENT_BUS_NAMESPACE", "bus.namespace"),
    ("CELERY_BROKER_URL", "tasks.url"),
    ("CELERY_RESULT_BACKEND", "tasks.results_url"),
    ("JWT_ACCESS_SECRET", "auth.secret"),
    ("JWT_SECRET_KEY", "auth.secret"),
    ("JWT_SECRET", "auth.secret"),
    ("SECRET_KEY", "auth.secret"),
    ("VAULT_ADDR", "vault.url"),
    ("VAULT_TOKEN", "vault.token"),
];

/// Suffixes of variables that contain a peer's address, in order of precedence.
const PEERS: &[&str] = &["_SERVICE_URL", "_API_URL"];

/// The variables that a process reads.
#[derive(Debug)]
pub(crate) struct Names {
    service: String,
    /// (variable, key), in order of precedence.
    known: Vec<(String, String)>,
}

impl Names {
    pub(crate) fn new(service: &str, aliases: Vec<(String, String)>) -> Self {
        let short = screaming(service);
        let known = aliases
            .into_iter()
            .chain([
                (format!("{short}_HOST"), "http.host".to_owned()),
                (format!("{short}_PORT"), "http.port".to_owned()),
                (format!("{short}_LOG_LEVEL"), "log.level".to_owned()),
            ])
            .chain(SHARED.iter().map(|(variable, key)| (variable.to_string(), key.to_string())))
            .collect();
        Self { service: service.to_owned(), known }
    }

    /// Returns the variable that contains the path of the configuration file.
    pub(crate) fn config_file(&self) -> String {
        own(&self.service, "config")
    }

    /// Returns whether this process reads the variable `name`.
    pub(crate) fn reads(&self, name: &str) -> bool {
        name.starts_with(&own(&self.service, "")) || self.known.iter().any(|(variable, _)| variable == name)
    }

    /// Returns the variables that set `key`, the process' own last, for messages that tell the user which variable to
    /// set.
    pub(crate) fn of(&self, key: &str) -> Vec<String> {
        let shared =
            self.known.iter().filter(|(_, known)| known == key).map(|(variable, _)| variable.clone());
        shared.chain([own(&self.service, key)]).collect()
    }

    /// Returns the values that `environment` sets; if several variables set the same key, the first in order of
    /// precedence applies.
    pub(crate) fn read(&self, environment: &[(String, String)]) -> Tree {
        let mut tree = Tree::default();
        let set = |tree: &mut Tree, key: &str, name: &str, value: &str, shared: bool| {
            let origin = Origin::Variable(name.to_owned());
            tree.put(key, Leaf { value: Value::Text(value.to_owned()), origin, shared });
        };
        let kubernetes = |key: &str, value: &str| key.ends_with("port") && value.starts_with("tcp://");
        let usable = |key: &str, value: &str| !value.is_empty() && !kubernetes(key, value);
        // In reverse order of precedence, so that later values replace earlier ones.
        for end in PEERS.iter().rev() {
            for (name, value) in environment.iter().filter(|(_, value)| !value.is_empty()) {
                if let Some(peer) =
                    name.strip_suffix(end).filter(|peer| !peer.is_empty() && !peer.contains("__"))
                {
                    set(&mut tree, &format!("peers.{}", peer.to_lowercase()), name, value, true);
                }
            }
        }
        for (variable, key) in self.known.iter().rev() {
            if let Some((name, value)) = environment.iter().find(|(n, v)| n == variable && usable(key, v)) {
                set(&mut tree, key, name, value, true);
            }
        }
        let (prefix, file) = (own(&self.service, ""), self.config_file());
        for (name, value) in environment.iter().filter(|(name, value)| !value.is_empty() && *name != file) {
            if let Some(key) = name.strip_prefix(&prefix).filter(|key| !key.is_empty()) {
                set(&mut tree, &key.to_lowercase().replace("__", "."), name, value, false);
            }
        }
        tree
    }
}

/// Returns the process' own variable of a key: `http.port` of `api-gateway` is `API_GATEWAY__HTTP__PORT`.
pub(crate) fn own(service: &str, key: &str) -> String {
    format!("{}__{}", screaming(service), key.to_uppercase().replace('.', "__"))
}

fn screaming(service: &str) -> String {
    service.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}
