//! Reads a TOML file into a tree; each value keeps its line number.

use crate::error::{Error, ErrorKind};
use crate::origin::Origin;
use crate::tree::{Leaf, Node, Tree, Value};
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Reads a file; returns `None` when it does not exist and is not required.
pub(crate) fn read(path: &Path, required: bool) -> Result<Option<Tree>, Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(None),
        Err(error) => {
            let message = format!("cannot read the configuration file {}", path.display());
            return Err(Error::new(ErrorKind::Unreadable, message).because(error));
        }
    };
    parse(&text, |line| Origin::File(path.display().to_string(), line))
        .map(Some)
        .map_err(|(line, why)| Error::new(ErrorKind::Syntax, format!("{}:{line}: {why}", path.display())))
}

/// Parses TOML. An error contains the line and the fault, never the text itself, which may contain a secret.
pub(crate) fn parse(text: &str, origin: impl Fn(usize) -> Origin) -> Result<Tree, (usize, String)> {
    let line =
        |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
    match DeTable::parse(text) {
        Ok(table) => Ok(tree(table.into_inner(), &|at| origin(line(at)))),
        Err(error) => Err((error.span().map_or(1, |span| line(span.start)), error.message().to_owned())),
    }
}

fn tree(table: DeTable<'_>, origin: &dyn Fn(usize) -> Origin) -> Tree {
    Tree(table.into_iter().map(|(key, value)| (key.into_inner().into_owned(), node(value, origin))).collect())
}

fn node(value: Spanned<DeValue<'_>>, origin: &dyn Fn(usize) -> Origin) -> Node {
    let at = value.span().start;
    let value = match value.into_inner() {
        DeValue::Table(table) => return Node::Table(tree(table, origin)),
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Boolean(switch) => Value::Switch(switch),
        DeValue::Datetime(time) => Value::Text(time.to_string()),
        DeValue::Array(items) => Value::List(items.into_iter().map(|item| node(item, origin)).collect()),
        // A number out of range stays text; a setting that expects a number refuses it.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::Text(number.to_string()), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::Text(number.to_string()), Value::Float)
        }
    };
    Node::Leaf(Leaf { value, origin: origin(at), shared: false })
}
