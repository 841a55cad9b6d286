//! Structured mode in JSON: <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::attributes::invalid;
use super::meta::{Decoded, Meta};
use crate::codec::Codec;
use event_transport::error::{Error, ErrorKind, Result};

pub(super) fn write<T: Serialize + ?Sized>(meta: &Meta, data: &T) -> Result<Bytes> {
    let mut body = Vec::with_capacity(512);
    body.push(b'{');
    meta.for_each(|name, value| {
        text(&mut body, name);
        body.push(b':');
        text(&mut body, value);
        body.push(b',');
    });
    body.extend_from_slice(b"\"data\":");
    Codec::Json.encode(data, &mut body)?;
    body.push(b'}');
    Ok(body.into())
}

fn text(body: &mut Vec<u8>, text: &str) {
    // Most attributes need no escapes; serde_json writes the others.
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        body.push(b'"');
        body.extend_from_slice(text.as_bytes());
        body.push(b'"');
    } else {
        serde_json::to_writer(body, text).expect("text always encodes into memory");
    }
}

pub(super) fn read(body: &Bytes) -> Result<Decoded> {
    let parts: Parts<'_> = serde_json::from_slice(body).map_err(|cause| {
        Error::new(ErrorKind::Decode, "the body is not a structured JSON event")
            .during("decode envelope")
            .because(cause)
    })?;
    let mut meta = Meta::empty();
    let mut version = false;
    for (name, value) in &parts.attributes {
        match value {
            Value::Text(value) => {
                version |= name == "specversion";
                meta.set(name, value)?;
            }
            Value::Other(raw) => match raw.get() {
                // In the JSON format null means absent; numbers and booleans are values of extensions.
                "null" => {}
                raw if raw.starts_with(['{', '[']) => {
                    return Err(invalid(name, "text, a number or a boolean"));
                }
                raw => meta.set_scalar(name, raw)?,
            },
        }
    }
    if !version {
        return Err(invalid("specversion", "given"));
    }
    meta.check(ErrorKind::Decode)?;
    let codec = meta.datacontenttype.as_deref().map_or(Some(Codec::Json), Codec::from_content_type);
    let given = parts.data.map(RawValue::get).filter(|raw| *raw != "null" || parts.data_base64.is_none());
    let (data, codec) = match (given, parts.data_base64) {
        (None, Some(text)) => (base64(&text)?, codec),
        (None, None) => (Codec::Json.nothing(), Some(Codec::Json)),
        (Some(_), Some(_)) => return Err(invalid("data", "given once, as `data` or `data_base64`")),
        // A string with another content type is the content itself; other values have no form except JSON.
        (Some(raw), None) if codec != Some(Codec::Json) && raw.starts_with('"') => {
            let Text(text) =
                serde_json::from_str(raw).map_err(|cause| invalid("data", "text").because(cause))?;
            match text {
                Cow::Borrowed(text) => (body.slice_ref(text.as_bytes()), codec),
                Cow::Owned(text) => (text.into(), codec),
            }
        }
        (Some(raw), None) => (body.slice_ref(raw.as_bytes()), Some(Codec::Json)),
    };
    Ok((meta, data, codec))
}

#[derive(Default)]
struct Parts<'a> {
    attributes: Vec<(Cow<'a, str>, Value<'a>)>,
    data: Option<&'a RawValue>,
    data_base64: Option<Cow<'a, str>>,
}

enum Value<'a> {
    Text(Cow<'a, str>),
    Other(&'a RawValue),
}

impl<'de: 'a, 'a> Deserialize<'de> for Parts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Parts<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of CloudEvents attributes")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Parts<'de>, A::Error> {
                let mut parts = Parts { attributes: Vec::with_capacity(12), ..Parts::default() };
                while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
                    match &*name {
                        "data" => parts.data = Some(map.next_value()?),
                        "data_base64" => {
                            parts.data_base64 = map.next_value::<Option<Text<'de>>>()?.map(|text| text.0);
                        }
                        _ => {
                            let raw: &'de RawValue = map.next_value()?;
                            let value =
                                match raw.get().strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
                                    Some(plain) if !plain.contains('\\') => Value::Text(Cow::Borrowed(plain)),
                                    Some(_) => Value::Text(Cow::Owned(
                                        serde_json::from_str(raw.get()).map_err(serde::de::Error::custom)?,
                                    )),
                                    None => Value::Other(raw),
                                };
                            parts.attributes.push((name, value));
                        }
                    }
                }
                Ok(parts)
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// Text that is borrowed when it needs no unescaping.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

fn base64(text: &str) -> Result<Bytes> {
    use base64::Engine;
    use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    ENGINE.decode(text).map(Bytes::from).map_err(|cause| invalid("data_base64", "base64").because(cause))
}
