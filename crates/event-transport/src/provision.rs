//! The `provision` option: whether a connection may create and change streams, queues and groups.

use std::fmt;
use std::str::FromStr;

use super::{Action, Change};
use crate::error::{Error, ErrorKind, Result};
use crate::url::BusUrl;

/// Permission of a connection to create and change streams, queues and groups: the option `provision` of every URL, or
/// `EVENT_BUS_PROVISION`.
///
/// | | object is missing | object has different settings | group has different filters |
/// |---|---|---|---|
/// | `off` | [`NotFound`](ErrorKind::NotFound) | not compared | keeps its filters |
/// | `verify` | [`NotFound`](ErrorKind::NotFound) | refused with the difference | refused with the difference |
/// | `create` | created | refused with the difference | takes those of the subscription |
/// | `update` | created | updated, where that is possible | takes those of the subscription |
///
/// No setting permits the deletion of a durable object: only an operator's command deletes one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Provision {
    /// Uses the existing objects without comparing them.
    Off,
    /// Compares the existing objects with the required ones; changes nothing.
    Verify,
    /// Creates missing objects.
    #[default]
    Create,
    /// Creates missing objects and changes different ones.
    Update,
}

impl Provision {
    /// Reads the option of a URL.
    pub fn take(url: &mut BusUrl) -> Result<Self> {
        Ok(url.take("provision", "off, verify, create or update")?.unwrap_or_default())
    }

    /// Whether missing objects may be created.
    pub fn creates(self) -> bool {
        matches!(self, Self::Create | Self::Update)
    }

    /// Whether existing objects are compared with the required ones.
    pub fn compares(self) -> bool {
        self != Self::Off
    }

    /// The value of the URL option.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Verify => "verify",
            Self::Create => "create",
            Self::Update => "update",
        }
    }

    /// Decides whether to make the change to the group that a subscription requires.
    ///
    /// The application defines the patterns and the order per key; they are not settings of a store. Therefore `create`
    /// also changes them to those of the subscription. `off` keeps the group's patterns, but refuses a group whose
    /// `keyed` setting differs: the handler relies on that order.
    pub fn group(self, change: Option<&Change>) -> Result<bool> {
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

    /// The error for `object`, which does not exist and may not be created.
    pub fn missing(self, object: impl fmt::Display) -> Error {
        Error::new(
            ErrorKind::NotFound,
            "the object does not exist and `provision` does not allow creating it; run `backbone topology apply`, or connect with `provision=create`",
        )
        .with("missing", object)
        .with("provision", self.as_str())
    }

    /// The error for `object`, which differs from the required one and may not be changed.
    pub fn differs(self, object: impl fmt::Display, difference: impl fmt::Display) -> Error {
        Error::new(
            ErrorKind::Config,
            "the object exists with different settings; run `backbone topology plan`, then change the settings here, or connect with `provision=update`",
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
