//! Describes the faults of a request in FastAPI's format.

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

/// One entry of FastAPI's `detail`: one fault of a request.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    loc: Vec<Value>,
    msg: &'static str,
    input: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ctx: Option<Value>,
}

impl Problem {
    /// A query parameter is not a whole number.
    pub(crate) fn not_an_integer(name: &str, value: &str) -> Self {
        let msg = "Input should be a valid integer, unable to parse string as an integer";
        let loc = vec!["query".into(), name.into()];
        Self { kind: "int_parsing", loc, msg, input: raw(&value), ctx: None }
    }

    /// The body is missing.
    pub(super) fn no_body() -> Self {
        let msg = "Field required";
        Self { kind: "missing", loc: vec!["body".into()], msg, input: raw(&Value::Null), ctx: None }
    }

    /// The body is JSON or text, but not an object.
    pub(super) fn not_an_object(input: Box<RawValue>) -> Self {
        let msg = "Input should be a valid dictionary or object to extract fields from";
        Self { kind: "model_attributes_type", loc: vec!["body".into()], msg, input, ctx: None }
    }

    /// The body is not JSON; `position` is the byte of its text at which the error is.
    pub(super) fn not_json(position: usize, error: String) -> Self {
        Self {
            kind: "json_invalid",
            loc: vec!["body".into(), position.into()],
            msg: "JSON decode error",
            input: raw(&json!({})),
            ctx: Some(json!({ "error": error })),
        }
    }

    pub(super) fn deeper_than(levels: usize) -> Self {
        Self::not_json(0, format!("nested deeper than {levels} levels"))
    }

    /// A required field is missing in this object.
    pub(super) fn missing(field: &str, whole: &str) -> Self {
        Self::of_field("missing", field, "Field required", whole)
    }

    pub(super) fn not_a_string(field: &str, json: &str) -> Self {
        Self::of_field("string_type", field, "Input should be a valid string", json)
    }

    pub(super) fn not_a_dictionary(field: &str, json: &str) -> Self {
        Self::of_field("dict_type", field, "Input should be a valid dictionary", json)
    }

    fn of_field(kind: &'static str, field: &str, msg: &'static str, json: &str) -> Self {
        let input = RawValue::from_string(json.to_owned()).unwrap_or_else(|_| raw(&Value::Null));
        Self { kind, loc: vec!["body".into(), field.into()], msg, input, ctx: None }
    }
}

/// Serialises a value to JSON text.
pub(super) fn raw<T: Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    to_raw_value(value).expect("texts and plain values are JSON")
}
