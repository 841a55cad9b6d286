//! Writes to standard output: text for people or JSON lines for programs.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::plain::{plain, plain_json};

/// The result of printing.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

/// Standard output could not be written.
#[derive(Debug)]
pub struct Error(io::Error);

impl Error {
    /// Whether the reader has closed the pipe, as `| head` does.
    pub fn is_closed(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for Error {}

/// The format of the output: JSON or text, coloured or not.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    colour: bool,
}

impl Output {
    /// JSON lines, or text: coloured on a terminal unless `NO_COLOR` is set.
    pub fn new(json: bool) -> Self {
        let colour = !json && io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colour }
    }

    /// Whether the output is JSON, for programs.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Prints one value as JSON on one line.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn json(self, value: &impl Serialize) -> Result {
        self.line(&self.json_text(value))
    }

    /// Returns the text that [`Output::json`] prints.
    pub fn json_text(self, value: &impl Serialize) -> String {
        plain_json(&serde_json::to_string(value).expect("answers are plain data"))
    }

    /// Prints one line of text, or several in one write. Text from outside must have passed through [`plain`].
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn line(self, text: &str) -> Result {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush())
            .map_err(Error)
    }

    /// Prints a value as JSON, a list as one line per element. Without JSON, prints the text that `people` makes of
    /// the value.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn show<T: Serialize>(self, value: &T, people: impl FnOnce(&T) -> String) -> Result {
        if !self.json {
            return self.line(people(value).trim_end());
        }
        // The list is split as text and not parsed into numbers, so that numbers keep their digits.
        let text = self.json_text(value);
        match serde_json::from_str::<Vec<&RawValue>>(&text) {
            Ok(items) => items.iter().try_for_each(|item| self.line(item.get())),
            Err(_) => self.line(&text),
        }
    }

    /// Prints a table: columns under a header, each as wide as its widest cell. Cells pass through [`plain`].
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn table(self, header: &[&str], rows: &[Vec<String>]) -> Result {
        self.line(&self.table_text(header, rows))
    }

    /// Returns the text that [`Output::table`] prints.
    pub fn table_text(self, header: &[&str], rows: &[Vec<String>]) -> String {
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([header[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..header.len()).map(width).collect();
        let join = |cells: &mut dyn Iterator<Item = &str>| {
            let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let head = self.bold(&join(&mut header.iter().copied()));
        let rows = rows.iter().map(|row| join(&mut row.iter().map(String::as_str)));
        std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
    }

    /// Dimmed on a terminal.
    pub fn dim(self, text: &str) -> String {
        self.styled(2, text)
    }

    /// Bold on a terminal.
    pub fn bold(self, text: &str) -> String {
        self.styled(1, text)
    }

    /// Green on a terminal when good, else red.
    pub fn verdict(self, good: bool, text: &str) -> String {
        self.styled(if good { 32 } else { 31 }, text)
    }

    /// Yellow on a terminal.
    pub fn caution(self, text: &str) -> String {
        self.styled(33, text)
    }

    fn styled(self, code: u8, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEOPLE: Output = Output { json: false, colour: false };

    #[test]
    fn columns_line_up_and_cells_cannot_control_the_terminal() {
        let rows = vec![vec!["a\u{1b}[2J".into(), "1".into()], vec!["long".into(), "two\nlines".into()]];
        assert_eq!(
            PEOPLE.table_text(&["NAME", "N"], &rows),
            "NAME        N\na\\u{1b}[2J  1\nlong        two\\nlines"
        );
    }

    #[test]
    fn json_is_one_line_without_controls() {
        assert_eq!(PEOPLE.json_text(&"a\u{9b}\n"), r#""a\u009b\n""#);
    }
}
