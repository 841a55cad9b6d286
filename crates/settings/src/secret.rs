//! A configuration value that is never displayed.

use serde::{Deserialize, Deserializer, de};
use std::fmt;

/// The newtype name that secrets pass to the deserializer, which then keeps their value out of errors.
pub(crate) const MARK: &str = "$settings::Secret";

/// A password, token or key. It has no `Display`, its `Debug` prints `***`, and it is not serializable, so only
/// [`expose`](Self::expose) can bring it into a log or a response.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret obtained elsewhere.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// Returns the value. Pass it only to the code that needs it, and do not store or print it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns whether the value is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "Secret(empty)" } else { "Secret(***)" })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(MARK, Text).map(Self)
    }
}

/// Reads text from a newtype or from plain text, so that it also works with formats that ignore the newtype name.
pub(crate) struct Text;

impl<'de> de::Visitor<'de> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}
