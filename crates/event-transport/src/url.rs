//! The bus URL: it selects the transport and sets its options.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;

use crate::bounds::LONGEST;
use crate::error::{Error, ErrorKind, Result};

/// The URL forms of all transports, for error texts.
pub const URLS: &str =
    "`memory:`, `memory:NAME`, `sqlite:PATH`, `nats://HOST`, `redis://HOST` or `amqp://HOST`";

/// A parsed bus URL such as `sqlite:data/bus.db?synchronous=full` or `memory:`.
///
/// The page of each transport (`event_client::transport::docs`) lists the URL forms and options of each transport. `Display` and `Debug`
/// hide the user name, the password and the options.
#[derive(Clone, PartialEq, Eq)]
pub struct BusUrl {
    scheme: String,
    rest: String,
    options: BTreeMap<String, String>,
    /// The options that [`BusUrl::take`] was called for, in this order.
    taken: Vec<String>,
}

impl BusUrl {
    /// The scheme in lower case: `sqlite`.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The part between the scheme and the options: a path, a name, or `//user:password@host:port/…`.
    pub fn rest(&self) -> &str {
        &self.rest
    }

    /// Removes an option and parses its value; `takes` describes the allowed values for the error text.
    /// Call it for every option that the transport has: [`BusUrl::finish`] then refuses the options that remain.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the value does not parse; the text names the option and its allowed values.
    pub fn take<T: FromStr>(&mut self, option: &str, takes: &str) -> Result<Option<T>> {
        if self.taken.iter().all(|taken| taken != option) {
            self.taken.push(option.to_owned());
        }
        let Some(value) = self.options.remove(option) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| {
            Error::new(ErrorKind::Config, format!("option `{option}` takes {takes}, not {value:?}"))
                .during("connect")
                .with("url", &*self)
        })
    }

    /// Removes an option that is a duration, such as `500ms`, `7d` or `1h 30m`, and parses it.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the value is not a duration or is outside of `allowed`; in the second case the text
    /// names the allowed range.
    pub fn take_duration(
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

    /// Gives the option `old`, if the URL has it, its present name `new`, and logs a warning.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the URL has both.
    pub fn renamed(&mut self, old: &str, new: &str) -> Result<()> {
        let Some(value) = self.options.remove(old) else { return Ok(()) };
        if self.options.contains_key(new) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("`{old}` is the old name of option `{new}`; remove `{old}` from the URL"),
            )
            .during("connect")
            .with("url", &*self));
        }
        tracing::warn!(url = %self, "option `{old}` of the bus URL is now called `{new}`; use the new name");
        self.options.insert(new.to_owned(), value);
        Ok(())
    }

    /// Sets an option that the URL does not set.
    pub fn default_option(&mut self, option: &str, value: String) {
        self.options.entry(option.to_owned()).or_insert(value);
    }

    /// Refuses the URL if it has options that no call of [`BusUrl::take`] removed.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], with the first unknown option and the options that were taken in the text.
    pub fn finish(&self) -> Result<()> {
        match self.options.keys().next() {
            None => Ok(()),
            Some(unknown) => {
                let known = if self.taken.is_empty() {
                    "takes no options".into()
                } else {
                    format!("takes {}", self.taken.join(", "))
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

/// A duration in a URL: a number with a unit, or one of jiff's longer forms. It is not negative.
struct Given(Duration);

impl FromStr for Given {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // jiff's `SignedDuration` does not parse days.
        if let Some(days) = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok()) {
            return Ok(Self(Duration::from_secs(days.saturating_mul(86_400))));
        }
        let given: SignedDuration = text.parse().map_err(drop)?;
        Duration::try_from(given).map(Self).map_err(drop)
    }
}

/// A bound in the form of a URL option: `100ms`, `7d`.
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
            // The text may contain a password, so the error repeats only the part before the first colon.
            let shown: String = text.chars().take_while(|c| *c != ':').take(40).collect();
            Error::new(ErrorKind::Config, format!("{what}; use {}", URLS))
                .during("connect")
                .with("url", format!("{shown}:…"))
        };
        let (scheme, rest) = text.split_once(':').ok_or_else(|| refuse("the bus URL has no scheme"))?;
        if scheme.is_empty()
            || !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
        {
            return Err(refuse("the bus URL's scheme is invalid"));
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
        Ok(Self { scheme: scheme.to_ascii_lowercase(), rest: rest.to_owned(), options, taken: Vec::new() })
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
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn parts_and_options() {
        let mut url: BusUrl = "SQLite:data/bus.db?synchronous=full".parse().unwrap();
        assert_eq!((url.scheme(), url.rest()), ("sqlite", "data/bus.db"));
        assert!(url.finish().unwrap_err().to_string().contains("`synchronous`; `sqlite:` takes no options"));
        assert_eq!(url.take::<String>("synchronous", "full or normal").unwrap().as_deref(), Some("full"));
        url.finish().unwrap();
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_options_that_were_taken() {
        let mut url: BusUrl = "a:?colour=red".parse().unwrap();
        for option in ["size", "wait", "size"] {
            assert_eq!(url.take::<u32>(option, "a number").unwrap(), None);
        }
        let error = url.finish().unwrap_err().to_string();
        assert!(error.contains("unknown option `colour`; `a:` takes size, wait"), "{error}");
    }

    /// Collects the events of `tracing` as text.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_old_name_sets_the_option_with_one_warning_and_both_names_are_refused() {
        // With a single subscriber alive, `tracing` decides by the thread that asks first, which may be another test's.
        let _kept: [tracing::Dispatch; 2] = [(); 2].map(|()| tracing_subscriber::registry().into());
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let mut url: BusUrl = "a:?rounds=3".parse().unwrap();
        tracing::subscriber::with_default(subscriber, || {
            url.renamed("rounds", "turns").unwrap();
            url.renamed("pace", "speed").unwrap();
        });
        let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(logged.lines().count(), 1, "{logged}");
        assert!(
            logged.contains("WARN") && logged.contains("`rounds`") && logged.contains("`turns`"),
            "{logged}"
        );
        assert_eq!(url.take::<u32>("turns", "a number").unwrap(), Some(3));
        url.finish().unwrap();
        let mut url: BusUrl = "a:?rounds=3&turns=4".parse().unwrap();
        let error = url.renamed("rounds", "turns").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("`rounds` is the old name of option `turns`"), "{error}");
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
