//! Tests of round trips in every mode and codec, of other producers' spellings, and of bytes that are not envelopes.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::message::MessageId;
use crate::subject::Subject;

fn message(mode: Mode, codec: Codec, meta: &mut Meta, data: &Value) -> Message {
    let (content_type, headers, payload) = write(meta, data, codec, mode).unwrap();
    Message { headers, ..Message::new(Subject::new("orders.placed.v1").unwrap(), content_type, payload) }
}

fn read_json(body: &str) -> Result<Envelope> {
    let subject = Subject::new("orders.placed.v1").unwrap();
    Envelope::read(&Message::new(subject, "application/cloudevents+json; charset=utf-8", body.to_owned()))
}

#[test]
fn every_mode_and_codec_comes_back() {
    for mode in [Mode::Structured, Mode::Binary] {
        for codec in [Codec::Json, Codec::MsgPack] {
            let mut meta = Meta::new(MessageId::now(), "/shop/\"quoted\"", "orders.placed.v1");
            meta.caused_by(None);
            meta.subject = Some("order 7 ä".into());
            meta.partitionkey = Some("7".into());
            meta.dataschema = Some("https://example.org/orders".into());
            meta.causationid = Some("A-7".into());
            meta.tracestate = Some("vendor=1".into());
            meta.expirytime = Some(Timestamp::from_second(1_700_000_000).unwrap());
            meta.extensions.push(("tenant".into(), "acme".into()));
            let data = json!({"order_id": 7, "nested": {"list": [1, 2.5, null, "x"]}});
            let read = Envelope::read(&message(mode, codec, &mut meta, &data)).unwrap();
            assert_eq!(read.meta, meta, "{mode:?} {codec:?}");
            assert_eq!(read.decode::<Value>().unwrap(), data);
            assert_eq!(read.codec(), Some(codec));
        }
    }
}

#[test]
fn an_event_from_another_producer() {
    let read = read_json(
        r#"{"data": {"a": 1}, "specversion": "1.0", "id": "A-1", "source": "/py", "type": "orders.placed.v1",
            "count": 5, "flag": true, "subject": null, "escaped\u0061": "x\"y"}"#,
    )
    .unwrap();
    assert_eq!(read.data().as_ref(), br#"{"a": 1}"#);
    assert_eq!(read.meta.id.to_string(), "A-1");
    assert_eq!(read.meta.subject, None);
    let want = [("count", "5"), ("flag", "true"), ("escapeda", "x\"y")].map(|(k, v)| (k.into(), v.into()));
    assert_eq!(read.meta.extensions, want);
    let read = read_json(
        r#"{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":"application/msgpack","data_base64":"gaFhAQ=="}"#,
    )
    .unwrap();
    assert_eq!(read.decode::<Value>().unwrap(), json!({"a": 1}));
}

#[test]
fn malformed_envelopes_say_what_is_wrong() {
    for (body, says) in [
        ("", "not a structured JSON event"),
        ("[]", "CloudEvents attributes"),
        (r#"{"id":"1","source":"s","type":"t"}"#, "specversion"),
        (r#"{"specversion":"0.3","id":"1","source":"s","type":"t"}"#, "must be 1.0"),
        (r#"{"specversion":"1.0","source":"s","type":"t"}"#, "no `id`"),
        (r#"{"specversion":"1.0","id":"1","source":"s"}"#, "no `type`"),
        (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","time":"noon"}"#, "RFC 3339"),
        (r#"{"specversion":"1.0","id":"1","source":{},"type":"t"}"#, "`source`"),
        (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":1,"data_base64":"AA=="}"#, "once"),
    ] {
        let error = read_json(body).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Decode);
        assert!(error.to_string().contains(says), "{body}: {error}");
    }
    let wrong = Message::new(Subject::new("a").unwrap(), "text/plain", "hello");
    assert!(Envelope::read(&wrong).unwrap_err().to_string().contains("no `id`"));
}

#[test]
fn context_passes_on_flow_and_cause() {
    let mut first = Meta::new(MessageId::now(), "/a", "orders.placed.v1");
    first.caused_by(None);
    let context = first.context();
    let mut second = Meta::new(MessageId::now(), "/b", "orders.paid.v1");
    second.caused_by(Some(&context));
    assert_eq!(second.correlationid.as_ref(), Some(&first.id));
    assert_eq!(second.causationid.as_ref(), Some(&first.id));
    assert_eq!(second.traceparent.unwrap().trace_id, first.traceparent.unwrap().trace_id);
}

proptest! {
    #[test]
    fn any_bytes_read_or_fail_cleanly(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for content_type in [STRUCTURED_JSON, STRUCTURED_MSGPACK, "application/json"] {
            let subject = Subject::new("a.b").unwrap();
            let _ = Envelope::read(&Message::new(subject, content_type, bytes.clone()));
        }
    }

    #[test]
    fn damaged_envelopes_read_or_fail_cleanly(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for codec in [Codec::Json, Codec::MsgPack] {
            let mut meta = Meta::new(MessageId::now(), "/s", "a.b");
            let mut message = message(Mode::Structured, codec, &mut meta, &json!({"a": [1, {"b": "c"}]}));
            let mut body = message.payload.to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            message.payload = body.into();
            if let Ok(envelope) = Envelope::read(&message) {
                let _ = envelope.decode::<Value>();
            }
        }
    }
}
