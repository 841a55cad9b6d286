//! The contents of a row and of an opened row.

use fantoccini::Locator;
use serde_json::json;

use super::Browser;
use crate::support::Served;

impl Browser {
    /// Sends keys to the focused element.
    async fn press(&self, keys: &str) {
        let focused = self.page.active_element().await.expect("something has the focus");
        focused.send_keys(keys).await.expect("typed");
    }

    /// Returns the fields of the opened row, in their order.
    async fn opened(&self) -> Vec<(String, String)> {
        let fields = "[...document.querySelectorAll('.detail tr')].map((r) => [r.cells[0].textContent, r.querySelector('.value').textContent])";
        serde_json::from_value(self.ask(fields).await).expect("pairs of texts")
    }
}

const TIMES: &str = "[...document.querySelectorAll('.row time')].map((t) => t.textContent)";

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_several_lines_shows_its_first_and_how_many_more() {
    let served = Served::new().await;
    let trace = "Traceback (most recent call last):\n  File \"/app/main.py\", line 7\n    1/0\nZeroDivisionError: division by zero\n";
    for message in ["one", trace, "\r\n\r\nlead\r\nrest", "two\nlines"] {
        served.at.log("a", "ERROR", message).await;
    }
    let browser = Browser::open(&served.at.url("/")).await;
    browser.messages(&["one", "Traceback (most recent call last):", "lead", "two"]).await;
    browser
        .sees(
            "[...document.querySelectorAll('.row')].map((r) => r.querySelector('.lines')?.textContent ?? '')",
            json!(["", "+3 lines", "+1 line", "+1 line"]),
        )
        .await;
    let heights =
        "new Set([...document.querySelectorAll('.row')].map((r) => r.getBoundingClientRect().height)).size";
    browser.sees(heights, 1).await;
    browser.click(".row:nth-of-type(2)").await;
    assert_eq!(browser.opened().await[0], ("message".into(), trace.into()));
    let lines = browser.ask("document.querySelector('.detail .value').getClientRects().length").await;
    assert!(lines.as_u64().is_some_and(|lines| lines >= 4), "every line is shown: {lines}");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn enter_opens_a_row_and_pauses_as_a_click_does() {
    let served = Served::new().await;
    served.at.log("a", "INFO", "read me").await;
    let browser = Browser::open(&served.at.url("/")).await;
    browser.messages(&["read me"]).await;
    browser.live().await;
    browser.press("k").await;
    browser.press("\u{e007}").await;
    browser.sees("document.querySelectorAll('.detail').length", 1).await;
    browser.sees("document.querySelector('#pause').getAttribute('aria-pressed')", "true").await;
    served.at.log("a", "INFO", "next").await;
    browser.sees("document.querySelector('#waiting').textContent", "1 new ↓").await;
    browser.messages(&["read me"]).await;
    browser.press("\u{e007}").await;
    browser.sees("document.querySelectorAll('.detail').length", 0).await;
    browser.press(" ").await;
    browser.messages(&["read me", "next"]).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_go_to_the_search_and_from_row_to_row() {
    let served = Served::new().await;
    for message in ["first", "second", "third"] {
        served.at.log("a", "INFO", message).await;
    }
    let browser = Browser::open(&served.at.url("/")).await;
    browser.messages(&["first", "second", "third"]).await;
    let focused =
        "document.activeElement.querySelector?.('.message')?.textContent ?? document.activeElement.id";
    // The first key press selects the last row; at either end the selection stays.
    for (key, row) in [("k", "third"), ("k", "second"), ("k", "first"), ("k", "first"), ("j", "second")] {
        browser.press(key).await;
        browser.sees(focused, row).await;
    }
    browser.press("/").await;
    browser.sees(focused, "text").await;
    // In the search box the keys are text.
    browser.press("j /").await;
    browser.sees("document.activeElement.value", "j /").await;
    browser.press("\u{e00c}").await;
    browser.sees("document.activeElement === document.body", true).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_tell_the_day_of_another_day_and_the_year_of_another_year() {
    let served = Served::new().await;
    let now = jiff::Timestamp::now();
    for (days, message) in [(800, "old"), (2, "recent"), (0, "today")] {
        let time = now - jiff::SignedDuration::from_hours(24 * days);
        let body = json!({"service": "a", "message": message, "timestamp": time.to_string()});
        assert_eq!(served.at.post(body.to_string()).await.status(), 200);
    }
    let browser = Browser::open(&served.at.url("/")).await;
    browser.messages(&["old", "recent", "today"]).await;
    let times: Vec<String> = serde_json::from_value(browser.ask(TIMES).await).expect("texts");
    let zoned = |days: i64| {
        (now - jiff::SignedDuration::from_hours(24 * days)).to_zoned(jiff::tz::TimeZone::system())
    };
    assert!(times[0].starts_with(&zoned(800).strftime("%Y-%m-%d ").to_string()), "{times:?}");
    assert!(
        times[1].contains(&zoned(2).strftime("%d").to_string()) && times[1].len() > times[2].len(),
        "{times:?}"
    );
    let whole = "[...document.querySelectorAll('.row time')].every((t) => t.scrollWidth <= t.clientWidth)";
    browser.sees(whole, true).await;
    // The day ends while the page is open.
    let tomorrow = "(() => { const real = Date; window.Date = class extends real { constructor(...given) { if (given.length === 0) super(real.now() + 86_400_000); else super(...given); } }; return true; })()";
    browser.ask(tomorrow).await;
    let dated =
        format!("({TIMES})[2].endsWith({}) && ({TIMES})[2].length > {}", json!(times[2]), times[2].len());
    browser.sees(&dated, true).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_from_the_future_stands_where_it_arrived() {
    let served = Served::new().await;
    let ahead = json!({"service": "a", "message": "ahead", "timestamp": "2199-01-01T00:00:00Z"});
    assert_eq!(served.at.post(ahead.to_string()).await.status(), 200);
    served.at.log("a", "INFO", "after").await;
    let browser = Browser::open(&served.at.url("/")).await;
    browser.messages(&["ahead", "after"]).await;
    let times: Vec<String> = serde_json::from_value(browser.ask(TIMES).await).expect("texts");
    assert!(!times[0].contains("2199"), "{times:?}");
    browser.click(".row").await;
    assert_eq!(browser.opened().await[1], ("time".into(), "2199-01-01T00:00:00Z".into()));
    browser.sees("document.querySelector('.detail .note').textContent.includes('ahead')", true).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_shown_as_they_were_sent() {
    let served = Served::new().await;
    let body = r#"{"service":"a","message":"m","level":50,"metadata":{"z":9007199254740993,"big":-18446744073709551617,"2":1.10,"1":1E2,"list":[9007199254740993,{"b":1,"a":[]}],"text":"a \"b\" {c}: [d],\n\\e","none":null}}"#;
    assert_eq!(served.at.post(body).await.status(), 200);
    // Once live, and once from a page of stored records.
    let browser = Browser::open(&served.at.url("/")).await;
    browser.messages(&["m"]).await;
    browser.live().await;
    assert_eq!(served.at.post(body).await.status(), 200);
    browser.messages(&["m", "m"]).await;
    browser
        .sees(
            "[...document.querySelectorAll('.row .level')].map((l) => l.textContent)",
            json!(["ERROR", "ERROR"]),
        )
        .await;
    for row in [1, 2] {
        browser.click(&format!(".row[data-seq]:nth-of-type({row})")).await;
        let fields = browser.opened().await;
        let at = fields.iter().position(|(name, _)| name == "z").expect("the attributes");
        let expected = [
            ("z", "9007199254740993"),
            ("big", "-18446744073709551617"),
            ("2", "1.10"),
            ("1", "1E2"),
            ("list", "[\n 9007199254740993,\n {\n  \"b\": 1,\n  \"a\": []\n }\n]"),
            ("text", "a \"b\" {c}: [d],\n\\e"),
            ("none", "null"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(fields[at..at + expected.len()], expected);
        assert!(fields.contains(&("level".into(), "50 (severity 17)".into())), "{fields:?}");
        let row = browser.page.find(Locator::Css(".row[aria-expanded=true]")).await.expect("the opened row");
        row.click().await.expect("closed");
    }
    browser.close().await;
}
