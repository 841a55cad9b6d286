//! Decodes the bytes of a body to text, from the encodings that Python's `json.loads`, and so the original, detects.

use std::borrow::Cow;

/// A body as text.
#[derive(Debug)]
pub(super) struct Text<'a> {
    pub(super) text: Cow<'a, str>,
    /// Whether all bytes were valid; U+FFFD replaces invalid bytes.
    pub(super) whole: bool,
}

/// Decodes a body: UTF-8, UTF-16 or UTF-32, detected by a byte order mark or, without one, by the positions of zero
/// bytes.
pub(super) fn decode(body: &[u8]) -> Text<'_> {
    let (kind, mark) = detect(body);
    let body = &body[mark..];
    match kind {
        Kind::Utf8 => match String::from_utf8_lossy(body) {
            // The result is borrowed if the input was valid.
            text @ Cow::Borrowed(_) => Text { text, whole: true },
            text => Text { text, whole: false },
        },
        Kind::Utf16(order) => {
            let (pairs, rest) = body.as_chunks::<2>();
            let units = pairs.iter().map(|pair| match order {
                ByteOrder::Little => u16::from_le_bytes(*pair),
                ByteOrder::Big => u16::from_be_bytes(*pair),
            });
            collect(char::decode_utf16(units).map(Result::ok), rest)
        }
        Kind::Utf32(order) => {
            let (fours, rest) = body.as_chunks::<4>();
            let units = fours.iter().map(|four| match order {
                ByteOrder::Little => u32::from_le_bytes(*four),
                ByteOrder::Big => u32::from_be_bytes(*four),
            });
            collect(units.map(char::from_u32), rest)
        }
    }
}

fn collect<'a>(signs: impl Iterator<Item = Option<char>>, rest: &[u8]) -> Text<'a> {
    let mut whole = rest.is_empty();
    let mut text: String = signs
        .map(|sign| {
            whole &= sign.is_some();
            sign.unwrap_or(char::REPLACEMENT_CHARACTER)
        })
        .collect();
    if !rest.is_empty() {
        text.push(char::REPLACEMENT_CHARACTER);
    }
    Text { text: text.into(), whole }
}

enum Kind {
    Utf8,
    Utf16(ByteOrder),
    Utf32(ByteOrder),
}

enum ByteOrder {
    Little,
    Big,
}

/// Returns the encoding and the length of the byte order mark.
fn detect(body: &[u8]) -> (Kind, usize) {
    match body {
        [0, 0, 0xfe, 0xff, ..] => (Kind::Utf32(ByteOrder::Big), 4),
        [0xff, 0xfe, 0, 0, ..] => (Kind::Utf32(ByteOrder::Little), 4),
        [0xfe, 0xff, ..] => (Kind::Utf16(ByteOrder::Big), 2),
        [0xff, 0xfe, ..] => (Kind::Utf16(ByteOrder::Little), 2),
        [0xef, 0xbb, 0xbf, ..] => (Kind::Utf8, 3),
        // JSON begins with an ASCII character, so the zero bytes around it show the width of a character.
        [0, 0, _, _, ..] => (Kind::Utf32(ByteOrder::Big), 0),
        [0, _, _, _, ..] | [0, _] => (Kind::Utf16(ByteOrder::Big), 0),
        [_, 0, 0, 0, ..] => (Kind::Utf32(ByteOrder::Little), 0),
        [_, 0, _, _, ..] | [_, 0] => (Kind::Utf16(ByteOrder::Little), 0),
        _ => (Kind::Utf8, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes a text, with or without a byte order mark.
    fn encoded(text: &str, width: usize, big: bool, mark: bool) -> Vec<u8> {
        let text = if mark { format!("\u{feff}{text}") } else { text.to_owned() };
        let turned = |mut bytes: Vec<u8>| {
            if !big {
                bytes.reverse();
            }
            bytes
        };
        match width {
            1 => text.into_bytes(),
            2 => text.encode_utf16().flat_map(|unit| turned(unit.to_be_bytes().to_vec())).collect(),
            _ => text.chars().flat_map(|sign| turned(u32::from(sign).to_be_bytes().to_vec())).collect(),
        }
    }

    #[test]
    fn what_python_takes_is_taken() {
        for text in ["{\"a\":\"é😀\"}", "[]", "5"] {
            for (width, big, mark) in [1, 2, 4].into_iter().flat_map(|width| {
                [(width, true, true), (width, true, false), (width, false, true), (width, false, false)]
            }) {
                let found = encoded(text, width, big, mark);
                let found = decode(&found);
                assert_eq!((&*found.text, found.whole), (text, true), "{width} {big} {mark}");
            }
        }
        assert!(decode(b"").text.is_empty());
    }

    #[test]
    fn what_has_no_meaning_is_marked() {
        for (body, expected) in [
            (&b"{\"caf\xe9\"}"[..], "{\"caf\u{fffd}\"}"),
            (b"\xff\xfe{\0\x00\xd8}\0", "{\u{fffd}}"),
            (b"\xff\xfe{\0}", "{\u{fffd}"),
            (b"\xff\xfe\0\0{\0\0\0\0\0\0\x01", "{\u{fffd}"),
        ] {
            let found = decode(body);
            assert_eq!((&*found.text, found.whole), (expected, false), "{body:?}");
        }
    }
}
