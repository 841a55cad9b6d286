//! Prints the answers of the subcommands in the format that all commands of the project use.

use jiff::Timestamp;
use serde::Serialize;
use terminal::age;

use crate::{Error, ErrorKind, Result};

/// The output format of the answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output(terminal::Output);

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self(terminal::Output::new(json))
    }

    /// Prints a value as JSON (a list as one object per line) or as the text that `people` makes of it. Text from
    /// outside must have passed through [`terminal::plain`]; [`table`](Self::table) does this.
    pub(super) fn show<T: Serialize>(self, value: &T, people: impl FnOnce(&T) -> String) -> Result<()> {
        let printed = self.0.show(value, people);
        printed.map_err(|error| Error::new(ErrorKind::Output, "cannot print the answer").because(error))
    }

    /// Formats a table whose columns are as wide as their widest cell; returns `none` when there are no rows.
    pub(super) fn table(self, head: &[&str], rows: Vec<Vec<String>>, none: &str) -> String {
        if rows.is_empty() { none.to_owned() } else { self.0.table_text(head, &rows) }
    }
}

/// Formats a time relative to now: `3s ago`, `in 2m`.
pub(super) fn relative(at: Timestamp) -> String {
    let distance = at.duration_since(Timestamp::now());
    if distance.is_negative() { format!("{} ago", age(distance)) } else { format!("in {}", age(distance)) }
}

/// Returns at most `most` characters of a text, on one line.
pub(super) fn brief(text: &str, most: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(brief("äöü\nß", 4), "äöü …");
        assert_eq!(brief("short", 10), "short");
    }
}
