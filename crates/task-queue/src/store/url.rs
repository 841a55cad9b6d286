//! Parses and opens store URLs; for a URL that this build cannot open, the error names the accepted form.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    TaskStore,
    sqlite::{Durability, SqliteOptions, SqliteStore},
};
use crate::{Error, ErrorKind, Result};

/// A parsed store URL.
#[derive(Debug, Clone)]
pub enum StoreUrl {
    /// `sqlite:PATH[?durability=fsync|page-cache][&lease=8s][&patience=7d]`
    Sqlite(SqliteOptions),
}

const WORKS: &str = "this build opens `sqlite:PATH`, for example `sqlite:./tasks.db`";

impl StoreUrl {
    /// Parses a URL without opening the store.
    ///
    /// # Errors
    /// [`ErrorKind::Url`] for other schemes and unknown or bad options, with the accepted form.
    pub fn parse(url: &str) -> Result<Self> {
        let bad = |text: String| Error::new(ErrorKind::Url, text);
        let Some((scheme, rest)) = url.split_once(':') else {
            return Err(bad(format!("`{url}` is not a store url: {WORKS}")));
        };
        match scheme {
            "sqlite" => {}
            "redis" | "rediss" | "amqp" | "amqps" | "postgres" | "postgresql" | "nats" | "sqs" => {
                return Err(bad(format!("task stores on `{scheme}:` are not in this build: {WORKS}")));
            }
            "memory" => {
                return Err(bad(format!(
                    "a task store must survive its process, so `memory:` is not supported: {WORKS}"
                )));
            }
            _ => return Err(bad(format!("unknown scheme `{scheme}:` of a task store: {WORKS}"))),
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = path.strip_prefix("//").unwrap_or(path);
        let path = percent_encoding::percent_decode_str(path)
            .decode_utf8()
            .map_err(|error| bad(format!("the path of `{url}` is not utf-8")).because(error))?;
        if path.is_empty() || path.starts_with(":memory:") {
            return Err(bad(format!("`{url}` names no file: {WORKS}")));
        }
        let mut options = SqliteOptions::new(PathBuf::from(path.as_ref()));
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (key, value) {
                ("durability", "fsync") => options.durability = Durability::Fsync,
                ("durability", "page-cache") => options.durability = Durability::PageCache,
                ("lease", text) => options.lease = length("lease", text)?,
                ("patience", text) => options.patience = length("patience", text)?,
                _ => {
                    return Err(bad(format!(
                        "unknown option `{pair}` in `{url}`: known are durability=fsync|page-cache, lease=TIME and \
                         patience=TIME"
                    )));
                }
            }
        }
        options.check().map_err(|error| bad(error.to_string()))?;
        Ok(Self::Sqlite(options))
    }
}

/// Opens the store that a URL names: `sqlite:PATH` in this build.
///
/// # Errors
/// [`ErrorKind::Url`] for another scheme or an unknown option, with the accepted forms; otherwise the
/// error of opening the file.
pub async fn open(url: &str) -> Result<Arc<dyn TaskStore>> {
    match StoreUrl::parse(url)? {
        StoreUrl::Sqlite(options) => Ok(Arc::new(SqliteStore::open(options).await?)),
    }
}

fn length(option: &str, text: &str) -> Result<Duration> {
    let bad =
        || Error::new(ErrorKind::Url, format!("`{option}={text}` is not a duration such as `8s` or `7d`"));
    settings::duration::parse(text).ok_or_else(bad)
}

/// Returns the URL of the task store of an event bus: for `sqlite:dir/bus.db` it is `sqlite:dir/bus-tasks.db`, a
/// separate file so that its writer never waits for the bus's writer.
///
/// # Errors
/// [`ErrorKind::Url`] when the bus stores nothing on disk, or when its kind has no task store yet.
pub fn url_beside_bus(bus: &str) -> Result<String> {
    let StoreUrl::Sqlite(options) = StoreUrl::parse(bus.split('?').next().unwrap_or(bus))?;
    let stem = options.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let file = options.path.with_file_name(format!("{stem}-tasks.db"));
    Ok(format!("sqlite:{}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_works_for_other_brokers() {
        for url in
            ["redis://localhost", "amqp://localhost//", "memory:", "sqlite:", "sqlite::memory:", "x", "ftp:x"]
        {
            let error = StoreUrl::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Url, "{url}");
            assert!(error.to_string().contains("sqlite:PATH"), "{error}");
        }
    }

    #[test]
    fn reads_paths_and_options() {
        let StoreUrl::Sqlite(options) =
            StoreUrl::parse("sqlite:///var/a%20b.db?lease=500ms&durability=page-cache&patience=2d").unwrap();
        assert_eq!(options.path, PathBuf::from("/var/a b.db"));
        assert_eq!(options.lease, Duration::from_millis(500));
        assert_eq!(options.durability, Durability::PageCache);
        assert_eq!(options.patience, Duration::from_secs(2 * 86_400));
        for bad in [
            "sqlite:x?lease=1",
            "sqlite:x?lease=1ms",
            "sqlite:x?lease=99999999999h",
            "sqlite:x?patience=0s",
            "sqlite:x?patience=99999999999h",
            "sqlite:x?durability=no",
            "sqlite:x?y=1",
        ] {
            assert_eq!(StoreUrl::parse(bad).unwrap_err().kind(), ErrorKind::Url, "{bad}");
        }
    }

    #[test]
    fn stands_beside_the_bus() {
        assert_eq!(
            url_beside_bus("sqlite:data/bus.db?synchronous=full").unwrap(),
            "sqlite:data/bus-tasks.db"
        );
        assert_eq!(url_beside_bus("nats://x").unwrap_err().kind(), ErrorKind::Url);
    }
}
