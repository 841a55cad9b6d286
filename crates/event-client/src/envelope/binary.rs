//! Binary mode: attributes in `ce-` headers, the bare payload in the body, as in the NATS and HTTP bindings.

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::Serialize;
use smol_str::SmolStr;

use super::{Envelope, Meta, invalid};
use crate::codec::Codec;
use crate::error::Result;
use crate::message::{Headers, Message};

const PREFIX: &str = "ce-";

/// What the HTTP and NATS bindings escape in a value, beside everything that is not ASCII.
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
        let set = match name {
            "datacontenttype" => Ok(()),
            // Trace context has a header of its own everywhere, which other tools read.
            "traceparent" | "tracestate" => headers.set(name, value),
            _ => headers.set(&format!("{PREFIX}{name}"), &utf8_percent_encode(value, ESCAPED).to_string()),
        };
        if refused.is_ok() {
            refused = set;
        }
    });
    refused?;
    Ok((SmolStr::new_static(codec.content_type()), headers, body.into()))
}

pub(super) fn read(message: &Message) -> Result<Envelope> {
    let mut meta = Meta::empty();
    for (name, value) in message.headers.iter() {
        match name.strip_prefix(PREFIX) {
            // Some bindings carry the content type as an attribute, some as the message's own.
            Some(name) => match percent_decode_str(value).decode_utf8() {
                Ok(value) => meta.set(name, &value)?,
                Err(cause) => return Err(invalid(name, "UTF-8 when percent-decoded").because(cause)),
            },
            None if matches!(name, "traceparent" | "tracestate") => meta.set(name, value)?,
            None => {}
        }
    }
    meta.require()?;
    if !message.content_type.is_empty() {
        meta.datacontenttype = Some(message.content_type.clone());
    }
    let codec = meta.datacontenttype.as_deref().and_then(Codec::from_content_type);
    Ok(Envelope { meta, data: message.payload.clone(), codec })
}
