//! Accepted bodies: one record or several, in every encoding that the original accepts, valid or broken.

use serde_json::{Value, json};

use crate::support::Served;

const A: &str = r#"{"service":"a","level":"INFO","message":"first \"one\"","metadata":{"k":1}}"#;
const B: &str = r#"{"service":"b","message":"second"}"#;

/// Returns the message, whether it was repaired, and the raw text of every stored record.
async fn taken(served: &Served) -> Vec<(String, bool, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let entries = served.at.entries().await;
    let entry = |entry: &Value| {
        (text(&entry["message"]).expect("text"), entry["repaired"] == true, text(&entry["raw"]))
    };
    entries.iter().map(entry).collect()
}

#[tokio::test]
async fn records_that_follow_one_another_are_each_taken_exactly() {
    for between in ["", "\n", "\r\n", ",", " , \n", "\u{1e}", "\n\n\n"] {
        let served = Served::new().await;
        let body = [A, between, B, between, A, "\n"].concat();
        assert_eq!(served.at.post(body.clone()).await.status(), 200, "{body}");
        let expected =
            ["first \"one\"", "second", "first \"one\""].map(|text| (text.to_owned(), false, None));
        assert_eq!(taken(&served).await, expected, "{body}");
    }
}

#[tokio::test]
async fn what_follows_a_record_and_is_none_is_kept_raw_beside_it() {
    let more = [
        "garbage",
        "}",
        "]",
        "\"quoted\"",
        " 17",
        "[1]",
        "{\"service\":\"x\"}",
        "null",
        "{",
        "\u{0}",
        "}{\"a\":",
        "<html>\"</html>",
    ];
    for more in more {
        let served = Served::new().await;
        let body = format!("{A}{more}");
        assert_eq!(served.at.post(body.clone()).await.status(), 200, "{body}");
        assert_eq!(taken(&served).await, [("first \"one\"".to_owned(), true, Some(body))]);
        let entry = served.at.entries().await.remove(0);
        assert_eq!(
            (&entry["service"], &entry["level"], &entry["metadata"]),
            (&json!("a"), &json!("INFO"), &json!({"k": 1}))
        );
        // Only the last of several records has the raw text.
        let served = Served::new().await;
        assert_eq!(served.at.post(format!("{B}\n{A}{more}")).await.status(), 200);
        let expected = [
            ("second".to_owned(), false, None),
            ("first \"one\"".to_owned(), true, Some(format!("{A}{more}"))),
        ];
        assert_eq!(taken(&served).await, expected);
    }
}

#[tokio::test]
async fn a_broken_record_behind_sound_ones_is_repaired_alone() {
    let served = Served::new().await;
    let broken = r#"{"service":"c","level":"WARN","message":"it said "no" twice","metadata":{"k":"v"}}"#;
    assert_eq!(served.at.post(format!("{A}\n{B}\n{broken}")).await.status(), 200);
    let expected = [
        ("first \"one\"".to_owned(), false, None),
        ("second".to_owned(), false, None),
        ("it said \"no\" twice".to_owned(), true, Some(broken.to_owned())),
    ];
    assert_eq!(taken(&served).await, expected);
    assert_eq!(served.at.entries().await[2]["metadata"], json!({"k": "v"}));
}

#[tokio::test]
async fn a_message_that_looks_like_the_end_of_its_record_is_repaired_whole() {
    let served = Served::new().await;
    let body = r#"{"service":"c","level":"INFO","message":"closing "}","metadata":{"k":"v"}}"#;
    let broken = r#"{"service":"c","level":"INFO","message":"x"}","metadata":{"k":"v"}}"#;
    for (body, message) in [(body, "closing \"}"), (broken, "x\"}")] {
        assert_eq!(served.at.post(body).await.status(), 200);
        let entry = served.at.json("/logs?limit=1").await["logs"][0].clone();
        assert_eq!((&entry["message"], &entry["raw"]), (&json!(message), &json!(body)));
        assert_eq!(entry["metadata"], json!({"k": "v"}));
    }
}

#[tokio::test]
async fn the_encodings_of_the_original_are_taken() {
    let served = Served::new().await;
    let body = r#"{"service":"s","message":"café 😀"}"#;
    let marked = format!("\u{feff}{body}");
    let wide = |text: &str| text.encode_utf16().collect::<Vec<u16>>();
    let bodies: [Vec<u8>; 9] = [
        body.into(),
        marked.clone().into(),
        wide(&marked).iter().flat_map(|unit| unit.to_le_bytes()).collect(),
        wide(&marked).iter().flat_map(|unit| unit.to_be_bytes()).collect(),
        wide(body).iter().flat_map(|unit| unit.to_le_bytes()).collect(),
        wide(body).iter().flat_map(|unit| unit.to_be_bytes()).collect(),
        marked.chars().flat_map(|sign| u32::from(sign).to_le_bytes()).collect(),
        marked.chars().flat_map(|sign| u32::from(sign).to_be_bytes()).collect(),
        body.chars().flat_map(|sign| u32::from(sign).to_be_bytes()).collect(),
    ];
    let count = bodies.len();
    for body in bodies {
        assert_eq!(served.at.post(body.clone()).await.status(), 200, "{body:?}");
    }
    assert_eq!(taken(&served).await, vec![("café 😀".to_owned(), false, None); count]);
}

#[tokio::test]
async fn bytes_without_a_meaning_do_not_undo_an_exact_reading() {
    let served = Served::new().await;
    let body = b"{\"service\":\"s\",\"message\":\"caf\xe9 said \\\"no\\\", \\\"metadata\\\":{\"}";
    assert_eq!(served.at.post(body.to_vec()).await.status(), 200);
    let raw = String::from_utf8_lossy(body).into_owned();
    assert_eq!(
        taken(&served).await,
        [("caf\u{fffd} said \"no\", \"metadata\":{".to_owned(), true, Some(raw))]
    );
}

#[tokio::test]
async fn pythons_numbers_that_are_no_json_become_text() {
    let served = Served::new().await;
    let body = r#"{"service":"s","message":"NaN \"Infinity\"","metadata":{"a":NaN,"b":[-Infinity, Infinity],"c":"NaN"}}"#;
    assert_eq!(served.at.post(body).await.status(), 200);
    assert_eq!(taken(&served).await, [("NaN \"Infinity\"".to_owned(), false, None)]);
    let entry = served.at.entries().await.remove(0);
    assert_eq!(entry["metadata"], json!({"a": "NaN", "b": ["-Infinity", "Infinity"], "c": "NaN"}));
}
