//! Deserialises a tree into the settings struct with serde, and adds the key and its origin to every error.

use crate::error::{Error, ErrorKind};
use crate::names::Names;
use crate::origin::Origin;
use crate::secret;
use crate::tree::{Leaf, Node, Tree, Value, join};
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};
use std::collections::btree_map;
use std::fmt;

/// Builds the settings.
pub(crate) fn settings<T: DeserializeOwned>(tree: &Tree, names: &Names) -> Result<T, Error> {
    T::deserialize(Table { tree, key: String::new() }).map_err(|fault| fault.into_error(names))
}

/// An error that is returned through the nested deserializers; it keeps the innermost key and origin.
#[derive(Debug)]
struct ValueError {
    kind: ErrorKind,
    key: Option<String>,
    missing: Option<&'static str>,
    origin: Option<Origin>,
    message: String,
}

impl ValueError {
    fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, key: None, missing: None, origin: None, message: message.to_string() }
    }

    /// Adds the key and the origin, unless an inner value has set them.
    fn at(mut self, key: &str, origin: Option<&Origin>) -> Self {
        if self.key.is_none() {
            self.key = Some(key.to_owned());
            self.origin = origin.cloned();
        }
        self
    }

    /// Completes the key of a missing field, which contains only the field's name, by the key of its table.
    fn missing_in(mut self, table: &str) -> Self {
        if let Some(field) = self.missing.take() {
            self.key = Some(join(table, field));
        }
        self
    }

    fn into_error(self, names: &Names) -> Error {
        let key = self.key.unwrap_or_default();
        let message = match (self.kind, self.origin) {
            (ErrorKind::MissingKey, _) => {
                format!(
                    "{key}: is not set and has no default; set it in the file or as {}",
                    names.of(&key).join(" or ")
                )
            }
            (_, Some(origin)) => format!("{key}: {} (from {origin})", self.message),
            (_, None) => format!("{key}: {}", self.message),
        };
        Error::new(self.kind, message)
    }
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ValueError {}

impl de::Error for ValueError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(ErrorKind::InvalidValue, message)
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match found {
            de::Unexpected::Str(_) => "text",
            de::Unexpected::Bool(_) => "true or false",
            de::Unexpected::Map => "a table",
            de::Unexpected::Seq => "a list",
            _ => "a number",
        };
        Self::new(ErrorKind::InvalidValue, format!("expected {expected}, got {found}"))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(ErrorKind::InvalidValue, format!("expected {expected}, got {found}"))
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Self::new(ErrorKind::InvalidValue, format!("unknown value {variant:?}; {}", suggest(variant, known)))
    }

    fn missing_field(field: &'static str) -> Self {
        Self { missing: Some(field), ..Self::new(ErrorKind::MissingKey, "is not set") }
    }
}

/// A table of the tree, with its dotted key.
struct Table<'t> {
    tree: &'t Tree,
    key: String,
}

impl<'de> de::Deserializer<'de> for Table<'_> {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        self.entries(None, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        self.entries(Some(fields), visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl Table<'_> {
    fn entries<'de, V: Visitor<'de>>(
        self,
        fields: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        let entries = Entries { table: &self.key, fields, left: self.tree.0.iter(), value: None };
        visitor.visit_map(entries).map_err(|fault| fault.missing_in(&self.key))
    }
}

/// The entries of a table. For a struct, an unknown key is an error, whatever the struct's serde attributes are.
struct Entries<'t> {
    table: &'t str,
    fields: Option<&'static [&'static str]>,
    left: btree_map::Iter<'t, String, Node>,
    value: Option<(String, &'t Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = ValueError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ValueError> {
        for (name, node) in self.left.by_ref() {
            let key = join(self.table, name);
            if let Some(fields) = self.fields.filter(|fields| !fields.contains(&name.as_str())) {
                if node.is_shared() {
                    continue; // set for another process in the same environment
                }
                let fault =
                    ValueError::new(ErrorKind::UnknownKey, format!("unknown key; {}", suggest(name, fields)));
                return Err(fault.at(&key, node.origin()));
            }
            self.value = Some((key, node));
            let deserializer: StrDeserializer<'_, ValueError> = name.as_str().into_deserializer();
            return seed.deserialize(deserializer).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ValueError> {
        let (key, node) =
            self.value.take().ok_or_else(|| ValueError::new(ErrorKind::InvalidValue, "value before key"))?;
        let one = One { node, key: key.clone() };
        seed.deserialize(one).map_err(|fault| fault.at(&key, node.origin()))
    }
}

/// One value of the tree, with its dotted key.
struct One<'t> {
    node: &'t Node,
    key: String,
}

