//! Arguments as stored: a JSON array by position and a JSON object by name, as Celery has them.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use crate::{Error, Result};

/// A tuple of arguments as a JSON array.
pub(crate) fn encode<A: Serialize>(args: &A) -> Result<String> {
    let text = serde_json::to_string(args)
        .map_err(|error| Error::invalid("encoding the task's arguments").with(error))?;
    // The tuple of no arguments is serde's unit.
    Ok(if text == "null" { "[]".to_owned() } else { text })
}

/// Reads stored arguments into the tuple that the function takes. One that is absent is `null`, so an `Option`
/// at the end may be left out.
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
        .with(error)
    })
}

fn shown(kwargs: Option<&str>) -> String {
    kwargs.map(|kwargs| format!(" {kwargs}")).unwrap_or_default()
}

/// Puts named arguments in their places; `None` when the array is complete as it stands.
fn place(parameters: &[&str], args: &str, kwargs: Option<&str>) -> Result<Option<String>> {
    let given: Vec<&RawValue> = serde_json::from_str(args)
        .map_err(|error| Error::invalid(format!("the arguments are no json array: {args}")).with(error))?;
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
    let named: serde_json::Map<String, Value> = match kwargs {
        Some(kwargs) => serde_json::from_str(kwargs).map_err(|error| {
            Error::invalid(format!("the arguments by name are no json object: {kwargs}")).with(error)
        })?,
        None => serde_json::Map::new(),
    };
    if given.len() == parameters.len() && named.is_empty() {
        return Ok(None);
    }
    if let Some(unknown) = named.keys().find(|name| !parameters.contains(&name.as_str())) {
        return Err(Error::invalid(format!("the task {} and has no argument `{unknown}`", takes())));
    }
    let mut placed = Vec::with_capacity(parameters.len());
    for (index, name) in parameters.iter().enumerate() {
        let text = match (given.get(index), named.get(*name)) {
            (Some(_), Some(_)) => return Err(Error::invalid(format!("argument `{name}` is given twice"))),
            (Some(raw), None) => raw.get().to_owned(),
            (None, Some(value)) => value.to_string(),
            (None, None) => "null".to_owned(),
        };
        placed.push(text);
    }
    Ok(Some(format!("[{}]", placed.join(","))))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Args = (u32, String, Option<bool>);
    const NAMES: &[&str] = &["id", "to", "loud"];

    #[test]
    fn reads_what_was_written() {
        assert_eq!(encode(&()).unwrap(), "[]");
        let _: () = decode(&[], "[]", None).unwrap();
        let args: Args = (7, "a".to_owned(), Some(true));
        assert_eq!(decode::<Args>(NAMES, &encode(&args).unwrap(), None).unwrap(), args);
    }

    #[test]
    fn places_names_and_leaves_options_out() {
        let args = decode::<Args>(NAMES, "[7]", Some(r#"{"to":"a"}"#)).unwrap();
        assert_eq!(args, (7, "a".to_owned(), None));
    }

    #[test]
    fn refusals_name_the_argument() {
        for (args, kwargs, said) in [
            ("[1,\"a\",null,4]", None, "takes id, to, loud but got 4"),
            ("[1]", Some(r#"{"whom":"a"}"#), "no argument `whom`"),
            ("[1]", Some(r#"{"id":2,"to":"a"}"#), "`id` is given twice"),
            ("[\"x\",\"a\"]", None, "do not fit (id, to, loud)"),
            ("{}", None, "no json array"),
            ("[1]", Some("[]"), "no json object"),
        ] {
            let error = decode::<Args>(NAMES, args, kwargs).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(decode::<()>(&[], "[1]", None).unwrap_err().to_string().contains("takes no arguments"));
    }
}
