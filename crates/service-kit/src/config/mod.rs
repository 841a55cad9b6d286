//! Configuration, read once: defaults, then a file, then the environment, then flags; the later wins.
//!
//! Settings are a plain struct that derives `Deserialize`; fields without a default are required. A key is the
//! path to a field, `http.port`. It can be set
//! - in a TOML file: `[http]` and `port = 8080`,
//! - by a variable of the process' own: `BILLING__HTTP__PORT=8080` for the service `billing` (`__` at each step),
//! - by a variable that means the same thing in a system that moves here, such as `PORT`: the table is [`names`],
//! - by a flag of the command line: [`Loader::flag`].
//!
//! Unknown keys are errors that suggest the nearest known one, and every error says where the value came from:
//! `http.port: expected a number from 0 to 65535, got "many" (from the variable PORT)`. An empty variable counts
//! as unset. A struct with `#[serde(flatten)]` takes unknown keys in without a word. Values of type [`Secret`] and [`Url`] are never shown.

mod deserialize;
mod file;
pub mod names;
mod origin;
mod secret;
mod tree;
mod url;

use crate::{Error, Kind};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use origin::Origin;
pub use secret::Secret;
pub use url::Url;

/// Collects the sources of a configuration; [`load`](Self::load) reads them, whatever the order of the calls.
pub struct Loader {
    service: String,
    defaults: Option<&'static str>,
    file: Option<(PathBuf, bool)>,
    aliases: Vec<(String, String)>,
    environment: Option<Vec<(String, String)>>,
    flags: Vec<(String, String, String)>,
}

/// Settings, and where each came from.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The settings themselves.
    pub settings: T,
    service: String,
    origins: BTreeMap<String, Origin>,
}

/// Values from the environment and from flags may be secrets, so none is shown.
impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("service", &self.service)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Loader {
    /// A configuration for `service`, whose name (`api-gateway`) gives the names of its variables: the prefix
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

    /// The defaults as TOML text, usually `include_str!("config.default.toml")`. A struct with
    /// `#[serde(default)]` needs none.
    pub fn defaults(mut self, toml: &'static str) -> Self {
        self.defaults = Some(toml);
        self
    }

    /// A TOML file that must be there. `<SERVICE>__CONFIG` in the environment names one as well; this one wins.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some((path.into(), true));
        self
    }

    /// A TOML file that is read when it is there.
    pub fn file_if_present(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some((path.into(), false));
        self
    }

    /// A further variable for `key`, weaker than the process' own and stronger than the table of [`names`].
    pub fn alias(mut self, variable: impl Into<String>, key: impl Into<String>) -> Self {
        self.aliases.push((variable.into(), key.into()));
        self
    }

    /// Uses these variables in place of the process' environment: for tests.
    pub fn environment<N: Into<String>, V: Into<String>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.environment = Some(variables.into_iter().map(|(n, v)| (n.into(), v.into())).collect());
        self
    }

    /// A value from the command line; none leaves the key alone. `flag` is its name as typed, `--port`.
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
    /// When a file cannot be read or is not TOML, a key is unknown, a value does not fit, or a required key is
    /// missing; the text names the key and where the value came from.
    pub fn load<T: DeserializeOwned>(self) -> Result<Loaded<T>, Error> {
        let mut tree = match self.defaults {
            Some(text) => file::parse(text, |_| Origin::Default)
                .map_err(|(line, why)| Error::new(Kind::Syntax, format!("defaults:{line}: {why}")))?,
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
    /// The settings alone.
    pub fn into_inner(self) -> T {
        self.settings
    }

    /// Where the value of `key` came from; none when the struct's own default holds.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.origins.get(key)
    }

    /// Every key that was set, with its origin, and never its value: safe to print.
    pub fn origins(&self) -> impl Iterator<Item = (&str, &Origin)> {
        self.origins.iter().map(|(key, origin)| (key.as_str(), origin))
    }

    /// An error about a value that only the caller can judge (a scheme it lacks, a folder that is missing), in
    /// the same form as the errors of [`Loader::load`].
    pub fn invalid(&self, key: &str, why: impl std::fmt::Display) -> Error {
        let from = match self.origin(key) {
            Some(origin) => format!("from {origin}"),
            None => format!("the default; set it with {}", names::own(&self.service, key)),
        };
        Error::new(Kind::InvalidValue, format!("{key}: {why} ({from})"))
    }
}

/// The variables of this process. One that is not UTF-8 is an error when it is ours, and passed over otherwise.
fn process_environment(names: &names::Names) -> Result<Vec<(String, String)>, Error> {
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => environment.push((name, value)),
            Err(_) if names.reads(&name) => {
                return Err(Error::new(Kind::InvalidValue, format!("the variable {name} is not UTF-8")));
            }
            Err(_) => {}
        }
    }
    Ok(environment)
}

/// The path as it appears in messages.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests;
