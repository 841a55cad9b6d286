//! Answers: JSON lines for programs, tables for people.

use std::io::Write;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::value::RawValue;

/// How to answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) json: bool,
}

impl Output {
    /// Prints a value as JSON, a list as one object per line, or else what `people` makes of it.
    pub(super) fn show<T: Serialize>(self, value: &T, people: impl FnOnce(&T) -> String) {
        let text = if self.json {
            // As text all the way, so that numbers keep their digits.
            let text = serde_json::to_string(value).expect("answers are plain data");
            match serde_json::from_str::<Vec<&RawValue>>(&text) {
                Ok(items) if items.is_empty() => return,
                Ok(items) => items.iter().map(|item| item.get()).collect::<Vec<_>>().join("\n"),
                Err(_) => text,
            }
        } else {
            people(value)
        };
        // A reader that went away (`| head`) is no error of ours.
        let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
    }
}

/// A table with columns as wide as they need; a line that says so when there are no rows.
pub(super) fn table(head: &[&str], rows: Vec<Vec<String>>, none: &str) -> String {
    if rows.is_empty() {
        return none.to_owned();
    }
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    let width = |column: usize| {
        rows.iter()
            .chain([&head])
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    std::iter::once(&head).chain(&rows).map(line).collect::<Vec<_>>().join("\n")
}

/// `3s ago`, `in 2m`; to the second.
pub(super) fn relative(at: Timestamp) -> String {
    let distance = at.duration_since(Timestamp::now());
    let seconds = SignedDuration::from_secs(distance.as_secs().abs());
    if distance.is_negative() { format!("{seconds:#} ago") } else { format!("in {seconds:#}") }
}

/// At most so many characters of a text, on one line.
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
    fn columns_line_up() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["long".into(), "2".into()]];
        assert_eq!(table(&["NAME", "N"], rows, "none"), "NAME  N\na     1\nlong  2");
        assert_eq!(table(&["NAME"], vec![], "none"), "none");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(brief("äöü\nß", 4), "äöü …");
        assert_eq!(brief("short", 10), "short");
    }
}
