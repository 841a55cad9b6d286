//! Cases for a message's content: every part is delivered as it was published.

use bytes::Bytes;
use event_client::message::{Message, MessageId};

use crate::case::cases;
use crate::exam::Exam;
use crate::message::{group, keyed, message, on, subject};

cases! {
    headers_come_back_in_order_with_utf8_values;
    header_names_are_found_in_any_case;
    many_headers_come_back;
    payload_bytes_are_untouched;
    ids_keys_and_content_types_come_back;
    long_subjects_travel;
}

/// Publishes a message and receives it again.
async fn round_trip(exam: &Exam, sent: Message) {
    let subscription = exam.subscribe(group("g", 1)).await;
    exam.publish(sent.clone()).await;
    let delivery = exam.next(&subscription).await;
    assert_eq!(**delivery.message(), sent);
    assert_eq!(delivery.message().payload, sent.payload);
    exam.ack(delivery).await;
}

/// UTF-8 values, empty ones, and values that look like syntax.
async fn headers_come_back_in_order_with_utf8_values(exam: Exam) {
    let mut sent = message("x");
    for (name, value) in [
        ("zeta", "first"),
        ("greeting", "größe 東京 🚀"),
        ("empty", ""),
        ("quoted", "a=\"b\"; c, d %20 %"),
        ("spaces", "  around  "),
        ("alpha", "last"),
    ] {
        sent.headers.set(name, value).expect("a valid header");
    }
    round_trip(&exam, sent).await;
}

/// A header is found regardless of the case of its name.
async fn header_names_are_found_in_any_case(exam: Exam) {
    let subscription = exam.subscribe(group("g", 1)).await;
    let mut sent = message("x");
    sent.headers.set("Tenant-Id", "a").expect("a valid header");
    exam.publish(sent).await;
    let delivery = exam.next(&subscription).await;
    for name in ["tenant-id", "Tenant-Id", "TENANT-ID"] {
        assert_eq!(delivery.message().headers.get(name), Some("a"), "{name}");
    }
    assert_eq!(delivery.message().headers.len(), 1);
}

/// The number of headers has no fixed limit.
async fn many_headers_come_back(exam: Exam) {
    let mut sent = message("x");
    for n in 0..40 {
        sent.headers.set(&format!("header-{n}"), &"v".repeat(n)).expect("a valid header");
    }
    round_trip(&exam, sent).await;
}

/// A transport interprets no byte of a payload.
async fn payload_bytes_are_untouched(exam: Exam) {
    let every_byte: Vec<u8> = (0..=255).collect();
    for payload in [Vec::new(), vec![0], every_byte.repeat(40), b"\r\n\r\n\0'\";--".to_vec()] {
        let mut sent = message("");
        sent.payload = Bytes::from(payload);
        round_trip(&exam, sent).await;
    }
}

/// Identity, key and content type are kept as text.
async fn ids_keys_and_content_types_come_back(exam: Exam) {
    for (id, key, content_type) in [
        ("018f3c5e-7b1a-7000-8000-000000000001", "k", "application/cloudevents+json"),
        ("018F3C5E-7B1A-7000-8000-000000000001", "Ключ 東", "application/msgpack; charset=utf-8"),
        ("order/17:α", "with space, and comma", ""),
    ] {
        let mut sent = keyed(key, "x");
        sent.id = MessageId::from(id);
        sent.content_type = content_type.into();
        round_trip(&exam, sent).await;
    }
}

/// Subjects up to the maximum length are delivered.
async fn long_subjects_travel(exam: Exam) {
    let long = format!("orders.{}", "x".repeat(193));
    assert_eq!(subject(&long).as_str().len(), 200);
    round_trip(&exam, on(&long, "x")).await;
    round_trip(&exam, on("orders.a.b.c.d.e.f.g", "x")).await;
}
