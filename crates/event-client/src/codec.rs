//! How payloads become bytes: JSON or MessagePack, chosen per service, told apart on read by content type.

use serde::Serialize;
use serde::de::DeserializeOwned;
use smol_str::SmolStr;

use crate::error::{Error, ErrorKind, Result};

/// Deepest nesting that decoding follows; deeper input is refused instead of exhausting the stack.
pub const MAX_DEPTH: usize = 128;

/// A payload encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// `application/json`.
    #[default]
    Json,
    /// `application/msgpack`, structs as maps with names, so that the order of fields is not part of the contract,
    /// and ids and times as text, so that readers in other languages see what the JSON Schema says.
    MsgPack,
}

impl Codec {
    /// Encodes `value` onto the end of `buffer`.
    ///
    /// # Errors
    /// [`ErrorKind::Encode`], for example for a map whose keys are not text.
    pub fn encode<T: Serialize + ?Sized>(self, value: &T, buffer: &mut Vec<u8>) -> Result<()> {
        let encoded = match self {
            Self::Json => serde_json::to_writer(&mut *buffer, value).map_err(|error| error.to_string()),
            Self::MsgPack => value
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

    /// Decodes one value that fills `bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] naming the type and what was wrong where; also for nesting beyond [`MAX_DEPTH`] and for bytes left over.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T> {
        let decoded = match self {
            // serde_json follows at most 128 levels by itself.
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

    /// The MIME type of a payload in this encoding.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::MsgPack => "application/msgpack",
        }
    }

    /// The encoding that a MIME type names: any `json` or `+json`, and the spellings of MessagePack in use.
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        let subtype = essence.strip_prefix("application/").or_else(|| essence.strip_prefix("text/"))?;
        match subtype {
            "json" => Some(Self::Json),
            "msgpack" | "x-msgpack" | "vnd.msgpack" => Some(Self::MsgPack),
            subtype if subtype.ends_with("+json") => Some(Self::Json),
            subtype if subtype.ends_with("+msgpack") => Some(Self::MsgPack),
            _ => None,
        }
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
