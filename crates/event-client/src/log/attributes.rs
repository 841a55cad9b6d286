//! The attributes of a log record: named values. As JSON text they keep their order and their digits; as a map they do
//! not.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use event_transport::error::{Error, ErrorKind, Result};

/// Objects and lists nested deeper than this are refused; serde_json itself reads up to 128 levels.
const MOST_LEVELS: usize = 126;

/// The attributes of a record: a map, and the JSON text if they were received as JSON text.
///
/// The map sorts its names and holds no integer beyond 64 bits. [`to_json`](Self::to_json) returns the text with the
/// order and the digits with which it was sent. A change to the map replaces the text by a new one.
#[derive(Clone, Default)]
pub struct Attributes {
    /// The object that was sent, without white space between its tokens. Without a text, the map contains all
    /// attributes.
    text: Option<Box<RawValue>>,
    /// Made from the text on the first access.
    map: OnceLock<Map<String, Value>>,
}

impl Attributes {
    /// Reads the attributes from a JSON object. When a name occurs twice, the text keeps both values and the map
    /// keeps the last.
    ///
    /// Strings are rewritten by the plain rules of JSON (`é` for `\u00e9`). A number that no double can hold
    /// (`1e999`) becomes a string.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] for a text that is not a JSON object, or that is nested deeper than 126 levels.
    pub fn from_json(text: &str) -> Result<Self> {
        let refuse = || Error::new(ErrorKind::Decode, "the attributes are not a JSON object");
        serde_json::from_str::<&RawValue>(text).map_err(|error| refuse().because(error))?;
        let tidy = tidied(text).map_err(|error| refuse().because(error))?;
        if !tidy.starts_with('{') {
            return Err(refuse());
        }
        let text = RawValue::from_string(tidy).map_err(|error| refuse().because(error))?;
        Ok(Self { text: Some(text), map: OnceLock::new() })
    }

    /// Returns the attributes as a JSON object: as they were sent, or as they are in the map.
    pub fn to_json(&self) -> Cow<'_, str> {
        match &self.text {
            Some(text) => Cow::Borrowed(text.get()),
            None => Cow::Owned(serde_json::to_string(self.as_map()).expect("a map with text keys is JSON")),
        }
    }

    /// Returns the same as [`to_json`](Self::to_json), for use in a larger JSON document.
    pub fn to_raw(&self) -> Cow<'_, RawValue> {
        match &self.text {
            Some(text) => Cow::Borrowed(text),
            None => Cow::Owned(
                serde_json::value::to_raw_value(self.as_map()).expect("a map with text keys is JSON"),
            ),
        }
    }

    /// Whether there are no attributes.
    pub fn is_empty(&self) -> bool {
        self.text.as_ref().map_or_else(|| self.as_map().is_empty(), |text| text.get() == "{}")
    }

    /// Returns the attributes as a map.
    pub fn as_map(&self) -> &Map<String, Value> {
        self.map.get_or_init(|| match &self.text {
            Some(text) => serde_json::from_str(text.get()).expect("the text was checked when it was read"),
            None => Map::new(),
        })
    }

    /// Converts the attributes into a map.
    pub fn into_map(self) -> Map<String, Value> {
        self.as_map();
        self.map.into_inner().unwrap_or_default()
    }

    /// Returns the approximate number of bytes that the attributes hold in memory.
    pub(super) fn weight(&self) -> usize {
        let map =
            |map: &Map<String, Value>| map.iter().map(|(name, value)| name.len() + weight_of(value)).sum();
        self.text.as_ref().map_or(0, |text| text.get().len()) + self.map.get().map_or(0, map)
    }
}

impl Deref for Attributes {
    type Target = Map<String, Value>;

    fn deref(&self) -> &Self::Target {
        self.as_map()
    }
}

/// A change is made to the map and discards the text as it was sent.
impl DerefMut for Attributes {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.as_map();
        self.text = None;
        self.map.get_mut().expect("it has just been made")
    }
}

impl From<Map<String, Value>> for Attributes {
    fn from(map: Map<String, Value>) -> Self {
        Self { text: None, map: OnceLock::from(map) }
    }
}

impl FromIterator<(String, Value)> for Attributes {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(fields: I) -> Self {
        Map::from_iter(fields).into()
    }
}

/// Compares the JSON texts: equal attributes have the same names and values in the same order.
impl PartialEq for Attributes {
    fn eq(&self, other: &Self) -> bool {
        self.to_json() == other.to_json()
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_json())
    }
}

