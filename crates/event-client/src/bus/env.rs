//! Settings from the environment: the one place in this crate that reads it.

use std::path::Path;

use super::{Bus, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::transport;
use crate::url::BusUrl;

impl Bus {
    /// The variables that [`Bus::from_env`] reads.
    pub const VARIABLES: [(&'static str, &'static str); 5] = [
        ("EVENT_BUS_URL", "where the bus is; default `sqlite:backbone-data/bus.db`"),
        ("EVENT_BUS_CODEC", "`json` (default) or `msgpack`"),
        ("EVENT_BUS_NAMESPACE", "option `namespace` of the URL: what separates the buses of one broker"),
        (
            "EVENT_BUS_PROVISION",
            "option `provision` of the URL: `off`, `verify`, `create` (default) or `update`",
        ),
        ("EVENT_BUS_MAX_PAYLOAD", "option `max_payload` of the URL: largest message in bytes"),
    ];

    /// Options of the URL that a variable may give; the URL's own stands before it.
    const OPTIONS: [(&'static str, &'static str); 3] = [
        ("EVENT_BUS_NAMESPACE", "namespace"),
        ("EVENT_BUS_PROVISION", "provision"),
        ("EVENT_BUS_MAX_PAYLOAD", "max_payload"),
    ];

    /// The folder of [`Bus::DEFAULT_URL`]. [`Bus::from_env`] makes it when it is missing; the folder of any other file is
    /// the user's to make.
    pub const DEFAULT_FOLDER: &'static str = "backbone-data";

    /// The URL used when `EVENT_BUS_URL` is not set: a file that every process of this folder shares.
    pub const DEFAULT_URL: &'static str = "sqlite:backbone-data/bus.db";

    /// Connects as the environment says, publishing as `/<service>`.
    ///
    /// # Errors
    /// As [`Bus::connect`], and for a value that cannot be read, naming its variable.
    pub async fn from_env(service: &str) -> Result<Self> {
        let mut settings =
            Settings { source: smol_str::format_smolstr!("/{service}"), ..Settings::default() };
        if let Ok(codec) = std::env::var("EVENT_BUS_CODEC") {
            settings.codec =
                codec.parse().map_err(|error: crate::Error| error.with("variable", "EVENT_BUS_CODEC"))?;
        }
        Self::from_env_with(None, settings).await
    }

    /// Connects to `url`, or else as `EVENT_BUS_URL` says; options that the URL does not give come from the
    /// environment.
    ///
    /// # Errors
    /// As [`Bus::connect_with`].
    pub async fn from_env_with(url: Option<&str>, settings: Settings) -> Result<Self> {
        let given = std::env::var("EVENT_BUS_URL").ok();
        let text = url.or(given.as_deref()).unwrap_or(Self::DEFAULT_URL);
        if text == Self::DEFAULT_URL {
            private_files::create_folder(Path::new(Self::DEFAULT_FOLDER)).map_err(|error| {
                Error::new(ErrorKind::Denied, "the folder of the default bus cannot be made")
                    .with("folder", Self::DEFAULT_FOLDER)
                    .because(error)
            })?;
        }
        let mut url: BusUrl = text.parse()?;
        for (variable, option) in Self::OPTIONS {
            if let Ok(value) = std::env::var(variable) {
                url.default_option(option, value);
            }
        }
        Self::with_transport(transport::open(url).await?, settings)
    }
}
