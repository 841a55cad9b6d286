//! A tree of values by key with their origins; every source becomes such a tree, and one tree can override another.

use crate::origin::Origin;
use std::collections::BTreeMap;

/// A table of values, which may be tables themselves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree(pub(crate) BTreeMap<String, Node>);

#[derive(Debug, Clone)]
pub(crate) enum Node {
    Table(Tree),
    Leaf(Leaf),
}

#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
    /// Set by a variable that other systems share: a process without such a key ignores the value.
    pub(crate) shared: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Switch(bool),
    List(Vec<Node>),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Tree {
    /// Merges `over` into this tree: its values take precedence, tables are merged key by key.
    pub(crate) fn overlay(&mut self, over: Self) {
        for (key, node) in over.0 {
            match (self.0.get_mut(&key), node) {
                (Some(Node::Table(below)), Node::Table(over)) => below.overlay(over),
                (_, node) => drop(self.0.insert(key, node)),
            }
        }
    }

    /// Sets the value at a dotted key.
    pub(crate) fn set(&mut self, key: &str, value: Value, origin: Origin) {
        self.put(key, Leaf { value, origin, shared: false });
    }

    pub(crate) fn put(&mut self, key: &str, leaf: Leaf) {
        match key.split_once('.') {
            None => drop(self.0.insert(key.to_owned(), Node::Leaf(leaf))),
            Some((table, rest)) => {
                let node = self.0.entry(table.to_owned()).or_insert_with(|| Node::Table(Self::default()));
                if !matches!(node, Node::Table(_)) {
                    *node = Node::Table(Self::default());
                }
                if let Node::Table(table) = node {
                    table.put(rest, leaf);
                }
            }
        }
    }

    /// Returns the dotted key and the origin of every leaf.
    pub(crate) fn origins(&self) -> BTreeMap<String, Origin> {
        let mut origins = BTreeMap::new();
        self.walk("", &mut |key, leaf| drop(origins.insert(key.to_owned(), leaf.origin.clone())));
        origins
    }

    fn walk(&self, prefix: &str, see: &mut dyn FnMut(&str, &Leaf)) {
        for (key, node) in &self.0 {
            let key = join(prefix, key);
            match node {
                Node::Table(table) => table.walk(&key, see),
                Node::Leaf(leaf) => see(&key, leaf),
            }
        }
    }
}

impl Node {
    /// Returns whether shared variables set all values in this node.
    pub(crate) fn is_shared(&self) -> bool {
        match self {
            Self::Leaf(leaf) => leaf.shared,
            Self::Table(table) => !table.0.is_empty() && table.0.values().all(Self::is_shared),
        }
    }

    /// Returns the first origin in this node, for errors about a whole table.
    pub(crate) fn origin(&self) -> Option<&Origin> {
        match self {
            Self::Leaf(leaf) => Some(&leaf.origin),
            Self::Table(table) => table.0.values().find_map(Self::origin),
        }
    }
}

/// Returns `prefix.key`, or `key` at the root.
pub(crate) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}
