//! Encodes and decodes task arguments as stored: a JSON array by position and a JSON object by name, as in Celery.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use ciborium::Value;
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{Error, Result};

/// Encodes a tuple of arguments as a JSON array.
pub(crate) fn encode_args<A: Serialize>(parameters: &[&str], args: &A) -> Result<String> {
    let text = write(args, |path| match path {
        [Step::Index(first), rest @ ..] => {
            format!("argument `{}`{}", parameters.get(*first).unwrap_or(&"?"), shown_path(rest))
        }
        path => format!("the arguments{}", shown_path(path)),
    })?;
    // serde encodes the empty tuple as unit, which JSON writes as `null`.
    Ok(if text == "null" { "[]".to_owned() } else { text })
}

/// Encodes any value as JSON.
pub(crate) fn encode<T: Serialize>(what: &str, value: &T) -> Result<String> {
    write(value, |path| format!("{what}{}", shown_path(path)))
}

/// JSON has no NaN and no infinity, and serde writes `null` for them, which is read back as another value. This
/// function refuses such numbers.
fn write<T: Serialize>(value: &T, place: impl FnOnce(&[Step]) -> String) -> Result<String> {
    let failed = |error: serde_json::Error| Error::invalid("this cannot be written as json").because(error);
    let text = serde_json::to_string(value).map_err(failed)?;
    if !text.contains("null") {
        return Ok(text);
    }
    let mut path = Vec::new();
    match Value::serialized(value).ok().and_then(|value| not_finite(&value, &mut path)) {
        Some(number) => Err(Error::invalid(format!(
            "{} is {number}, which json does not have: pass an Option or a text instead",
            place(&path)
        ))),
        None => Ok(text),
    }
}

/// One step of the path to a nested value.
enum Step {
    Index(usize),
    Name(String),
}

fn shown_path(path: &[Step]) -> String {
    path.iter()
        .map(|step| match step {
            Step::Index(index) => format!("[{index}]"),
            Step::Name(name) => format!(".{name}"),
        })
        .collect()
}

/// Returns the first number that is NaN or infinite, and stores the path to it in `path`.
fn not_finite(value: &Value, path: &mut Vec<Step>) -> Option<f64> {
    let mut into = |step, value| {
        path.push(step);
        let found = not_finite(value, path);
        if found.is_none() {
            path.pop();
        }
        found
    };
    match value {
        Value::Float(number) if !number.is_finite() => Some(*number),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(index, item)| into(Step::Index(index), item))
        }
        Value::Map(entries) => entries.iter().find_map(|(key, item)| {
            let name = key.as_text().map_or_else(|| format!("{key:?}"), str::to_owned);
            into(Step::Name(name), item)
        }),
        _ => None,
    }
}

/// A JSON object whose values stay as their original text; a duplicate name is refused.
struct Named<'a>(BTreeMap<Cow<'a, str>, &'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Named<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Named<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a json object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Named<'de>, M::Error> {
                let mut named = BTreeMap::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    if named.insert(name.clone(), value).is_some() {
                        return Err(serde::de::Error::custom(format!("argument `{name}` is given twice")));
                    }
                }
                Ok(Named(named))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Decodes stored arguments into the tuple that the function takes. A missing argument is decoded from `null`, so
/// an `Option` at the end may be left out.
pub(crate) fn decode<A: DeserializeOwned>(
    parameters: &[&str],
    args: &str,
    kwargs: Option<&str>,
) -> Result<A> {
    let text = match place(parameters, args, kwargs)? {
        Some(placed) => placed,
        None => args.to_owned(),
    };
    let text = if parameters.is_empty() { "null" } else { &text };
    serde_json::from_str(text).map_err(|error| {
        Error::invalid(format!(
            "the arguments do not fit ({}): {args}{}",
            parameters.join(", "),
            shown(kwargs)
        ))
        .because(error)
    })
}

fn shown(kwargs: Option<&str>) -> String {
    kwargs.map(|kwargs| format!(" {kwargs}")).unwrap_or_default()
}

