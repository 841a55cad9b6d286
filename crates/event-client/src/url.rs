//! The bus URL: one line that decides the transport.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;

use crate::bounds::LONGEST;
use crate::error::{Error, ErrorKind, Result};

/// A parsed bus URL such as `sqlite:data/bus.db?synchronous=full` or `memory:`.
///
/// Passwords never show in `Display` or `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct BusUrl {
    scheme: String,
    rest: String,
    options: BTreeMap<String, String>,
}

impl BusUrl {
    /// The scheme in lower case: `sqlite`.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// What stands between the scheme and the options: a path, a name, or `//user:password@host:port/…`.
    pub fn rest(&self) -> &str {
        &self.rest
    }

    /// Takes an option out and parses it; what nobody takes is reported by [`BusUrl::finish`].
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the value does not parse; the text names the option and what it takes.
    pub fn take<T: FromStr>(&mut self, option: &str, takes: &str) -> Result<Option<T>> {
        let Some(value) = self.options.remove(option) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| {
            Error::new(ErrorKind::Config, format!("option `{option}` takes {takes}, not {value:?}"))
                .during("connect")
                .with("url", &*self)
        })
    }

    /// Takes out an option that is a duration, such as `500ms`, `7d` or `1h 30m`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the value is no duration, or is outside of `allowed`; the text names both.
    pub(crate) fn take_duration(
        &mut self,
        option: &str,
        default: Duration,
        allowed: RangeInclusive<Duration>,
    ) -> Result<Duration> {
        const TAKES: &str = "a duration such as 500ms, 10s, 12h or 7d";
        let Some(Given(given)) = self.take(option, TAKES)? else { return Ok(default) };
        if allowed.contains(&given) {
            return Ok(given);
        }
        let (least, most) = (shown(*allowed.start()), shown(*allowed.end()));
        Err(Error::new(ErrorKind::Config, format!("option `{option}` takes {TAKES}, {least} to {most}"))
            .during("connect")
            .with("url", &*self))
    }

    /// Gives an option the value that it has when the URL does not say.
    pub(crate) fn default_option(&mut self, option: &str, value: String) {
        self.options.entry(option.to_owned()).or_insert(value);
    }

    /// Refuses options that nobody took.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] naming the first unknown option and the known ones.
    pub fn finish(&self, known: &[&str]) -> Result<()> {
        match self.options.keys().next() {
            None => Ok(()),
            Some(unknown) => {
                let known = if known.is_empty() {
                    "takes no options".into()
                } else {
                    format!("takes {}", known.join(", "))
                };
                Err(Error::new(
                    ErrorKind::Config,
                    format!("unknown option `{unknown}`; `{}:` {known}", self.scheme),
                )
                .during("connect")
                .with("url", self))
            }
        }
    }
}

/// A duration as a URL spells it: a number with a unit, or jiff's longer forms. Not negative.
struct Given(Duration);

impl FromStr for Given {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // jiff's durations know no days.
        if let Some(days) = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok()) {
            return Ok(Self(Duration::from_secs(days.saturating_mul(86_400))));
        }
        let given: SignedDuration = text.parse().map_err(drop)?;
        Duration::try_from(given).map(Self).map_err(drop)
    }
}

/// A bound as people write it: `100ms`, `7d`.
fn shown(bound: Duration) -> String {
    const DAY: u64 = 86_400;
    if bound >= LONGEST {
        return format!("{}d", LONGEST.as_secs() / DAY);
    }
    match (bound.as_secs(), bound.subsec_millis()) {
        (seconds, 0) if seconds > 0 && seconds % DAY == 0 => format!("{}d", seconds / DAY),
        (seconds, 0) if seconds > 0 && seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        (seconds, 0) => format!("{seconds}s"),
        _ => format!("{}ms", bound.as_millis()),
    }
}

impl FromStr for BusUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let refuse = |what: &str| {
            // The text may hold a password, so only what stands before a colon is repeated.
            let shown: String = text.chars().take_while(|c| *c != ':').take(40).collect();
            Error::new(ErrorKind::Config, format!("{what}; use {}", crate::transport::URLS))
                .during("connect")
                .with("url", format!("{shown}:…"))
        };
        let (scheme, rest) = text.split_once(':').ok_or_else(|| refuse("the bus URL has no scheme"))?;
        if scheme.is_empty()
            || !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
        {
            return Err(refuse("the bus URL's scheme is ill-spelled"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut options = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| refuse("an option of the bus URL has no `=`"))?;
            if options.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(refuse("an option of the bus URL is given twice"));
            }
        }
        Ok(Self { scheme: scheme.to_ascii_lowercase(), rest: rest.to_owned(), options })
    }
}

impl fmt::Display for BusUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = match (self.rest.strip_prefix("//"), self.rest.rfind('@')) {
            (Some(_), Some(at)) => format!("//***@{}", &self.rest[at + 1..]),
            _ => self.rest.clone(),
        };
        write!(f, "{}:{rest}", self.scheme)
    }
}

impl fmt::Debug for BusUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_options() {
        let mut url: BusUrl = "SQLite:data/bus.db?synchronous=full".parse().unwrap();
        assert_eq!((url.scheme(), url.rest()), ("sqlite", "data/bus.db"));
        assert!(url.finish(&[]).unwrap_err().to_string().contains("synchronous"));
        assert_eq!(url.take::<String>("synchronous", "full or normal").unwrap().as_deref(), Some("full"));
        url.finish(&[]).unwrap();
    }

    #[test]
    fn durations_are_read_in_every_spelling_and_refused_outside_their_bounds() {
        let read = |value: &str| {
            let mut url: BusUrl = format!("a:?wait={value}").parse().unwrap();
            url.take_duration("wait", Duration::from_secs(5), Duration::from_millis(100)..=LONGEST)
        };
        for (text, millis) in [
            ("100ms", 100),
            ("90s", 90_000),
            ("2m", 120_000),
            ("12h", 43_200_000),
            ("7d", 604_800_000),
            ("1h30m", 5_400_000),
        ] {
            assert_eq!(read(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["0s", "1ns", "-1s", "36501d", "99999999999999999d", "99999999999999h", "7", "soon", ""] {
            let error = read(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{text}");
            assert!(error.to_string().contains("option `wait` takes"), "{text}: {error}");
        }
        assert!(read("0s").unwrap_err().to_string().contains("100ms to 36500d"));
    }

    #[test]
    fn passwords_stay_hidden() {
        let url: BusUrl = "nats://user:p@ss@host:4222".parse().unwrap();
        assert_eq!(url.to_string(), "nats://***@host:4222");
        for bad in ["secret", "x y:pw", "a:b?c", "a:b?c=1&c=2"] {
            let error = bad.parse::<BusUrl>().unwrap_err();
            assert!(
                error.to_string().contains("sqlite:PATH") && !error.to_string().contains("pw"),
                "{error}"
            );
        }
    }
}
