//! Payload encodings: JSON or MessagePack. A service chooses one for writing; readers use the content type.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smol_str::SmolStr;

use crate::checked::Checked;
pub use crate::checked::MAX_DEPTH;
use event_transport::cloudevents::essence;
use event_transport::error::{Error, ErrorKind, Result};

/// A payload encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// `application/json`.
    #[default]
    Json,
    /// `application/msgpack`. Structs are maps with field names, so that the order of fields is not part of the
    /// contract; ids and times are text, so that readers in other languages get values that match the JSON Schema.
    MsgPack,
}

impl Codec {
    /// Encodes `value` and appends the bytes to `buffer`.
    ///
    /// # Errors
    /// [`ErrorKind::Encode`] for a value that [`decode`](Self::decode) would refuse or change: nesting as deep as
    /// [`MAX_DEPTH`], in JSON also NaN, infinity, and a map whose keys are not text. MessagePack can represent NaN and
    /// infinity.
    pub fn encode<T: Serialize + ?Sized>(self, value: &T, buffer: &mut Vec<u8>) -> Result<()> {
        let encoded = match self {
            Self::Json => serde_json::to_writer(&mut *buffer, &Checked::<_, true>::new(value))
                .map_err(|error| error.to_string()),
            Self::MsgPack => Checked::<_, false>::new(value)
                .serialize(
                    &mut rmp_serde::Serializer::new(&mut *buffer).with_struct_map().with_human_readable(),
                )
                .map_err(|error| error.to_string()),
        };
        encoded.map_err(|cause| {
            Error::new(ErrorKind::Encode, "the value cannot be encoded")
                .with("type", std::any::type_name::<T>())
                .with("codec", self.content_type())
                .because(cause)
        })
    }

    /// Decodes `bytes`, which must contain exactly one value.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`], with the type, the fault and its place in the text; also for nesting as deep as
    /// [`MAX_DEPTH`] and for bytes after the value.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T> {
        let decoded = match self {
            // serde_json has its own limit of 128 levels.
            Self::Json => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
            Self::MsgPack => {
                let mut rest = bytes;
                let mut deserializer = rmp_serde::Deserializer::new(&mut rest).with_human_readable();
                deserializer.set_max_depth(MAX_DEPTH);
                let value = T::deserialize(&mut deserializer).map_err(|error| error.to_string());
                match value {
                    Ok(_) if !rest.is_empty() => Err(format!("{} bytes after the value", rest.len())),
                    value => value,
                }
            }
        };
        decoded.map_err(|cause| {
            Error::new(ErrorKind::Decode, "the bytes are not a value of the type")
                .with("type", std::any::type_name::<T>())
                .with("codec", self.content_type())
                .because(cause)
        })
    }

    /// The encoded null value: the payload of an event without data.
    pub(crate) fn nothing(self) -> Bytes {
        Bytes::from_static(match self {
            Self::Json => b"null",
            Self::MsgPack => &[0xc0],
        })
    }

    /// The MIME type of a payload in this encoding.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::MsgPack => "application/msgpack",
        }
    }

    /// The encoding that a MIME type names: `json`, `…+json`, `msgpack`, `x-msgpack` or `vnd.msgpack`, in upper or
    /// lower case and with any parameters.
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        let (_, subtype) = essence(content_type).split_once('/')?;
        let suffix = subtype.rsplit_once('+').map_or(subtype, |(_, suffix)| suffix);
        if suffix.eq_ignore_ascii_case("json") {
            return Some(Self::Json);
        }
        let is = |known: &str| suffix.eq_ignore_ascii_case(known);
        ["msgpack", "x-msgpack", "vnd.msgpack"].into_iter().any(is).then_some(Self::MsgPack)
    }
}

