//! Times on the command line: durations, moments in the past, and start positions.

use std::str::FromStr;
use std::time::Duration;

use event_client::message::Position;
use event_client::transport::Start;
use jiff::{SignedDuration, Timestamp};

/// A start position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From(pub(crate) Start);

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "new" => Start::New,
            "earliest" => Start::Earliest,
            _ if text.bytes().all(|b| b.is_ascii_digit()) => {
                Start::Position(text.parse::<Position>().map_err(|error| error.to_string())?)
            }
            _ => Start::Time(text.parse::<Moment>()?.0),
        }))
    }
}

/// A time, given as a timestamp or as a duration before now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(pub(crate) Timestamp);

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self(time));
        }
        let ago: SignedDuration = text.parse().map_err(|_| {
            "expected a time such as 2026-01-31T12:00:00Z, or a duration ago such as 10m".to_owned()
        })?;
        let now = Timestamp::now();
        let time = if ago.is_negative() { now.checked_add(ago) } else { now.checked_sub(ago) };
        time.map(Self).map_err(|error| error.to_string())
    }
}

/// Parses a duration; a negative one is an error.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    service_kit::config::duration::parse(text)
        .ok_or_else(|| "expected a duration such as 30s or 1h 30m; it cannot be negative".to_owned())
}
