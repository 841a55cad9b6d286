//! Converts data to one line of JSON text for people and tools, without a number type that rounds.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rmp::Marker;
use rmp::decode::{self, RmpRead};
use serde_json::value::RawValue;

use crate::codec::{Codec, MAX_DEPTH};

/// Returns `None` for data that does not match its encoding. Text of other content types becomes a JSON string.
pub(super) fn json(data: &[u8], codec: Option<Codec>) -> Option<Box<RawValue>> {
    let mut text = String::with_capacity(data.len() + 16);
    match codec {
        Some(Codec::Json) => compact(serde_json::from_slice::<&RawValue>(data).ok()?.get(), &mut text),
        Some(Codec::MsgPack) => {
            let mut cursor = Cursor::new(data);
            value(&mut cursor, &mut text, MAX_DEPTH)?;
            if cursor.position() as usize != data.len() {
                return None;
            }
        }
        None => quote(std::str::from_utf8(data).ok()?, &mut text),
    }
    RawValue::from_string(text).ok()
}

/// Copies valid JSON without the white space between its values.
fn compact(json: &str, text: &mut String) {
    let (mut quoted, mut escaped) = (false, false);
    for character in json.chars() {
        if !quoted && character.is_ascii_whitespace() {
            continue;
        }
        text.push(character);
        match character {
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = quoted && !escaped && character == '\\';
    }
}

fn quote(value: &str, text: &mut String) {
    text.push_str(&serde_json::to_string(value).expect("text always encodes"));
}

/// Converts one MessagePack value; `None` when it is cut short or nested deeper than `depth`.
fn value(cursor: &mut Cursor<&[u8]>, text: &mut String, depth: usize) -> Option<()> {
    use std::fmt::Write;
    let depth = depth.checked_sub(1)?;
    let start = cursor.position();
    let marker = decode::read_marker(cursor).ok()?;
    let at_marker = |cursor: &mut Cursor<&[u8]>| cursor.set_position(start);
    match marker {
        Marker::Null => text.push_str("null"),
        Marker::True => text.push_str("true"),
        Marker::False => text.push_str("false"),
        Marker::F32 => float(cursor.read_data_f32().ok()?, text),
        Marker::F64 => float(cursor.read_data_f64().ok()?, text),
        Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
            let rest = cursor.get_ref().get(start as usize..)?;
            let (string, rest) = decode::read_str_from_slice(rest).ok()?;
            cursor.set_position((cursor.get_ref().len() - rest.len()) as u64);
            quote(string, text);
        }
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
            at_marker(cursor);
            let length = decode::read_bin_len(cursor).ok()?;
            base64(cursor, length, text)?;
        }
        Marker::FixExt1
        | Marker::FixExt2
        | Marker::FixExt4
        | Marker::FixExt8
        | Marker::FixExt16
        | Marker::Ext8
        | Marker::Ext16
        | Marker::Ext32 => {
            at_marker(cursor);
            let length = decode::read_ext_meta(cursor).ok()?.size;
            base64(cursor, length, text)?;
        }
        Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
            at_marker(cursor);
            let length = decode::read_array_len(cursor).ok()?;
            text.push('[');
            for n in 0..length {
                if n > 0 {
                    text.push(',');
                }
                value(cursor, text, depth)?;
            }
            text.push(']');
        }
        Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
            at_marker(cursor);
            let length = decode::read_map_len(cursor).ok()?;
            text.push('{');
            for n in 0..length {
                if n > 0 {
                    text.push(',');
                }
                let from = text.len();
                value(cursor, text, depth)?;
                if !text[from..].starts_with('"') {
                    let name = text.split_off(from);
                    quote(&name, text);
                }
                text.push(':');
                value(cursor, text, depth)?;
            }
            text.push('}');
        }
        Marker::Reserved => return None,
        _ => {
            at_marker(cursor);
            let number: i128 = decode::read_int(cursor).ok()?;
            write!(text, "{number}").ok()?;
        }
    }
    Some(())
}

fn float(number: impl serde::Serialize, text: &mut String) {
    // Writes numbers that JSON lacks as null.
    text.push_str(&serde_json::to_string(&number).expect("a number always encodes"));
}

fn base64(cursor: &mut Cursor<&[u8]>, length: u32, text: &mut String) -> Option<()> {
    let start = cursor.position() as usize;
    let end = start.checked_add(length as usize)?;
    let bytes = cursor.get_ref().get(start..end)?;
    text.push('"');
    STANDARD.encode_string(bytes, text);
    text.push('"');
    cursor.set_position(end as u64);
    Some(())
}
