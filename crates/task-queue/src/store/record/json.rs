//! Keeps JSON as its original text, so that a number keeps every digit, also beyond a machine word.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use crate::{Error, Result};

/// A valid JSON text. Two are equal when their texts are.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(Box<RawValue>);

impl Json {
    /// Parses a text and removes the white space between its parts.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) when the text is not valid JSON.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |error| Error::invalid(format!("`{text}` is not valid JSON")).because(error);
        let raw: &RawValue = serde_json::from_str(text).map_err(bad)?;
        RawValue::from_string(compact(raw.get())).map(Self).map_err(bad)
    }

    /// Encodes a text as a JSON string.
    pub(crate) fn string(text: &str) -> Self {
        let text = serde_json::to_string(text).expect("a text is json");
        Self(RawValue::from_string(text).expect("it was just written"))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// The parsed value; integers beyond 64 bits become floating point numbers.
    pub fn value(&self) -> Value {
        serde_json::from_str(self.as_str()).unwrap_or(Value::Null)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl PartialEq<Value> for Json {
    fn eq(&self, other: &Value) -> bool {
        self.value() == *other
    }
}

/// Removes the white space between the parts of a JSON text.
pub(crate) fn compact(json: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    json.chars()
        .filter(|letter| {
            let kept = quoted || !letter.is_ascii_whitespace();
            match letter {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ => {}
            }
            kept
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_goes_and_digits_stay() {
        let text = "[ 340282366920938463463374607431768211455 , \"a \\\" b\\\\\" ,\n {\"x\": 1.50} ]";
        let json = Json::parse(text).unwrap();
        assert_eq!(json.as_str(), r#"[340282366920938463463374607431768211455,"a \" b\\",{"x":1.50}]"#);
        let again: Json = serde_json::from_str(&serde_json::to_string(&json).unwrap()).unwrap();
        assert_eq!(json, again);
        assert!(Json::parse("[1,").is_err());
        assert_eq!(Json::string("a\"b"), serde_json::json!("a\"b"));
    }
}
