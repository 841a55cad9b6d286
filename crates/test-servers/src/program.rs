//! Finds the programs of each generation of the servers.

use crate::{Error, ErrorKind, Result};
use std::env;
use std::path::{Path, PathBuf};

/// The generation of a server to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Generation {
    /// The system's servers. On Debian 12: NATS 2.9, Redis 7.0, RabbitMQ 3.10.
    #[default]
    Old,
    /// The servers that `ops/dev/install --new` fetched from Debian's next suite: NATS 2.15, Redis 8,
    /// RabbitMQ 4.3.
    New,
}

impl Generation {
    /// Both generations, the older first.
    pub const ALL: [Self; 2] = [Self::Old, Self::New];

    /// Finds `name`, a program of package `package`.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`], whose text contains the command that installs it.
    pub fn program(self, name: &str, package: &str) -> Result<PathBuf> {
        let folders = match self {
            Self::Old => {
                let path = env::var_os("PATH").unwrap_or_default();
                let known = ["/usr/sbin", "/usr/local/sbin", "/usr/bin"].map(PathBuf::from);
                env::split_paths(&path).chain(known).collect::<Vec<_>>()
            }
            Self::New => ["usr/sbin", "usr/bin"].map(|folder| newer().join(folder)).to_vec(),
        };
        let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        found.ok_or_else(|| self.missing(name, package))
    }

    /// Returns the root of this generation's files: `/`, or the folder into which the newer ones were
    /// unpacked.
    pub(crate) fn root(self) -> PathBuf {
        match self {
            Self::Old => PathBuf::from("/"),
            Self::New => newer(),
        }
    }

    pub(crate) fn missing(self, name: &str, package: &str) -> Error {
        let text = match self {
            Self::Old => {
                format!("{name} is missing; install it: ops/dev/install (or apt-get install {package})")
            }
            Self::New => {
                format!(
                    "the newer {name} is missing in {}; fetch it: ops/dev/install --new",
                    newer().display()
                )
            }
        };
        Error::new(ErrorKind::Missing, text)
    }
}

/// Returns the folder into which `ops/dev/install --new` unpacks; `BACKBONE_SERVERS` changes it.
fn newer() -> PathBuf {
    let cache = || {
        let home = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
        home.unwrap_or_else(|| PathBuf::from("/var/cache")).join("backbone/servers")
    };
    env::var_os("BACKBONE_SERVERS").map_or_else(cache, PathBuf::from).join("root")
}
