//! Structured mode in MessagePack: one map with the attributes as text and `data` as a nested value.
//!
//! CloudEvents has no official MessagePack format; this one mirrors the JSON format, so that
//! `msgpack.unpackb(body)["data"]` returns the payload in any language. `data` is written last and read at any
//! position.

use std::io::Cursor;

use bytes::Bytes;
use rmp::Marker;
use rmp::decode;
use serde::Serialize;

use super::attributes::invalid;
use super::meta::{Decoded, Meta};
use crate::codec::{Codec, MAX_DEPTH};
use event_transport::error::{Error, ErrorKind, Result};

pub(super) fn write<T: Serialize + ?Sized>(meta: &Meta, data: &T) -> Result<Bytes> {
    let mut body = Vec::with_capacity(512);
    let infallible = "writing into memory does not fail";
    rmp::encode::write_map_len(&mut body, meta.count() + 1).expect(infallible);
    meta.for_each(|name, value| {
        rmp::encode::write_str(&mut body, name).expect(infallible);
        rmp::encode::write_str(&mut body, value).expect(infallible);
    });
    rmp::encode::write_str(&mut body, "data").expect(infallible);
    Codec::MsgPack.encode(data, &mut body)?;
    Ok(body.into())
}

pub(super) fn read(body: &Bytes) -> Result<Decoded> {
    let broken = |what: &str| {
        Error::new(ErrorKind::Decode, format!("the body is not a structured MessagePack event: {what}"))
            .during("decode envelope")
    };
    let mut cursor = Cursor::new(&body[..]);
    let entries = decode::read_map_len(&mut cursor).map_err(|_| broken("it is not a map"))?;
    let mut meta = Meta::empty();
    let mut data = None;
    let mut version = false;
    for _ in 0..entries {
        let start = cursor.position() as usize;
        let (name, rest) =
            decode::read_str_from_slice(&body[start..]).map_err(|_| broken("a name is not text"))?;
        let start = body.len() - rest.len();
        cursor.set_position(start as u64);
        let marker = decode::read_marker(&mut cursor).map_err(|_| broken("it is cut short"))?;
        cursor.set_position(start as u64);
        if name == "data" {
            skip(&mut cursor, MAX_DEPTH).ok_or_else(|| broken("the data is cut short or nested too deep"))?;
            data = Some(body.slice(start..cursor.position() as usize));
            continue;
        }
        let cut = || broken("it is cut short");
        match marker {
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                let (value, rest) = decode::read_str_from_slice(&body[start..])
                    .map_err(|_| broken("a value is not valid text"))?;
                cursor.set_position((body.len() - rest.len()) as u64);
                version |= name == "specversion";
                meta.set(name, value)?;
            }
            Marker::Null => skip(&mut cursor, 1).ok_or_else(cut)?,
            Marker::True | Marker::False => {
                let value = decode::read_bool(&mut cursor).map_err(|_| cut())?;
                meta.set_scalar(name, if value { "true" } else { "false" })?;
            }
            Marker::F32 => {
                let value = decode::read_f32(&mut cursor).map_err(|_| cut())?;
                meta.set_scalar(name, &value.to_string())?;
            }
            Marker::F64 => {
                let value = decode::read_f64(&mut cursor).map_err(|_| cut())?;
                meta.set_scalar(name, &value.to_string())?;
            }
            _ => {
                let value: i128 = decode::read_int(&mut cursor)
                    .map_err(|_| invalid(name, "text, a number or a boolean"))?;
                meta.set_scalar(name, &value.to_string())?;
            }
        }
    }
    if cursor.position() as usize != body.len() {
        return Err(broken("bytes follow the map"));
    }
    if !version {
        return Err(invalid("specversion", "given"));
    }
    meta.check(ErrorKind::Decode)?;
    let data = data.unwrap_or_else(|| Codec::MsgPack.nothing());
    Ok((meta, data, Some(Codec::MsgPack)))
}

/// Skips one value; `None` when it is cut short or nested deeper than `depth`.
fn skip(cursor: &mut Cursor<&[u8]>, depth: usize) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    let marker = decode::read_marker(cursor).ok()?;
    let mut length = |bytes: usize| {
        let mut value = 0_u64;
        for _ in 0..bytes {
            value = value << 8 | u64::from(decode::RmpRead::read_u8(cursor).ok()?);
        }
        Some(value)
    };
    let (bytes, values) = match marker {
        Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => (0, 0),
        Marker::U8 | Marker::I8 => (1, 0),
        Marker::U16 | Marker::I16 | Marker::FixExt1 => (2, 0),
        Marker::FixExt2 => (3, 0),
        Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
        Marker::FixExt4 => (5, 0),
        Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
        Marker::FixExt8 => (9, 0),
        Marker::FixExt16 => (17, 0),
        Marker::FixStr(n) => (u64::from(n), 0),
        Marker::Str8 | Marker::Bin8 => (length(1)?, 0),
        Marker::Str16 | Marker::Bin16 => (length(2)?, 0),
        Marker::Str32 | Marker::Bin32 => (length(4)?, 0),
        Marker::Ext8 => (length(1)? + 1, 0),
        Marker::Ext16 => (length(2)? + 1, 0),
        Marker::Ext32 => (length(4)? + 1, 0),
        Marker::FixArray(n) => (0, u64::from(n)),
        Marker::Array16 => (0, length(2)?),
        Marker::Array32 => (0, length(4)?),
        Marker::FixMap(n) => (0, u64::from(n) * 2),
        Marker::Map16 => (0, length(2)? * 2),
        Marker::Map32 => (0, length(4)? * 2),
        Marker::Reserved => return None,
    };
    let end = cursor.position().checked_add(bytes)?;
    if end > cursor.get_ref().len() as u64 {
        return None;
    }
    cursor.set_position(end);
    // Each value takes at least one byte, so a false length fails at the end of the input.
    for _ in 0..values {
        skip(cursor, depth)?;
    }
    Some(())
}
