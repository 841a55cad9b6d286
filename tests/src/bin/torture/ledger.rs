//! Files that are only appended to, one line for each fact. A line is written as a whole, also with several
//! processes.

use crate::Result;
use std::fs::{File, OpenOptions, read_to_string};
use std::io::Write;
use std::path::Path;

/// The writer of a ledger.
#[derive(Debug)]
pub(crate) struct Ledger(File);

impl Ledger {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self(OpenOptions::new().create(true).append(true).open(path)?))
    }

    /// Writes one line. A written line survives this process.
    pub(crate) fn write(&self, line: &str) -> std::io::Result<()> {
        (&self.0).write_all(format!("{line}\n").as_bytes())
    }
}

/// A line of a publisher.
#[derive(Debug, PartialEq)]
pub(crate) enum Published {
    /// The step will be published, until it is confirmed.
    Begun(String, u64),
    /// The step was confirmed.
    Confirmed(String, u64),
    /// A publish failed with an error that no fault explains.
    Strange(String),
}

/// A line of a worker.
#[derive(Debug, PartialEq)]
pub(crate) struct Handled {
    pub(crate) lane: String,
    pub(crate) number: u64,
    pub(crate) attempt: u32,
    /// Whether the step was handled; otherwise the handler failed on it, as it does on poison.
    pub(crate) well: bool,
}

pub(crate) fn published(path: &Path) -> Result<Vec<Published>> {
    lines(path, |line| {
        let (what, rest) = line.split_once(' ')?;
        if what == "strange" {
            return Some(Published::Strange(rest.to_owned()));
        }
        let (lane, number) = rest.split_once(' ')?;
        let (lane, number) = (lane.to_owned(), number.parse().ok()?);
        match what {
            "begun" => Some(Published::Begun(lane, number)),
            "confirmed" => Some(Published::Confirmed(lane, number)),
            _ => None,
        }
    })
}

pub(crate) fn handled(path: &Path) -> Result<Vec<Handled>> {
    lines(path, |line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [what @ ("handled" | "failed"), lane, number, attempt] = words[..] else { return None };
        let (number, attempt) = (number.parse().ok()?, attempt.parse().ok()?);
        Some(Handled { lane: lane.to_owned(), number, attempt, well: what == "handled" })
    })
}

fn lines<T>(path: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
    let text = if path.exists() { read_to_string(path)? } else { String::new() };
    text.lines()
        .map(|line| parse(line).ok_or_else(|| format!("torn line in {}: {line:?}", path.display()).into()))
        .collect()
}
