//! Binary mode: attributes in `ce-` headers and the bare payload in the body, as in the NATS and HTTP bindings.

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::Serialize;
use smol_str::SmolStr;

use super::attributes::{invalid, trace_state};
use super::meta::{Decoded, Meta};
use crate::codec::Codec;
use crate::message::{Headers, Message};
use event_transport::cloudevents::unquote;
use event_transport::error::{ErrorKind, Result};

const PREFIX: &str = "ce-";

/// The characters that the HTTP and NATS bindings escape in a value, in addition to all that are not ASCII.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

pub(super) fn write<T: Serialize + ?Sized>(
    meta: &Meta,
    data: &T,
    codec: Codec,
) -> Result<(SmolStr, Headers, Bytes)> {
    let mut body = Vec::with_capacity(256);
    codec.encode(data, &mut body)?;
    let mut headers = Headers::new();
    let mut refused = Ok(());
    meta.for_each(|name, value| {
        if name == "datacontenttype" || refused.is_err() {
            return;
        }
        refused = headers.set(&format!("{PREFIX}{name}"), &utf8_percent_encode(value, ESCAPED).to_string());
        // Tracing tools read the W3C header, CloudEvents readers read the attribute.
        if matches!(name, "traceparent" | "tracestate") && refused.is_ok() {
            refused = headers.set(name, value);
        }
    });
    refused.map_err(|error| error.during("encode envelope"))?;
    // Another content type for the same encoding is kept, such as `application/vnd.acme+json`.
    let named = meta.datacontenttype.clone().filter(|name| Codec::from_content_type(name) == Some(codec));
    Ok((named.unwrap_or(SmolStr::new_static(codec.content_type())), headers, body.into()))
}

pub(super) fn read(message: &Message) -> Result<Decoded> {
    let mut meta = Meta::empty();
    let mut version = false;
    for (name, value) in message.headers.iter() {
        let Some(name) = name.strip_prefix(PREFIX) else { continue };
        version |= name == "specversion";
        match percent_decode_str(&unquote(value)).decode_utf8() {
            Ok(value) => meta.set(name, &value)?,
            Err(cause) => return Err(invalid(name, "UTF-8 when percent-decoded").because(cause)),
        }
    }
    // The plain header describes the last hop, which is more recent than the event's own trace.
    if let Some(trace) = message.headers.get("traceparent").and_then(|value| value.parse().ok()) {
        meta.traceparent = Some(trace);
        meta.tracestate = message.headers.get("tracestate").and_then(trace_state).or(meta.tracestate);
    }
    meta.check(ErrorKind::Decode)?;
    if !version {
        return Err(invalid("specversion", "given"));
    }
    Ok(bare(meta, message))
}

/// Takes the body as the data. When neither the message nor the attributes contain a content type, the data is JSON
/// as in a structured event, or MessagePack if its first byte cannot begin a JSON text. An empty body means that
/// there is no data.
pub(super) fn bare(mut meta: Meta, message: &Message) -> Decoded {
    // Some bindings carry the content type as an attribute, others as the message's own content type.
    if !message.content_type.is_empty() {
        meta.datacontenttype = Some(message.content_type.clone());
    }
    let codec = match (meta.datacontenttype.as_deref(), message.payload.first()) {
        (Some(content_type), _) => Codec::from_content_type(content_type),
        (None, Some(0x80..)) => Some(Codec::MsgPack),
        (None, _) => Some(Codec::Json),
    };
    let data = match (codec, message.payload.is_empty()) {
        (Some(codec), true) => codec.nothing(),
        _ => message.payload.clone(),
    };
    (meta, data, codec)
}
