//! The attributes by name: the values that each may have, checked in the same way when it is read and when it is
//! written.

use jiff::Timestamp;
use smol_str::SmolStr;

use super::meta::Meta;
use crate::message::MessageId;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::rfc3339;

/// The most attributes of one event that this library does not know (extensions).
pub const MAX_EXTENSIONS: usize = 64;

/// The most bytes of a trace state that is passed on; percent-encoded it still fits into a header.
const MAX_TRACE_STATE: usize = 1024;
const TIME: &str = "an RFC 3339 time that exists";
const NAMED: &str = "named with a-z and 0-9 only, and neither `data` nor the name of a known attribute";

impl Meta {
    /// Sets a known attribute or an extension from text, as read from a header or from a string in the body.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let time = || rfc3339::read(value).map(Some).ok_or_else(|| invalid(name, TIME));
        match name {
            "specversion" if value == "1.0" => {}
            "specversion" => {
                return Err(invalid(name, "1.0").with("specversion", &value[..value.floor_char_boundary(20)]));
            }
            "id" => self.id = value.into(),
            "source" => self.source = value.into(),
            "type" => self.event_type = value.into(),
            "time" => self.time = time()?,
            "subject" => self.subject = Some(value.into()),
            "datacontenttype" => self.datacontenttype = Some(value.into()),
            "dataschema" => self.dataschema = Some(value.into()),
            "partitionkey" => self.partitionkey = Some(value.into()),
            "correlationid" => self.correlationid = Some(value.into()),
            "causationid" => self.causationid = Some(value.into()),
            // A damaged trace context must not lose the event: the specification says to start a new trace.
            "traceparent" => self.traceparent = value.parse().ok(),
            "tracestate" => self.tracestate = trace_state(value),
            "expirytime" => self.expirytime = time()?,
            _ => match self.extensions.iter().position(|(have, _)| have == name) {
                Some(at) => self.extensions[at].1 = value.into(),
                None if self.extensions.len() >= MAX_EXTENSIONS => {
                    return Err(invalid(name, "one of at most 64 extensions"));
                }
                None => self.extensions.push((name.into(), value.into())),
            },
        }
        Ok(())
    }

    /// Sets an attribute from a number or a boolean in the body. Extensions may have such values; the attributes that
    /// the specification itself defines are text.
    pub(super) fn set_scalar(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "partitionkey" | "correlationid" | "causationid" => self.set(name, value),
            _ if is_known(name) => Err(invalid(name, "text")),
            _ => self.set(name, value),
        }
    }

    /// Refuses missing attributes and values that no reader accepts.
    pub(super) fn check(&self, kind: ErrorKind) -> Result<()> {
        let required = [
            ("id", matches!(&self.id, MessageId::Text(text) if text.is_empty())),
            ("source", self.source.is_empty()),
            ("type", self.event_type.is_empty()),
        ];
        if let Some((name, _)) = required.iter().find(|(_, missing)| *missing) {
            return Err(flaw(kind, format!("the event has no `{name}`")));
        }
        let optional = [
            ("subject", &self.subject),
            ("datacontenttype", &self.datacontenttype),
            ("dataschema", &self.dataschema),
        ];
        for (name, value) in optional {
            if value.as_ref().is_some_and(SmolStr::is_empty) {
                return Err(flaw(kind, format!("attribute `{name}` must be left out rather than empty")));
            }
        }
        for (name, at) in [("time", self.time), ("expirytime", self.expirytime)] {
            if at.is_some_and(|at| at < YEAR_0) {
                return Err(flaw(kind, format!("attribute `{name}` must be within the years 0 to 9999")));
            }
        }
        if self.extensions.len() > MAX_EXTENSIONS {
            return Err(flaw(kind, format!("the event has more than {MAX_EXTENSIONS} extensions")));
        }
        match self.extensions.iter().find(|(name, _)| !is_extension(name)) {
            Some((name, _)) => Err(flaw(kind, text(name, NAMED))),
            None => Ok(()),
        }
    }
}

/// The first instant that RFC 3339 can represent.
const YEAR_0: Timestamp = Timestamp::constant(-62_167_219_200, 0);

/// Whether the specification or this library defines the attribute.
fn is_known(name: &str) -> bool {
    matches!(
        name,
        "specversion"
            | "id"
            | "source"
            | "type"
            | "time"
            | "subject"
            | "datacontenttype"
            | "dataschema"
            | "partitionkey"
            | "correlationid"
            | "causationid"
            | "traceparent"
            | "tracestate"
            | "expirytime"
    )
}

fn is_extension(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    plain && !name.is_empty() && name != "data" && !is_known(name)
}

/// Returns a trace state that can be passed on; any other is left out, as the Trace Context specification requires.
pub(super) fn trace_state(value: &str) -> Option<SmolStr> {
    let fits = (1..=MAX_TRACE_STATE).contains(&value.len());
    (fits && value.bytes().all(|byte| matches!(byte, b' '..=b'~'))).then(|| value.into())
}

fn text(name: &str, takes: &str) -> String {
    format!("attribute `{}` must be {takes}", &name[..name.floor_char_boundary(40)])
}

fn flaw(kind: ErrorKind, text: String) -> Error {
    Error::new(kind, text).during(if kind == ErrorKind::Encode {
        "encode envelope"
    } else {
        "decode envelope"
    })
}

pub(super) fn invalid(name: &str, takes: &str) -> Error {
    flaw(ErrorKind::Decode, text(name, takes))
}
