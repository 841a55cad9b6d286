//! Loads the configuration of a process once: defaults, a file, the environment and flags; a later source overrides
//! an earlier one.
//!
//! Settings are a plain struct that derives `Deserialize`; fields without a default are required. A key is the path
//! to a field, for example `http.port`. It can be set
//! - in a TOML file: `[http]` and `port = 8080`,
//! - by the process' own variable: `BILLING__HTTP__PORT=8080` for the service `billing` (`__` between the parts of
//!   the key),
//! - by a variable that other systems use for the same setting, such as `PORT`: the table is in [`names`],
//! - by a command-line flag: [`Loader::flag`].
//!
//! Unknown keys are errors that suggest the most similar known key, and every error names the source of the value:
//! `http.port: expected a number, got "many" (from the variable PORT)`. An empty variable counts as
//! unset. A struct with `#[serde(flatten)]` accepts unknown keys without an error. A [`Secret`] is never shown,
//! and a [`Url`] is shown without its password. [`duration`] reads and writes durations such as `2h 30m`.

mod deserialize;
pub mod duration;
mod error;
mod file;
pub mod names;
mod origin;
mod secret;
mod tree;
mod url;

use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub use error::{Error, ErrorKind};
pub use origin::Origin;
pub use secret::Secret;
pub use url::Url;

/// Collects the sources of a configuration; [`load`](Self::load) reads them. The order of the calls has no effect.
pub struct Loader {
    service: String,
    defaults: Option<&'static str>,
    file: Option<(PathBuf, bool)>,
    aliases: Vec<(String, String)>,
    environment: Option<Vec<(String, String)>>,
    flags: Vec<(String, String, String)>,
}

/// Settings, and the source of each.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The settings.
    pub settings: T,
    service: String,
    origins: BTreeMap<String, Origin>,
}

/// Values from the environment and from flags may be secrets, so no value is shown.
impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("service", &self.service)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Loader {
    /// Makes a loader for `service`. The name (`api-gateway`) determines the names of the variables: the prefix
    /// `API_GATEWAY__` and the short forms `API_GATEWAY_HOST`, `API_GATEWAY_PORT`.
    pub fn new(service: impl Into<String>) -> Self {
        let (file, environment) = (None, None);
        Self {
            service: service.into(),
            defaults: None,
            file,
            aliases: Vec::new(),
            environment,
            flags: Vec::new(),
        }
    }

    /// Sets the defaults as TOML text, usually `include_str!("config.default.toml")`. A struct with
    /// `#[serde(default)]` needs none.
    pub fn defaults(mut self, toml: &'static str) -> Self {
        self.defaults = Some(toml);
        self
    }

    /// Adds a TOML file that must exist. The variable `<SERVICE>__CONFIG` can also name a file; this one takes
    /// precedence.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some((path.into(), true));
        self
    }

    /// Adds a TOML file that is read if it exists.
    pub fn file_if_present(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some((path.into(), false));
        self
    }

    /// Adds a variable for `key`. It is overridden by the process' own variable and overrides the table of [`names`].
    pub fn alias(mut self, variable: impl Into<String>, key: impl Into<String>) -> Self {
        self.aliases.push((variable.into(), key.into()));
        self
    }

    /// Uses these variables instead of the process' environment, for tests.
    pub fn environment<N: Into<String>, V: Into<String>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.environment = Some(variables.into_iter().map(|(n, v)| (n.into(), v.into())).collect());
        self
    }

    /// Adds a value from the command line; `None` does not change the key. `flag` is the name as typed, `--port`.
    pub fn flag(
        mut self,
        flag: impl Into<String>,
        key: impl Into<String>,
        value: Option<impl ToString>,
    ) -> Self {
        if let Some(value) = value {
            self.flags.push((flag.into(), key.into(), value.to_string()));
        }
        self
    }

    /// Reads every source and returns the settings.
    ///
    /// # Errors
    /// When a file cannot be read or is not TOML, a key is unknown, a value is not valid, or a required key is
    /// missing; the text names the key and the source of the value.
    pub fn load<T: DeserializeOwned>(self) -> Result<Loaded<T>, Error> {
        let mut tree = match self.defaults {
            Some(text) => file::parse(text, |_| Origin::Default)
                .map_err(|(line, why)| Error::new(ErrorKind::Syntax, format!("defaults:{line}: {why}")))?,
            None => tree::Tree::default(),
        };
        let names = names::Names::new(&self.service, self.aliases);
        let environment = match self.environment {
            Some(environment) => environment,
            None => process_environment(&names)?,
        };
        let named =
            environment.iter().find(|(name, value)| *name == names.config_file() && !value.is_empty());
        let file = match (self.file, named) {
            (Some((path, true)), _) => Some((path, true)),
            (_, Some((_, path))) => Some((PathBuf::from(path), true)),
            (file, None) => file,
        };
        let layer = file.map(|(path, required)| file::read(&path, required)).transpose()?;
        if let Some(layer) = layer.flatten() {
            tree.overlay(layer);
        }
        tree.overlay(names.read(&environment));
        for (flag, key, value) in self.flags {
            tree.set(&key, value.into(), Origin::Flag(flag));
        }
        let settings = deserialize::settings(&tree, &names)?;
        Ok(Loaded { settings, service: self.service, origins: tree.origins() })
    }
}

impl<T> Loaded<T> {
    /// Returns the settings.
    pub fn into_inner(self) -> T {
        self.settings
    }

    /// Returns the source of the value of `key`; `None` when the struct's own default applies.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.origins.get(key)
    }

    /// Returns every key that was set, with its source but without its value: safe to print.
    pub fn origins(&self) -> impl Iterator<Item = (&str, &Origin)> {
        self.origins.iter().map(|(key, origin)| (key.as_str(), origin))
    }

    /// Makes an error about a value that only the caller can check (an unsupported URL scheme, a missing directory),
    /// in the same form as the errors of [`Loader::load`].
    pub fn invalid(&self, key: &str, why: impl std::fmt::Display) -> Error {
        let from = match self.origin(key) {
            Some(origin) => format!("from {origin}"),
            None => format!("the default; set it with {}", names::own(&self.service, key)),
        };
        Error::new(ErrorKind::InvalidValue, format!("{key}: {why} ({from})"))
    }
}

/// Returns the variables of this process. A variable that is not UTF-8 is an error if this process reads it;
/// otherwise it is ignored.
fn process_environment(names: &names::Names) -> Result<Vec<(String, String)>, Error> {
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => environment.push((name, value)),
            Err(_) if names.reads(&name) => {
                return Err(Error::new(ErrorKind::InvalidValue, format!("the variable {name} is not UTF-8")));
            }
            Err(_) => {}
        }
    }
    Ok(environment)
}

#[cfg(test)]
mod tests;
