//! A URL that may contain a password and is displayed without it.

use crate::secret::{MARK, Text};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// A URL such as `nats://app:secret@host:4222` or `sqlite:data/bus.db`. `Display` and `Debug` mask the password and
/// the options that contain secrets; [`expose`](Self::expose) returns the URL as it was written.
///
/// The scheme is not checked: the code that uses the URL does that.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Url(String);

impl Url {
    /// Wraps a URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// Returns the URL as it was written, password included, for connecting.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns whether the URL is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Returns the URL with `***` in place of the password and of options with secret names, such as `token`.
fn masked(url: &str) -> String {
    let without_password = match url.split_once("://") {
        // A password may contain '/', '?' or '@' unescaped, so the last '@' ends it: this may mask more than the
        // password.
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((user, host)) => match user.split_once(':') {
                Some((name, _)) => format!("{scheme}://{name}:***@{host}"),
                None => format!("{scheme}://***@{host}"), // a lone user part is a token (NATS)
            },
            None => url.to_owned(),
        },
        None => url.to_owned(),
    };
    let Some((address, query)) = without_password.split_once('?') else { return without_password };
    let options = query.split('&').map(|option| match option.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}=***"),
        _ => option.to_owned(),
    });
    format!("{address}?{}", options.collect::<Vec<_>>().join("&"))
}

fn is_secret(option: &str) -> bool {
    let option = option.to_ascii_lowercase();
    ["pass", "token", "secret", "key", "credential"].iter().any(|word| option.contains(word))
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({})", masked(&self.0))
    }
}

impl From<&str> for Url {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(MARK, Text).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked_and_the_rest_is_shown() {
        for (url, shown) in [
            ("nats://app:hunter2@host:4222", "nats://app:***@host:4222"),
            ("redis://:hunter2@host/1", "redis://:***@host/1"),
            ("nats://tokenonly@host", "nats://***@host"),
            ("amqp://u:p@ss/w@host/%2f", "amqp://u:***@host/%2f"),
            ("amqp://u:p?ss@host/%2f", "amqp://u:***@host/%2f"),
            ("nats://a:p@one:4222,b:q@two:4222", "nats://a:***@two:4222"),
            ("redis://host?password=hunter2&db=1&api_key=x", "redis://host?password=***&db=1&api_key=***"),
            ("sqlite:data/bus.db?synchronous=full", "sqlite:data/bus.db?synchronous=full"),
            ("memory:", "memory:"),
            ("", ""),
        ] {
            assert_eq!(Url::new(url).to_string(), shown);
            assert_eq!(format!("{:?}", Url::new(url)), format!("Url({shown})"));
            assert_eq!(Url::new(url).expose(), url);
        }
    }
}
