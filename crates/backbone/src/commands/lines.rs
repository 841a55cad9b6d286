//! Reads lines of standard input, with line numbers, a maximum length, and checked UTF-8.

use std::io;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader, Stdin};

/// Longest accepted line, in bytes. It is far above the largest message of any bus.
const LONGEST: usize = 64 << 20;

/// Reads lines with their numbers, from 1.
pub(crate) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
}

impl Lines<BufReader<Stdin>> {
    pub(crate) fn stdin() -> Self {
        Self::new(BufReader::with_capacity(64 << 10, tokio::io::stdin()))
    }
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    fn new(input: R) -> Self {
        Self { input, line: Vec::new(), number: 0 }
    }

    /// Returns the next line that is not blank; `None` at the end. Cancel-safe: a partial line is kept when the
    /// future is dropped.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<(u64, String)>> {
        loop {
            let ended = self.fill().await.with_context(|| format!("line {}", self.number + 1))?;
            if ended && self.line.is_empty() {
                return Ok(None);
            }
            self.number += 1;
            let line = String::from_utf8(std::mem::take(&mut self.line));
            let line = line.map_err(|error| {
                let at = error.utf8_error().valid_up_to() + 1;
                anyhow::anyhow!("line {}: the data is not UTF-8 (byte {at})", self.number)
            })?;
            if !line.trim().is_empty() {
                return Ok(Some((self.number, line)));
            }
        }
    }

    /// Reads to the end of the line; returns whether the input has ended.
    async fn fill(&mut self) -> anyhow::Result<bool> {
        loop {
            let bytes = self.input.fill_buf().await.or_else(end_of_terminal)?;
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let taken = newline.unwrap_or(bytes.len());
            self.line.extend_from_slice(&bytes[..taken]);
            let ended = bytes.is_empty();
            self.input.consume(taken + usize::from(newline.is_some()));
            if newline.is_some() || ended {
                return Ok(ended);
            }
            if self.line.len() > LONGEST {
                bail!("the line is longer than {} MiB", LONGEST >> 20);
            }
        }
    }
}

/// Reading from a closed terminal returns an I/O error; it is treated as the end of the input.
fn end_of_terminal<'a>(error: io::Error) -> io::Result<&'a [u8]> {
    const EIO: i32 = 5;
    if error.raw_os_error() == Some(EIO) { Ok(&[]) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(input: &[u8]) -> anyhow::Result<Vec<(u64, String)>> {
        // A small buffer, so that lines span several reads.
        let mut lines = Lines::new(BufReader::with_capacity(3, input));
        let mut found = Vec::new();
        while let Some(line) = lines.next().await? {
            found.push(line);
        }
        Ok(found)
    }

    #[tokio::test]
    async fn blank_lines_count_and_the_last_needs_no_line_break() {
        let found = all(b"one\n\n  \r\nf\xc3\xbcnf").await.unwrap();
        assert_eq!(found, [(1, "one".to_owned()), (4, "f\u{fc}nf".to_owned())]);
        assert!(all(b"").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_not_utf_8_is_named_by_line_and_byte() {
        let error = all(b"fine\nab\xff\n").await.unwrap_err();
        assert_eq!(error.to_string(), "line 2: the data is not UTF-8 (byte 3)");
    }
}
