//! Settings from environment variables; no other file of this crate reads them.

use std::path::Path;

use super::{Bus, Settings};
use crate::transport;
use crate::url::BusUrl;
use event_transport::error::{Error, ErrorKind, Result};

impl Bus {
    /// The environment variables that [`Bus::from_env`] reads, each with its description. An empty one counts as unset.
    pub const VARIABLES: [(&'static str, &'static str); 5] = [
        ("EVENT_BUS_URL", "URL of the bus; default `sqlite:backbone-data/bus.db`"),
        ("EVENT_BUS_CODEC", "`json` (default) or `msgpack`"),
        (
            "EVENT_BUS_NAMESPACE",
            "option `namespace` of the URL: name that separates the buses of one broker; refused by `memory:` and `sqlite:`",
        ),
        (
            "EVENT_BUS_PROVISION",
            "option `provision` of the URL: `off`, `verify`, `create` (default) or `update`",
        ),
        ("EVENT_BUS_MAX_PAYLOAD", "option `max_payload` of the URL: largest message in bytes"),
    ];

    /// URL options that a variable may set; an option in the URL itself takes precedence.
    const OPTIONS: [(&'static str, &'static str); 3] = [
        ("EVENT_BUS_NAMESPACE", "namespace"),
        ("EVENT_BUS_PROVISION", "provision"),
        ("EVENT_BUS_MAX_PAYLOAD", "max_payload"),
    ];

    /// The folder of [`Bus::DEFAULT_URL`]. [`Bus::from_env`] creates it when it is missing; for any other file the
    /// user must create the folder.
    pub const DEFAULT_FOLDER: &'static str = "backbone-data";

    /// The URL that is used when `EVENT_BUS_URL` is not set: a file that all processes with this working directory
    /// share.
    pub const DEFAULT_URL: &'static str = "sqlite:backbone-data/bus.db";

    /// Connects with the settings of the environment; events are published with the source `/<service>`.
    ///
    /// # Errors
    /// The errors of [`Bus::connect`], and an error that names the variable when its value cannot be parsed.
    pub async fn from_env(service: &str) -> Result<Self> {
        let mut settings =
            Settings { source: smol_str::format_smolstr!("/{service}"), ..Settings::default() };
        if let Some(codec) = variable("EVENT_BUS_CODEC") {
            settings.codec =
                codec.parse().map_err(|error: crate::Error| error.with("variable", "EVENT_BUS_CODEC"))?;
        }
        Self::from_env_with(None, settings).await
    }

    /// Connects to `url`, or to the URL in `EVENT_BUS_URL` when `url` is `None`. Options that the URL does not
    /// contain come from the environment.
    ///
    /// # Errors
    /// The errors of [`Bus::connect_with`].
    pub async fn from_env_with(url: Option<&str>, settings: Settings) -> Result<Self> {
        let given = variable("EVENT_BUS_URL");
        let text = url.or(given.as_deref()).unwrap_or(Self::DEFAULT_URL);
        if text == Self::DEFAULT_URL {
            private_files::create_folder(Path::new(Self::DEFAULT_FOLDER)).map_err(|error| {
                Error::new(ErrorKind::Denied, "the folder of the default bus cannot be created")
                    .with("folder", Self::DEFAULT_FOLDER)
                    .because(error)
            })?;
        }
        let mut url: BusUrl = text.parse()?;
        for (variable, option) in Self::OPTIONS {
            if let Some(value) = self::variable(variable) {
                url.default_option(option, value);
            }
        }
        Self::with_transport(transport::open(url).await?, settings)
    }
}

/// Returns the value of a variable; an empty one counts as unset, as compose files write it.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
