//! The parts of the CloudEvents format that a transport needs: content types and the quotes around a header's value.

use std::borrow::Cow;

/// Content type of a structured JSON event.
pub const STRUCTURED_JSON: &str = "application/cloudevents+json";
/// Content type of a structured MessagePack event.
pub const STRUCTURED_MSGPACK: &str = "application/cloudevents+msgpack";
/// The start of the content type of every structured event, without its format.
pub const STRUCTURED: &str = "application/cloudevents";

/// A MIME type without its parameters.
#[inline]
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Whether a content type declares that the body is a whole event.
pub fn is_structured(content_type: &str) -> bool {
    let start = essence(content_type).get(..STRUCTURED.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(STRUCTURED))
}

/// Returns a header's value without the quotes that the HTTP and NATS bindings allow around it.
pub fn unquote(value: &str) -> Cow<'_, str> {
    match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        None => value.into(),
        Some(inner) if !inner.contains('\\') => inner.into(),
        Some(inner) => {
            let mut text = String::with_capacity(inner.len());
            let mut characters = inner.chars();
            while let Some(character) = characters.next() {
                text.push(match character {
                    '\\' => characters.next().unwrap_or('\\'),
                    other => other,
                });
            }
            text.into()
        }
    }
}
