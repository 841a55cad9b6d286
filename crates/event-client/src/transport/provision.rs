//! Who may create and change what messages are stored in.

use std::fmt;
use std::str::FromStr;

use super::{Action, Change};
use crate::error::{Error, ErrorKind, Result};
use crate::url::BusUrl;

/// What a connection may do to streams, queues and groups: option `provision` of every URL, `EVENT_BUS_PROVISION`.
///
/// | | missing | stored with other settings | group with other filters |
/// |---|---|---|---|
/// | `off` | [`NotFound`](ErrorKind::NotFound) | not looked at | its own stay |
/// | `verify` | [`NotFound`](ErrorKind::NotFound) | refused with the difference | refused with the difference |
/// | `create` | created | refused with the difference | follow the subscription |
/// | `update` | created | updated, where that is possible | follow the subscription |
///
/// Whatever it says, nothing durable is ever deleted by it: only an operator's command does that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Provision {
    /// Uses what is there and looks at nothing else.
    Off,
    /// Looks whether all is there as it should be; changes nothing.
    Verify,
    /// Creates what is missing.
    #[default]
    Create,
    /// Creates what is missing and changes what differs.
    Update,
}

impl Provision {
    /// Reads the option of a URL.
    pub(crate) fn take(url: &mut BusUrl) -> Result<Self> {
        Ok(url.take("provision", "off, verify, create or update")?.unwrap_or_default())
    }

    /// Whether what is missing may be created.
    pub fn creates(self) -> bool {
        matches!(self, Self::Create | Self::Update)
    }

    /// Whether what is there is compared with what is wanted.
    pub fn compares(self) -> bool {
        self != Self::Off
    }

    /// The word of the option.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Verify => "verify",
            Self::Create => "create",
            Self::Update => "update",
        }
    }

    /// Whether to make the change that a subscription needs of its group.
    ///
    /// Its patterns and the order of its keys are the application's own words, not settings of a store, so `create`
    /// lets them follow the code. `off` leaves its patterns as they are, but never takes a group whose keys are
    /// treated otherwise: what the handler relies on would not hold.
    pub(crate) fn group(self, change: Option<&Change>) -> Result<bool> {
        let Some(change) = change else { return Ok(false) };
        match (change.action, self) {
            (Action::Create, mode) if !mode.creates() => Err(mode.missing(&change.object)),
            (Action::Blocked, mode) if mode.compares() => Err(mode.differs(&change.object, change)),
            (_, Self::Create | Self::Update) => Ok(true),
            (_, Self::Off) if change.differences.iter().all(|difference| difference.setting != "keyed") => {
                Ok(false)
            }
            (_, mode) => Err(mode.differs(&change.object, change)),
        }
    }

    /// Refuses to create `object`, which does not exist.
    pub(crate) fn missing(self, object: impl fmt::Display) -> Error {
        Error::new(
            ErrorKind::NotFound,
            "it does not exist and `provision` does not allow to create it; run `backbone topology apply`, or connect with `provision=create`",
        )
        .with("missing", object)
        .with("provision", self.as_str())
    }

    /// Refuses to use `object`, which differs from what is wanted.
    pub(crate) fn differs(self, object: impl fmt::Display, difference: impl fmt::Display) -> Error {
        Error::new(
            ErrorKind::Config,
            "it exists with other settings; see `backbone topology plan`, then change the settings here, or connect with `provision=update`",
        )
        .with("differs", object)
        .with("difference", difference)
        .with("provision", self.as_str())
    }
}

impl FromStr for Provision {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Off, Self::Verify, Self::Create, Self::Update]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or(())
    }
}
