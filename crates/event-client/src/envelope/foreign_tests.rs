//! Tests with events of other producers: the cases of the conformance features and of the Python and JavaScript SDKs.

use serde_json::{Value, json};

use super::*;
use crate::message::MessageId;
use crate::subject::Subject;

const VALID: &str = r#""specversion":"1.0","id":"1","source":"/others","type":"orders.placed.v1""#;

fn message(content_type: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Message {
    let mut message = Message::new(Subject::new("orders.placed.v1").unwrap(), content_type, body);
    for (name, value) in headers {
        message.headers.set(name, value).unwrap();
    }
    message
}

/// A structured event with these members in addition to the required ones.
fn structured(members: &str) -> Result<Envelope> {
    let comma = if members.is_empty() { "" } else { "," };
    Envelope::read(&message(STRUCTURED_JSON, &[], format!("{{{VALID}{comma}{members}}}")))
}

/// A binary event with these headers in addition to the required ones.
fn binary(content_type: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Envelope> {
    let required = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/others"),
        ("ce-type", "orders.placed.v1"),
    ];
    Envelope::read(&message(content_type, &[&required[..], headers].concat(), body))
}

fn extension<'a>(envelope: &'a Envelope, name: &str) -> Option<&'a str> {
    envelope.meta.extensions.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
}

