//! Searches a record for words; the live filter and the store use the same rule.

use std::borrow::Cow;

use event_client::log::Attributes;
use icu_casemap::CaseMapper;
use serde_json::{Map, Value};

/// Words that all have to appear, compared case-insensitively.
#[derive(Debug)]
pub(crate) struct Search {
    words: Vec<String>,
}

impl Search {
    pub(crate) fn new(words: &[String]) -> Self {
        Self { words: words.iter().map(|word| folded(word).into_owned()).collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Returns the words that are written in JSON text exactly as in the value itself, without escapes.
    pub(crate) fn plain(&self) -> impl Iterator<Item = &str> {
        let plain = |c: u8| c.is_ascii() && !c.is_ascii_control() && c != b'"' && c != b'\\';
        self.words.iter().map(String::as_str).filter(move |word| word.bytes().all(plain))
    }

    /// Returns whether each word appears in one of the texts, or in a name or value of the attributes at any depth.
    pub(crate) fn finds<'a>(
        &self,
        texts: impl IntoIterator<Item = &'a str>,
        attributes: &Attributes,
    ) -> bool {
        let mut missing: Vec<&str> = self.words.iter().map(String::as_str).collect();
        // Only the JSON text contains every digit of a number.
        if missing.iter().any(|word| is_of_a_number(word)) {
            let text = attributes.to_json();
            let text = folded(&text);
            missing.retain(|word| !(is_of_a_number(word) && contains(&text, word)));
        }
        let mut look = |text: &str| {
            if !missing.is_empty() {
                let text = folded(text);
                missing.retain(|word| !contains(&text, word));
            }
            missing.is_empty()
        };
        look("") || texts.into_iter().any(&mut look) || in_fields(attributes.as_map(), &mut look)
    }
}

fn contains(text: &str, word: &str) -> bool {
    memchr::memmem::find(text.as_bytes(), word.as_bytes()).is_some()
}

fn is_of_a_number(word: &str) -> bool {
    word.bytes().any(|byte| byte.is_ascii_digit())
        && word.bytes().all(|byte| byte.is_ascii_digit() || b"+-.e".contains(&byte))
}

/// Visits names and values until `look` returns true, which means that no word is missing.
fn in_fields(fields: &Map<String, Value>, look: &mut impl FnMut(&str) -> bool) -> bool {
    fields.iter().any(|(name, value)| look(name) || in_value(value, look))
}

fn in_value(value: &Value, look: &mut impl FnMut(&str) -> bool) -> bool {
    match value {
        Value::String(text) => look(text),
        Value::Array(items) => items.iter().any(|item| in_value(item, look)),
        Value::Object(fields) => in_fields(fields, look),
        Value::Null | Value::Bool(_) | Value::Number(_) => look(&value.to_string()),
    }
}

/// Folds case by Unicode's full case folding: `Straße` becomes `strasse`, and a final sigma becomes a normal sigma.
pub(crate) fn folded(text: &str) -> Cow<'_, str> {
    if !text.is_ascii() {
        return CaseMapper::new().fold_string(text);
    }
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Owned(text.to_ascii_lowercase());
    }
    Cow::Borrowed(text)
}
