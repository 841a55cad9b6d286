//! The durability of a confirmed publish, read from the stream's configuration, which may differ from the URL's
//! options.

use serde_json::Value;

use super::config::{Config, Storage};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::Durability;

/// Stream setting since 2.12: `async` confirms before the write, whatever the server's `sync_interval` is.
pub(super) const PERSIST_MODE: &str = "persist_mode";
/// Value of `persist_mode` without durability.
pub(super) const ASYNC: &str = "async";

/// Returns the durability that the URL promises. Clients cannot read how often the server syncs, so `sync=always` is
/// a statement of the operator.
pub(super) fn promised(config: &Config) -> Durability {
    match config.streams.storage {
        Storage::Memory => Durability::Default,
        Storage::File if config.streams.sync_always => Durability::Fsync,
        Storage::File => Durability::PageCache,
    }
}

/// Returns the reason why a stream with this configuration confirms messages without keeping them, or `None`.
pub(super) fn flaw(stream: &Value) -> Option<&'static str> {
    let is = |setting: &str, value: &str| stream.get(setting).and_then(Value::as_str) == Some(value);
    if is("storage", Storage::Memory.as_str()) {
        return Some("it is kept in memory, and all of it is lost when the server stops");
    }
    is(PERSIST_MODE, ASYNC)
        .then_some("its `persist_mode` is `async`, which confirms before the message is written")
}

/// Refuses a stream with less durability than the URL promises, for every value of `provision`.
pub(super) fn keeps_promise(config: &Config, name: &str, stream: &Value) -> Result<()> {
    match flaw(stream) {
        Some(flaw) if promised(config) > Durability::Default => {
            let text = format!("the stream lacks the durability promised to publishers: {flaw}; recreate it");
            Err(Error::new(ErrorKind::Unsupported, text).with("stream", name))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_is_what_url_and_stream_give_together() {
        let promise = |url: &str| promised(&Config::read(url.parse().unwrap()).unwrap());
        assert_eq!(promise("nats://a"), Durability::PageCache);
        assert_eq!(promise("nats://a?sync=always"), Durability::Fsync);
        assert_eq!(promise("nats://a?storage=memory"), Durability::Default);
        for (stream, word) in [
            (serde_json::json!({"storage": "memory"}), Some("memory")),
            (serde_json::json!({"storage": "file", "persist_mode": "async"}), Some("async")),
            (serde_json::json!({"storage": "file", "persist_mode": "default"}), None),
            (serde_json::json!({"storage": "file"}), None),
        ] {
            assert_eq!(flaw(&stream).is_some(), word.is_some(), "{stream}");
            assert!(flaw(&stream).unwrap_or_default().contains(word.unwrap_or_default()), "{stream}");
        }
    }
}