/// Serialized as a map, which every format can write.
impl Serialize for Attributes {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.as_map().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Attributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Map::deserialize(deserializer).map(Self::from)
    }
}

fn weight_of(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(weight_of).sum(),
            Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + weight_of(value)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

/// Normalizes valid JSON: no white space between the tokens, no needless escapes, and strings instead of numbers that
/// no double holds.
fn tidied(text: &str) -> serde_json::Result<String> {
    let mut tidy = String::with_capacity(text.len());
    let (mut rest, mut depth) = (text, 0_usize);
    while let Some(first) = rest.bytes().next() {
        let length = match first {
            b'"' => end_of_text(rest),
            b'-' | b'0'..=b'9' => end_of_number(rest),
            _ => 1,
        };
        let (token, after) = rest.split_at(length);
        rest = after;
        match first {
            b' ' | b'\t' | b'\r' | b'\n' => continue,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' if token.contains('\\') => {
                let plain: Cow<'_, str> = serde_json::from_str(token)?;
                tidy.push_str(&serde_json::to_string(&plain)?);
                continue;
            }
            b'-' | b'0'..=b'9' if !token.parse::<f64>().is_ok_and(f64::is_finite) => {
                tidy.push_str(&serde_json::to_string(token)?);
                continue;
            }
            _ => {}
        }
        if depth > MOST_LEVELS {
            return Err(serde::de::Error::custom(format!("nested deeper than {MOST_LEVELS} levels")));
        }
        tidy.push_str(token);
    }
    Ok(tidy)
}

/// Returns the length of the string at the beginning, including both quotes.
fn end_of_text(rest: &str) -> usize {
    let mut at = 1;
    while let Some(found) = rest.as_bytes()[at..].iter().position(|byte| matches!(byte, b'"' | b'\\')) {
        at += found;
        if rest.as_bytes()[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    rest.len()
}

fn end_of_number(rest: &str) -> usize {
    let part = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E');
    rest.bytes().position(|byte| !part(byte)).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_and_digits_are_as_they_were_sent() {
        let sent = r#"{"z": 18446744073709551617, "a" :[ 9007199254740993, -0.10, 1E2 ],"2":{"b":1,"a":"\u00e9\n"},"1":null}"#;
        let attributes = Attributes::from_json(sent).expect("an object");
        assert_eq!(
            attributes.to_json(),
            r#"{"z":18446744073709551617,"a":[9007199254740993,-0.10,1E2],"2":{"b":1,"a":"é\n"},"1":null}"#
        );
        assert_eq!(attributes["a"][0], 9_007_199_254_740_993_u64);
        assert_eq!(attributes["2"]["a"], "é\n");
        assert_eq!(Attributes::from_json(&attributes.to_json()).expect("its own text"), attributes);
    }

    #[test]
    fn a_change_makes_a_new_text() {
        let mut attributes = Attributes::from_json(r#"{"b":1,"a":2}"#).expect("an object");
        attributes.insert("c".into(), 3.into());
        assert_eq!(attributes.to_json(), r#"{"a":2,"b":1,"c":3}"#);
        assert_eq!(Attributes::default().to_json(), "{}");
        assert!(Attributes::from_json(" { } ").expect("an object").is_empty());
    }

    #[test]
    fn numbers_that_no_double_holds_become_text() {
        let attributes = Attributes::from_json(r#"{"a":1e999,"b":-1e999,"c":1e-999}"#).expect("an object");
        assert_eq!(attributes.to_json(), r#"{"a":"1e999","b":"-1e999","c":1e-999}"#);
        assert_eq!(attributes["a"], "1e999");
    }

    #[test]
    fn a_text_that_is_not_an_object_is_refused() {
        let deep = |levels: usize| format!(r#"{{"k":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
        for text in ["", "[]", "1", r#"{"a":1 2}"#, r#"{"a":1}{}"#, r#"{"a":"\ud800"}"#, &deep(MOST_LEVELS)] {
            assert!(Attributes::from_json(text).is_err(), "{text}");
        }
        assert!(Attributes::from_json(&deep(MOST_LEVELS - 1)).expect("not too deep").contains_key("k"));
    }

    proptest! {
        #[test]
        fn accepted_text_reads_as_a_map(text in "\\{(\"[a-z\\\\]{0,3}\":[-0-9.eE\"\\[\\]{}, ]{0,9},?){0,3}\\}") {
            if let Ok(attributes) = Attributes::from_json(&text) {
                prop_assert_eq!(attributes.len(), serde_json::from_str::<Map<String, Value>>(&attributes.to_json()).expect("JSON").len());
            }
        }
    }
}