impl std::str::FromStr for Codec {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "json" => Ok(Self::Json),
            "msgpack" => Ok(Self::MsgPack),
            _ => Err(Error::new(ErrorKind::Config, "a codec is `json` or `msgpack`")
                .with("codec", SmolStr::new(text))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn refuses_what_does_not_fit() {
        for codec in [Codec::Json, Codec::MsgPack] {
            let mut bytes = Vec::new();
            codec.encode(&json!({"a": 1}), &mut bytes).unwrap();
            assert_eq!(codec.decode::<Vec<u8>>(&bytes).unwrap_err().kind(), ErrorKind::Decode);
            assert_eq!(
                codec.decode::<Value>(&bytes[..bytes.len() - 1]).unwrap_err().kind(),
                ErrorKind::Decode
            );
            bytes.extend_from_slice(b"1");
            assert!(codec.decode::<Value>(&bytes).is_err(), "bytes after the value");
        }
    }

    /// `depth` arrays within each other.
    fn nested(depth: usize) -> Value {
        (1..depth).fold(json!([]), |inner, _| json!([inner]))
    }

    #[test]
    fn what_is_encoded_can_be_decoded() {
        #[derive(Serialize, serde::Deserialize, PartialEq, Debug)]
        struct Reading {
            celsius: f64,
            spread: Option<f32>,
        }
        #[derive(Serialize)]
        enum Shape {
            Ring(Reading),
        }
        let numbers = [f64::MAX, f64::MIN_POSITIVE, -0.0, 5e-324, 0.1 + 0.2];
        for codec in [Codec::Json, Codec::MsgPack] {
            let mut bytes = Vec::new();
            for celsius in numbers {
                bytes.clear();
                let reading = Reading { celsius, spread: Some(f32::MIN) };
                codec.encode(&reading, &mut bytes).unwrap();
                assert_eq!(codec.decode::<Reading>(&bytes).unwrap(), reading);
            }
            for number in [u128::MAX, 0, 1 << 64] {
                bytes.clear();
                codec.encode(&number, &mut bytes).unwrap();
                assert_eq!(codec.decode::<u128>(&bytes).unwrap(), number);
            }
            bytes.clear();
            codec.encode(&nested(MAX_DEPTH - 1), &mut bytes).unwrap();
            codec.decode::<Value>(&bytes).unwrap();
            bytes.clear();
            let error = codec.encode(&nested(MAX_DEPTH), &mut bytes).unwrap_err();
            assert!(error.to_string().contains("nested deeper than 127"), "{error}");
        }
        for celsius in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let ring = || Shape::Ring(Reading { celsius, spread: None });
            let error = Codec::Json.encode(&json_pair(ring()), &mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Encode);
            assert!(error.to_string().contains("celsius: JSON has neither NaN nor infinity"), "{error}");
            let mut bytes = Vec::new();
            Codec::MsgPack.encode(&Reading { celsius, spread: Some(f32::NAN) }, &mut bytes).unwrap();
            let back: Reading = Codec::MsgPack.decode(&bytes).unwrap();
            assert_eq!(back.celsius.to_bits(), celsius.to_bits());
            assert!(back.spread.unwrap().is_nan());
        }
        assert!(
            Codec::Json
                .encode(&std::collections::BTreeMap::from([("a", f32::NAN)]), &mut Vec::new())
                .is_err()
        );
    }

    fn json_pair<T>(value: T) -> (u8, Option<Vec<T>>) {
        (1, Some(vec![value]))
    }

    #[test]
    fn content_types_are_known_in_any_case_and_with_parameters() {
        for (content_type, codec) in [
            ("application/json", Some(Codec::Json)),
            ("Application/JSON; charset=UTF-8", Some(Codec::Json)),
            ("text/json", Some(Codec::Json)),
            ("application/vnd.acme.order+json;v=2", Some(Codec::Json)),
            ("Application/X-MsgPack", Some(Codec::MsgPack)),
            ("application/vnd.msgpack", Some(Codec::MsgPack)),
            ("application/jsonl", None),
            ("text/plain", None),
            ("json", None),
            ("", None),
        ] {
            assert_eq!(Codec::from_content_type(content_type), codec, "{content_type}");
        }
    }

    #[test]
    fn messagepack_spells_ids_as_json_does() {
        let id = uuid::Uuid::from_u128(7);
        let mut bytes = Vec::new();
        Codec::MsgPack.encode(&id, &mut bytes).unwrap();
        assert_eq!(Codec::MsgPack.decode::<String>(&bytes).unwrap(), id.to_string());
        assert_eq!(Codec::MsgPack.decode::<uuid::Uuid>(&bytes).unwrap(), id);
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(Codec::Json.decode::<Value>(deep.as_bytes()).unwrap_err().kind(), ErrorKind::Decode);
        let deep = [vec![0x91_u8; 100_000], vec![0xc0]].concat();
        assert_eq!(Codec::MsgPack.decode::<Value>(&deep).unwrap_err().kind(), ErrorKind::Decode);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_cleanly(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Codec::Json.decode::<Value>(&bytes);
            let _ = Codec::MsgPack.decode::<Value>(&bytes);
        }

        #[test]
        fn round_trip(number in any::<i64>(), text in ".*", list in proptest::collection::vec(any::<bool>(), 0..9)) {
            let value = json!({"number": number, "text": text, "list": list});
            for codec in [Codec::Json, Codec::MsgPack] {
                let mut bytes = Vec::new();
                codec.encode(&value, &mut bytes).unwrap();
                prop_assert_eq!(codec.decode::<Value>(&bytes).unwrap(), value.clone());
            }
        }
    }
}
