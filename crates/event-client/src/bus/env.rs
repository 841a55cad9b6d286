//! Settings from the environment: the one place in this crate that reads it.

use super::{Bus, Settings};
use crate::error::Result;

impl Bus {
    /// The variables that [`Bus::from_env`] reads.
    pub const VARIABLES: [(&'static str, &'static str); 2] = [
        ("EVENT_BUS_URL", "where the bus is; default `sqlite:backbone-data/bus.db`"),
        ("EVENT_BUS_CODEC", "`json` (default) or `msgpack`"),
    ];

    /// The URL used when `EVENT_BUS_URL` is not set: a file that every process of this folder shares.
    pub const DEFAULT_URL: &'static str = "sqlite:backbone-data/bus.db";

    /// Connects as the environment says, publishing as `/<service>`.
    ///
    /// # Errors
    /// As [`Bus::connect`], and for a value that cannot be read, naming its variable.
    pub async fn from_env(service: &str) -> Result<Self> {
        let url = std::env::var("EVENT_BUS_URL").unwrap_or_else(|_| Self::DEFAULT_URL.to_owned());
        let mut settings =
            Settings { source: smol_str::format_smolstr!("/{service}"), ..Settings::default() };
        if let Ok(codec) = std::env::var("EVENT_BUS_CODEC") {
            settings.codec =
                codec.parse().map_err(|error: crate::Error| error.with("variable", "EVENT_BUS_CODEC"))?;
        }
        Self::connect_with(&url, settings).await
    }
}