impl<'t> One<'t> {
    fn leaf(&self) -> Option<&'t Leaf> {
        if let Node::Leaf(leaf) = self.node { Some(leaf) } else { None }
    }

    /// Returns the text of a variable or a flag, from which numbers and booleans have to be parsed.
    fn words(&self) -> Option<&'t str> {
        match self.leaf()? {
            Leaf { value: Value::Text(text), origin, .. } if origin.is_text() => Some(text.trim()),
            _ => None,
        }
    }

    fn number<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        let Some(text) = self.words() else { return self.plain(visitor) };
        if let Ok(number) = text.parse::<u64>() {
            visitor.visit_u64(number)
        } else if let Ok(number) = text.parse::<i64>() {
            visitor.visit_i64(number)
        } else if let Ok(number) = text.parse::<f64>() {
            visitor.visit_f64(number)
        } else {
            Err(ValueError::new(ErrorKind::InvalidValue, format!("expected a number, got {text:?}")))
        }
    }

    fn plain<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        match self.node {
            Node::Table(tree) => Table { tree, key: self.key }.entries(None, visitor),
            Node::Leaf(leaf) => match &leaf.value {
                Value::Text(text) => visitor.visit_str(text),
                Value::Integer(number) => match u64::try_from(*number) {
                    Ok(number) => visitor.visit_u64(number),
                    Err(_) => visitor.visit_i64(*number),
                },
                Value::Float(number) => visitor.visit_f64(*number),
                Value::Switch(switch) => visitor.visit_bool(*switch),
                Value::List(items) => visitor.visit_seq(Items { items: items.iter(), key: &self.key }),
            },
        }
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> { self.number(visitor) })*
    };
}

impl<'de> de::Deserializer<'de> for One<'_> {
    type Error = ValueError;

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8
        deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        self.plain(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        match self.words().map(str::to_ascii_lowercase).as_deref() {
            None => self.plain(visitor),
            Some("true" | "1" | "yes" | "on") => visitor.visit_bool(true),
            Some("false" | "0" | "no" | "off") => visitor.visit_bool(false),
            Some(other) => Err(ValueError::new(
                ErrorKind::InvalidValue,
                format!("expected true or false, got {other:?}"),
            )),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        match (self.words(), self.leaf()) {
            (Some(text), Some(leaf)) => {
                let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
                let items = words
                    .map(|word| Node::Leaf(Leaf { value: Value::Text(word.to_owned()), ..leaf.clone() }));
                visitor.visit_seq(Items { items: items.collect::<Vec<_>>().iter(), key: &self.key })
            }
            _ => self.plain(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        match self.node {
            Node::Table(tree) => Table { tree, key: self.key }.entries(Some(fields), visitor),
            Node::Leaf(_) => Err(ValueError::new(
                ErrorKind::InvalidValue,
                format!("expected a table with the keys {}", fields.join(", ")),
            )),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        match self.node {
            Node::Table(tree) => {
                let entries =
                    Entries { table: &self.key, fields: Some(variants), left: tree.0.iter(), value: None };
                MapAccessDeserializer::new(entries).deserialize_enum(name, variants, visitor)
            }
            Node::Leaf(Leaf { value: Value::Text(text), .. }) => {
                visitor.visit_enum(IntoDeserializer::<ValueError>::into_deserializer(text.as_str()))
            }
            Node::Leaf(_) => Err(ValueError::new(
                ErrorKind::InvalidValue,
                format!("expected one of {}", variants.join(", ")),
            )),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        let secret = name == secret::MARK;
        visitor.visit_newtype_struct(self).map_err(|fault| match secret {
            true => ValueError::new(
                ErrorKind::InvalidValue,
                "expected text (the value is not shown: it is a secret)",
            ),
            false => fault,
        })
    }

    serde::forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct tuple tuple_struct map identifier ignored_any
    }
}

/// The items of a list. An error in an item names the key of the list.
struct Items<'t> {
    items: std::slice::Iter<'t, Node>,
    key: &'t str,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = ValueError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ValueError> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let one = One { node, key: self.key.to_owned() };
        seed.deserialize(one).map(Some).map_err(|fault| fault.at(self.key, node.origin()))
    }
}

/// Returns the most similar known word, or all known words when none is similar.
fn suggest(word: &str, known: &[&str]) -> String {
    let near = known.iter().map(|known| (strsim::damerau_levenshtein(word, known), known));
    match near.min().filter(|(distance, known)| *distance <= (known.len() / 3).max(1)) {
        Some((_, known)) => format!("did you mean {known:?}?"),
        None => format!("known here: {}", known.join(", ")),
    }
}