#[test]
fn both_modes_of_the_conformance_features_are_read() {
    let want = json!({"message": "Hello World!"});
    for content_type in ["application/json", "application/json; charset=utf-8"] {
        let read = binary(content_type, &[("ce-time", "2018-04-05T03:56:24Z")], want.to_string()).unwrap();
        assert_eq!(read.meta.time.unwrap().to_string(), "2018-04-05T03:56:24Z");
        assert_eq!(read.meta.datacontenttype.as_deref(), Some(content_type));
        assert_eq!(read.decode::<Value>().unwrap(), want);
    }
    for content_type in [
        "application/cloudevents+json",
        "application/cloudevents+json; charset=utf-8",
        "Application/CloudEvents+JSON;charset=UTF-8",
        " APPLICATION/CLOUDEVENTS+JSON ; a=b",
        "application/cloudevents",
        "",
    ] {
        let body = format!(r#" {{{VALID},"datacontenttype":"application/json","data":{want}}}"#);
        let read = Envelope::read(&message(content_type, &[], body)).unwrap();
        assert_eq!((read.meta.id.to_string().as_str(), read.meta.source.as_str()), ("1", "/others"));
        assert_eq!(read.decode::<Value>().unwrap(), want, "{content_type}");
    }
}

#[test]
fn formats_that_are_not_read_are_named() {
    for content_type in ["application/cloudevents-batch+json", "application/cloudevents+avro"] {
        let error = Envelope::read(&message(content_type, &[], "[]")).unwrap_err();
        assert!(error.to_string().contains(content_type), "{error}");
    }
}

#[test]
fn data_of_another_content_type_is_that_content() {
    for (members, data, text) in [
        (r#""datacontenttype":"text/plain","data":"hi""#, "hi", json!("hi")),
        (
            r#""datacontenttype":"Text/Plain; charset=utf-8","data":"\"hi\" \u00e4\n""#,
            "\"hi\" ä\n",
            json!("\"hi\" ä\n"),
        ),
        (r#""datacontenttype":"application/xml","data":"<a/>""#, "<a/>", json!("<a/>")),
        (r#""datacontenttype":"text/plain","data_base64":"aGk=""#, "hi", json!("hi")),
        (r#""datacontenttype":"application/json","data":"hi""#, "\"hi\"", json!("hi")),
        (r#""data":"hi""#, "\"hi\"", json!("hi")),
        (r#""datacontenttype":"text/xml","data":{"a":1}"#, "{\"a\":1}", json!({"a": 1})),
        (r#""datacontenttype":"application/vnd.acme+json;v=1","data":[1]"#, "[1]", json!([1])),
    ] {
        let read = structured(members).unwrap();
        assert_eq!(read.data(), data, "{members}");
        assert_eq!(read.decode::<Value>().unwrap(), text, "{members}");
    }
    assert!(structured(r#""datacontenttype":"text/plain","data":"7""#).unwrap().decode::<u8>().is_err());
}

#[test]
fn data_may_come_in_two_members_of_which_one_is_null() {
    for members in [
        r#""data":{"a":1},"data_base64":null"#,
        r#""data_base64":"eyJhIjoxfQ==","data":null"#,
        r#""data_base64":"eyJhIjoxfQ""#,
    ] {
        assert_eq!(structured(members).unwrap().decode::<Value>().unwrap(), json!({"a": 1}), "{members}");
    }
    for members in ["", r#""data":null"#, r#""data_base64":null"#, r#""data":null,"data_base64":null"#] {
        assert_eq!(structured(members).unwrap().decode::<Option<u8>>().unwrap(), None, "{members}");
    }
    for members in [r#""data":1,"data_base64":"AA==""#, r#""data_base64":7"#, r#""data_base64":"?""#] {
        assert!(structured(members).is_err(), "{members}");
    }
}

#[test]
fn a_binary_event_without_content_type_is_json() {
    let read = binary("", &[], "{\"a\":1}").unwrap();
    assert_eq!(
        (read.decode::<Value>().unwrap(), read.meta.datacontenttype.as_deref()),
        (json!({"a": 1}), None)
    );
    assert_eq!(
        binary("", &[], vec![0x81, 0xa1, b'a', 1]).unwrap().decode::<Value>().unwrap(),
        json!({"a": 1})
    );
    let attribute = [("ce-datacontenttype", "application/msgpack")];
    assert_eq!(binary("", &attribute, vec![7]).unwrap().decode::<u8>().unwrap(), 7);
}

#[test]
fn an_empty_body_is_no_data() {
    for content_type in ["", "application/json", "application/msgpack"] {
        let read = binary(content_type, &[], "").unwrap();
        assert_eq!(read.decode::<Option<u8>>().unwrap(), None, "{content_type}");
        assert_eq!(read.json().unwrap().get(), "null");
    }
    assert_eq!(binary("text/plain", &[], "").unwrap().decode::<String>().unwrap(), "");
}

#[test]
fn times_are_rounded_and_cost_no_event() {
    let read = structured(
        r#""time":"2026-01-02T03:04:05.1234567899+01:00","expirytime":"9999-12-31T23:59:59.999999999999Z""#,
    )
    .unwrap();
    assert_eq!(read.meta.time.unwrap().to_string(), "2026-01-02T02:04:05.123456789Z");
    assert_eq!(read.meta.expirytime, Some(Timestamp::MAX));
}

#[test]
fn numbers_keep_their_digits() {
    let read = structured(r#""big":340282366920938463463374607431768211456,"score":1.50,"e":-1E400,"yes":true,"data":{"n": 18446744073709551616, "x":1.10}"#)
        .unwrap();
    for (name, value) in [
        ("big", "340282366920938463463374607431768211456"),
        ("score", "1.50"),
        ("e", "-1E400"),
        ("yes", "true"),
    ] {
        assert_eq!(extension(&read, name), Some(value));
    }
    #[derive(serde::Deserialize)]
    struct Data {
        n: u128,
    }
    assert_eq!(read.decode::<Data>().unwrap().n, 1 << 64);
    assert_eq!(read.json().unwrap().get(), r#"{"n":18446744073709551616,"x":1.10}"#);
}

#[test]
fn every_messagepack_value_of_an_extension_is_text() {
    let mut body = vec![0x80 | 10];
    let text = |body: &mut Vec<u8>, text: &str| rmp::encode::write_str(body, text).unwrap();
    for (name, value) in [("specversion", "1.0"), ("id", "1"), ("source", "/x"), ("type", "t")] {
        text(&mut body, name);
        text(&mut body, value);
    }
    text(&mut body, "large");
    rmp::encode::write_uint(&mut body, u64::MAX).unwrap();
    text(&mut body, "small");
    rmp::encode::write_sint(&mut body, i64::MIN).unwrap();
    text(&mut body, "single");
    rmp::encode::write_f32(&mut body, 0.1).unwrap();
    text(&mut body, "double");
    rmp::encode::write_f64(&mut body, 0.1).unwrap();
    text(&mut body, "no");
    rmp::encode::write_bool(&mut body, false).unwrap();
    text(&mut body, "data");
    body.extend_from_slice(&[0x83, 7, 0xc4, 2, 1, 2, 0xa1, b'n', 0xcb]);
    body.extend_from_slice(&f64::NAN.to_be_bytes());
    body.extend_from_slice(&[0xa1, b'e', 0xd4, 5, 9]);
    for content_type in
        [STRUCTURED_MSGPACK, "Application/CloudEvents+MsgPack", "application/cloudevents+x-msgpack", ""]
    {
        let read = Envelope::read(&message(content_type, &[], body.clone())).unwrap();
        for (name, value) in [
            ("large", "18446744073709551615"),
            ("small", "-9223372036854775808"),
            ("single", "0.1"),
            ("double", "0.1"),
            ("no", "false"),
        ] {
            assert_eq!(extension(&read, name), Some(value), "{content_type}");
        }
        assert_eq!(read.json().unwrap().get(), r#"{"7":"AQI=","n":null,"e":"CQ=="}"#);
    }
}

#[test]
fn quoted_and_escaped_header_values_are_read() {
    for (value, source) in [
        ("/a%20b", "/a b"),
        ("\"/a b\"", "/a b"),
        ("\"/a%20\\\"b\\\\c\"", "/a \"b\\c"),
        ("%2Fothers%2F%C3%A4", "/others/ä"),
        ("100%", "100%"),
    ] {
        let headers = [("ce-source", value)];
        assert_eq!(binary("", &headers, "1").unwrap().meta.source, source, "{value}");
    }
    assert_eq!(
        binary("", &[("ce-time", "2018-04-05T03%3A56%3A24Z")], "1")
            .unwrap()
            .meta
            .time
            .map(|at| at.as_second()),
        Some(1_522_900_584)
    );
    assert!(binary("", &[("ce-source", "%FF")], "1").is_err());
}

#[test]
fn a_binary_event_s_trace_is_read_from_either_header() {
    let (hop, own) = (
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000001-0000000000000001-00",
    );
    let trace = |headers: &[(&str, &str)]| {
        let meta = binary("", headers, "1").unwrap().meta;
        (meta.traceparent.map(|trace| trace.to_string()), meta.tracestate)
    };
    assert_eq!(
        trace(&[("ce-traceparent", own), ("ce-tracestate", "a=1")]),
        (Some(own.into()), Some("a=1".into()))
    );
    assert_eq!(trace(&[("traceparent", hop), ("ce-traceparent", own)]).0.as_deref(), Some(hop));
    assert_eq!(trace(&[("ce-traceparent", own), ("traceparent", "damaged")]).0.as_deref(), Some(own));
    assert_eq!(trace(&[("traceparent", hop), ("tracestate", "größe")]), (Some(hop.into()), None));
    let mut meta = Meta::new(MessageId::now(), "/ours", "t");
    meta.caused_by(None);
    meta.tracestate = Some("a=1, b=\"2\"".into());
    let (_, headers, _) = write(&mut meta, &1, Codec::Json, Mode::Binary).unwrap();
    assert_eq!(headers.get("traceparent"), headers.get("ce-traceparent"));
    assert_eq!(headers.get("tracestate"), Some("a=1, b=\"2\""));
    assert_eq!(headers.get("ce-tracestate"), Some("a=1,%20b=%222%22"));
}

#[test]
fn invalid_events_are_refused() {
    let object = |members: &str| Envelope::read(&message(STRUCTURED_JSON, &[], format!("{{{members}}}")));
    for members in [
        r#""specversion":"1.0","id":7,"source":"s","type":"t""#,
        r#""specversion":"1.0","id":"1","source":true,"type":"t""#,
        r#""specversion":"1.0","id":"1","source":"s","type":1.5"#,
        r#""specversion":1.0,"id":"1","source":"s","type":"t""#,
        r#""specversion":null,"id":"1","source":"s","type":"t""#,
        r#""specversion":"1.0","id":"","source":"s","type":"t""#,
        r#""specversion":"1.0","id":"1","source":"","type":"t""#,
        r#""specversion":"1.0","id":"1","source":"s","type":"""#,
        r#""specversion":"1.0","id":null,"source":"s","type":"t""#,
        r#""specversion":"0.3","id":"1","source":"s","type":"t""#,
    ] {
        assert!(object(members).is_err(), "{members}");
    }
    for members in [
        r#""subject":"""#,
        r#""subject":7"#,
        r#""datacontenttype":"""#,
        r#""datacontenttype":7"#,
        r#""dataschema":"""#,
        r#""time":"""#,
        r#""time":7"#,
        r#""time":"2018-02-30T00:00:00Z""#,
        r#""time":"2018-04-05T25:00:00Z""#,
        r#""time":"2018-04-05T17:31:00""#,
        r#""time":"2018-04-05""#,
        r#""expirytime":"tomorrow""#,
        r#""Tenant":"a""#,
        r#""my.tenant":"a""#,
        r#""my_tenant":"a""#,
        r#""my-tenant":"a""#,
        r#""größe":"a""#,
        r#""":"a""#,
        r#""tenant":{}"#,
        r#""tenant":["a"]"#,
    ] {
        assert!(structured(members).is_err(), "{members}");
    }
    for headers in [
        &[("ce-subject", "")][..],
        &[("ce-my-tenant", "a")],
        &[("ce-my_tenant", "a")],
        &[("ce-data", "a")],
        &[("ce-specversion", "2.0")],
        &[("ce-time", "noon")],
    ] {
        assert!(binary("", headers, "1").is_err(), "{headers:?}");
    }
    let unversioned = [("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];
    let error = Envelope::read(&message("", &unversioned, "1")).unwrap_err();
    assert!(error.to_string().contains("specversion"), "{error}");
}

#[test]
fn null_is_absent_and_the_last_of_two_values_counts() {
    let read =
        structured(r#""subject":null,"time":null,"dataschema":null,"tenant":"a","tenant":"b""#).unwrap();
    assert_eq!((read.meta.subject.as_ref(), read.meta.time), (None, None));
    assert_eq!(read.meta.extensions, [("tenant".into(), "b".into())]);
}

#[test]
fn what_is_not_read_is_not_written() {
    let write = |change: &dyn Fn(&mut Meta)| {
        let mut meta = Meta::new(MessageId::now(), "/ours", "t");
        change(&mut meta);
        for mode in [Mode::Structured, Mode::Binary] {
            for codec in [Codec::Json, Codec::MsgPack] {
                let error = write(&mut meta.clone(), &1, codec, mode).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Encode, "{error}");
            }
        }
    };
    let extension =
        |name: &'static str| move |meta: &mut Meta| meta.extensions.push((name.into(), "a".into()));
    write(&|meta| meta.id = "".into());
    write(&|meta| meta.source = "".into());
    write(&|meta| meta.event_type = "".into());
    write(&|meta| meta.subject = Some("".into()));
    write(&|meta| meta.dataschema = Some("".into()));
    write(&|meta| meta.datacontenttype = Some("".into()));
    write(&|meta| meta.time = Some(Timestamp::MIN));
    write(&|meta| {
        (0..65).for_each(|n| meta.extensions.push((smol_str::format_smolstr!("n{n}"), "a".into())))
    });
    for name in ["", "Tenant", "my-tenant", "my.tenant", "data", "id", "time"] {
        write(&extension(name));
    }
}

#[test]
fn what_the_sdks_write_is_read() {
    // A time with an offset, percent-encoded as a whole, as the Python SDK writes headers.
    let read = binary(
        "application/json",
        &[
            ("ce-source", "%2Forders"),
            ("ce-time", "2026-11-30T12%3A00%3A00%2B01%3A00"),
            ("ce-tenant", "a%20b"),
        ],
        "{\"a\": 1}",
    )
    .unwrap();
    assert_eq!((read.meta.source.as_str(), extension(&read, "tenant")), ("/orders", Some("a b")));
    assert_eq!(read.meta.time.unwrap().to_string(), "2026-11-30T11:00:00Z");
    // `data_base64` for bytes, members in their order of insertion, a time in milliseconds, as the JavaScript SDK does.
    let read = structured(
        r#""time":"2026-11-30T12:00:00.000Z","datacontenttype":"application/octet-stream","data_base64":"AP8=""#,
    )
    .unwrap();
    assert_eq!((&read.data()[..], read.codec()), (&[0, 0xff][..], None));
    assert!(read.json().is_none());
}

proptest::proptest! {
    #[test]
    fn any_data_is_shown_or_not(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        for codec in [Some(Codec::Json), Some(Codec::MsgPack), None] {
            if let Some(shown) = text::json(&bytes, codec) {
                serde_json::from_str::<serde::de::IgnoredAny>(shown.get()).unwrap();
            }
        }
    }

    #[test]
    fn compact_json_is_the_same_value(text in ".*", number: f64) {
        let value = json!({"text \\\" \t": text, "list": [number, null, {"a": {}}]});
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        let shown = text::json(pretty.as_bytes(), Some(Codec::Json)).unwrap();
        proptest::prop_assert_eq!(shown.get(), value.to_string());
    }
}