/// Puts named arguments in their positions; `None` when the array is complete already.
pub(crate) fn place(parameters: &[&str], args: &str, kwargs: Option<&str>) -> Result<Option<String>> {
    let given: Vec<&RawValue> = serde_json::from_str(args).map_err(|error| {
        Error::invalid(format!("the arguments are not a JSON array: {args}")).because(error)
    })?;
    let takes = || match parameters.len() {
        0 => "takes no arguments".to_owned(),
        _ => format!("takes {}", parameters.join(", ")),
    };
    if given.len() > parameters.len() {
        return Err(Error::invalid(format!(
            "the task {} but got {} arguments: {args}",
            takes(),
            given.len()
        )));
    }
    let named = match kwargs {
        Some(kwargs) => by_name(kwargs)?,
        None => BTreeMap::new(),
    };
    if given.len() == parameters.len() && named.is_empty() {
        return Ok(None);
    }
    if let Some(unknown) = named.keys().find(|name| !parameters.contains(&name.as_ref())) {
        return Err(Error::invalid(format!("the task {} and has no argument `{unknown}`", takes())));
    }
    let mut placed = Vec::with_capacity(parameters.len());
    for (index, name) in parameters.iter().enumerate() {
        let text = match (given.get(index), named.get(*name)) {
            (Some(_), Some(_)) => return Err(Error::invalid(format!("argument `{name}` is given twice"))),
            (Some(raw), None) => raw.get().to_owned(),
            (None, Some(value)) => value.get().to_owned(),
            (None, None) => "null".to_owned(),
        };
        placed.push(text);
    }
    Ok(Some(format!("[{}]", placed.join(","))))
}

/// Parses arguments by name; each value keeps its original text.
///
/// # Errors
/// Fails when the text is not a JSON object, or when a name occurs twice.
pub(crate) fn by_name(kwargs: &str) -> Result<BTreeMap<Cow<'_, str>, &RawValue>> {
    serde_json::from_str::<Named<'_>>(kwargs).map(|named| named.0).map_err(|error| {
        Error::invalid(format!("the arguments by name are not a JSON object: {kwargs}")).because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Args = (u32, String, Option<bool>);
    const NAMES: &[&str] = &["id", "to", "loud"];

    #[test]
    fn reads_what_was_written() {
        let encode = |args: &Args| encode_args(NAMES, args).unwrap();
        assert_eq!(encode_args(&[], &()).unwrap(), "[]");
        let _: () = decode(&[], "[]", None).unwrap();
        let args: Args = (7, "a".to_owned(), Some(true));
        assert_eq!(decode::<Args>(NAMES, &encode(&args), None).unwrap(), args);
    }

    #[test]
    fn places_names_and_leaves_options_out() {
        let args = decode::<Args>(NAMES, "[7]", Some(r#"{"to":"a"}"#)).unwrap();
        assert_eq!(args, (7, "a".to_owned(), None));
    }

    #[test]
    fn integers_of_any_size_fit_by_position_and_by_name() {
        let large = u128::MAX;
        let by_position = decode::<(u128, i128)>(&["a", "b"], &format!("[{large}, {}]", i128::MIN), None);
        assert_eq!(by_position.unwrap(), (large, i128::MIN));
        let kwargs = format!(r#"{{"b": {}, "\u0061": {large}}}"#, i128::MIN);
        let by_name = decode::<(u128, i128)>(&["a", "b"], "[]", Some(&kwargs));
        assert_eq!(by_name.unwrap(), (large, i128::MIN));
    }

    #[test]
    fn a_number_that_json_does_not_have_is_refused_by_name() {
        #[derive(Serialize)]
        struct Reading {
            celsius: Vec<f32>,
            note: Option<String>,
        }
        let reading = Reading { celsius: vec![1.0, f32::NEG_INFINITY], note: None };
        for (outcome, said) in [
            (encode_args(&["at", "celsius"], &(1, f64::NAN)), "argument `celsius` is NaN"),
            (encode_args(&["reading"], &(&reading,)), "argument `reading`.celsius[1] is -inf"),
            (encode("the result", &Some(f64::INFINITY)), "the result is inf"),
            (encode("the result", &reading), "the result.celsius[1] is -inf"),
        ] {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let absent = (None::<f64>, Some("null"), 1.5);
        assert_eq!(encode_args(&["a", "b", "c"], &absent).unwrap(), r#"[null,"null",1.5]"#);
    }

    #[test]
    fn refusals_name_the_argument() {
        for (args, kwargs, said) in [
            ("[1,\"a\",null,4]", None, "takes id, to, loud but got 4"),
            ("[1]", Some(r#"{"whom":"a"}"#), "no argument `whom`"),
            ("[1]", Some(r#"{"id":2,"to":"a"}"#), "`id` is given twice"),
            ("[\"x\",\"a\"]", None, "do not fit (id, to, loud)"),
            ("{}", None, "not a JSON array"),
            ("[1]", Some("[]"), "not a JSON object"),
            ("[1]", Some(r#"{"to":"a","to":"b"}"#), "`to` is given twice"),
        ] {
            let error = decode::<Args>(NAMES, args, kwargs).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(decode::<()>(&[], "[1]", None).unwrap_err().to_string().contains("takes no arguments"));
    }
}
