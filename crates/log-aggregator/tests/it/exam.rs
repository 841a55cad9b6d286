//! Tests every guarantee of a log store, one case each. `examine!(name, open)` runs them on a store; `open` creates
//! or reopens the store in a directory.

use std::path::Path;
use std::sync::Arc;

use event_client::log::{Attributes, LogRecord, Severity};
use jiff::{Timestamp, ToSpan};
use log_aggregator::store::{
    Cursor, Filter, LogStore, Order, Query, RecordBatch, SqliteOptions, SqliteStore, Stored,
};
use uuid::Uuid;

async fn sqlite(dir: &Path) -> Arc<dyn LogStore> {
    let options = SqliteOptions { dir: dir.to_owned(), max_day_bytes: None };
    Arc::new(SqliteStore::open(options).await.expect("the store opens"))
}

macro_rules! examine {
    ($store:ident: $($case:ident)*) => {
        mod $store {
            $(#[tokio::test]
            async fn $case() {
                let dir = tempfile::tempdir().expect("a directory");
                super::$case(dir.path(), |dir| Box::pin(async move { super::$store(&dir).await })).await;
            })*
        }
    };
}

examine!(sqlite:
    what_is_appended_comes_back_whole
    the_order_of_arrival_is_kept_and_numbered
    a_reopened_store_has_everything_and_numbers_on
    a_delivery_that_comes_twice_is_kept_once
    the_latest_come_first_whatever_their_arrival
    cursors_walk_the_whole_without_gap_or_double
    a_clock_that_is_ahead_does_not_hold_the_first_place
    times_at_the_ends_of_the_calendar_are_kept
    attributes_keep_their_order_and_their_digits
    every_condition_is_met_as_the_live_filter_meets_it
    words_are_found_in_values_whatever_their_case
    an_answer_ends_at_its_bytes_and_says_so
    clearing_one_service_leaves_the_others
    clearing_all_leaves_nothing
    counts_are_by_service
    a_closed_store_says_so
    strange_text_is_only_text
);

type Open = fn(std::path::PathBuf) -> futures_util::future::BoxFuture<'static, Arc<dyn LogStore>>;

fn record(service: &str, level: &str, message: &str) -> LogRecord {
    LogRecord::new(service, level, message)
}

async fn keep(store: &Arc<dyn LogStore>, records: Vec<LogRecord>) -> Vec<Stored> {
    store.append(vec![RecordBatch { delivery: None, records }]).await.expect("they are kept")
}

async fn select(store: &Arc<dyn LogStore>, order: Order, filter: Filter) -> Vec<Stored> {
    let query = Query { filter, order, limit: 1_000_000, ..Query::default() };
    store.select(query).await.expect("an answer").records
}

async fn all(store: &Arc<dyn LogStore>) -> Vec<Stored> {
    select(store, Order::Oldest, Filter::default()).await
}

fn messages(found: &[Stored]) -> Vec<&str> {
    found.iter().map(|stored| stored.record.message.as_str()).collect()
}

async fn what_is_appended_comes_back_whole(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let mut full = record("s", "Warning", "m");
    full.attributes =
        serde_json::from_str(r#"{"f":0.0047795772552490234,"n":[1,null,{"a":true}]}"#).expect("JSON");
    full.trace_id = Some("t".into());
    full.span_id = Some("sp".into());
    full.request_id = Some("r".into());
    full.correlation_id = Some("c".into());
    full.raw = Some("{broken".into());
    let kept = keep(&store, vec![full.clone()]).await;
    assert_eq!(all(&store).await, kept);
    full.arrived = kept[0].record.arrived;
    assert!(full.arrived.is_some());
    assert_eq!(kept[0].record, full);
}

async fn the_order_of_arrival_is_kept_and_numbered(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let names: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    for chunk in names.chunks(77) {
        keep(&store, chunk.iter().map(|name| record("s", "INFO", name)).collect()).await;
    }
    let found = all(&store).await;
    assert_eq!(messages(&found), names.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(found.is_sorted_by(|a, b| a.seq < b.seq));
    let mut newest = select(&store, Order::Newest, Filter::default()).await;
    newest.reverse();
    assert_eq!(newest, found);
}

async fn a_reopened_store_has_everything_and_numbers_on(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let kept = keep(&store, vec![record("s", "INFO", "before")]).await;
    store.close().await;
    drop(store);
    let store = open(dir.to_owned()).await;
    assert_eq!(store.counts().await.expect("counts")["s"], 1);
    assert_eq!(all(&store).await, kept);
    let more = keep(&store, vec![record("s", "INFO", "after")]).await;
    assert!(more[0].seq > kept[0].seq);
}

async fn a_delivery_that_comes_twice_is_kept_once(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let group = RecordBatch { delivery: Some(Uuid::now_v7()), records: vec![record("s", "INFO", "once")] };
    assert_eq!(store.append(vec![group.clone()]).await.expect("kept").len(), 1);
    assert_eq!(store.append(vec![group.clone(), group.clone()]).await.expect("fine").len(), 0);
    drop(store);
    let store = open(dir.to_owned()).await;
    assert_eq!(store.append(vec![group]).await.expect("fine").len(), 0);
    assert_eq!(all(&store).await.len(), 1);
    assert_eq!(store.counts().await.expect("counts")["s"], 1);
}

async fn the_latest_come_first_whatever_their_arrival(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let now = Timestamp::now();
    let at = |name: &str, hours: i64| LogRecord { time: now - hours.hours(), ..record("s", "INFO", name) };
    keep(&store, vec![at("old", 100), at("new", 0)]).await;
    keep(&store, vec![at("middle", 50)]).await;
    let found = select(&store, Order::Latest, Filter::default()).await;
    assert_eq!(messages(&found), ["new", "middle", "old"]);
    let range = Filter { since: Some(now - 60.hours()), until: Some(now), ..Filter::default() };
    assert_eq!(messages(&select(&store, Order::Latest, range).await), ["middle"]);
}

async fn cursors_walk_the_whole_without_gap_or_double(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let time = Timestamp::now();
    // Many records have the same time: the cursor has to distinguish them.
    let records =
        (0..50).map(|n| LogRecord { time: time + (n / 7).seconds(), ..record("s", "INFO", &n.to_string()) });
    keep(&store, records.collect()).await;
    for order in [Order::Latest, Order::Newest, Order::Oldest] {
        let whole = select(&store, order, Filter::default()).await;
        let mut walked = Vec::new();
        let mut after = None;
        loop {
            let page = store
                .select(Query { order, after, limit: 8, ..Query::default() })
                .await
                .expect("a page")
                .records;
            let Some(last) = page.last() else { break };
            after = Some(Cursor { time: last.place(), seq: last.seq });
            walked.extend(page);
        }
        assert_eq!(walked, whole, "{order:?}");
        let skipped =
            store.select(Query { order, skip: 45, limit: 100, ..Query::default() }).await.expect("a page");
        assert_eq!(skipped.records, whole[45..], "{order:?}");
    }
}

async fn a_clock_that_is_ahead_does_not_hold_the_first_place(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let ahead: Timestamp = "2199-01-01T00:00:00.123456789Z".parse().expect("a time");
    let (early, late) = (Timestamp::now(), Timestamp::now() + 1.hour());
    let wrong = LogRecord { time: ahead, ..record("s", "INFO", "ahead") };
    let kept = keep(&store, vec![wrong.clone(), record("s", "INFO", "with it")]).await;
    keep(&store, vec![record("s", "INFO", "after it")]).await;
    drop(store);
    let store = open(dir.to_owned()).await;
    let found = select(&store, Order::Latest, Filter::default()).await;
    assert_eq!(messages(&found), ["after it", "ahead", "with it"]);
    assert_eq!(found[1], kept[0], "both its times are kept");
    assert_eq!(found[1].record.time, ahead);
    let present = Filter { since: Some(early), until: Some(late), ..Filter::default() };
    assert_eq!(
        messages(&select(&store, Order::Latest, present.clone()).await),
        ["after it", "ahead", "with it"]
    );
    assert!(present.matches(&kept[0].record), "as the live filter sees it");
    let future = Filter { since: Some(late), ..Filter::default() };
    assert!(
        select(&store, Order::Latest, future.clone()).await.is_empty() && !future.matches(&kept[0].record)
    );
}

async fn times_at_the_ends_of_the_calendar_are_kept(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let times = [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX];
    let records =
        times.iter().map(|time| LogRecord { time: *time, ..record("s", "INFO", &time.to_string()) });
    let kept = keep(&store, records.collect()).await;
    assert_eq!(all(&store).await, kept);
    assert_eq!(kept.iter().map(|stored| stored.record.time).collect::<Vec<_>>(), times);
    let mut latest = select(&store, Order::Latest, Filter::default()).await;
    latest.reverse();
    assert_eq!(latest, kept);
}

async fn attributes_keep_their_order_and_their_digits(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let text = r#"{"z":18446744073709551617,"a":-170141183460469231731687303715884105728,"2":0.10,"1":{"b":1E2,"a":"é"}}"#;
    let mut made = record("s", "INFO", "m");
    made.attributes = Attributes::from_json(text).expect("an object");
    let kept = keep(&store, vec![made]).await;
    let found = all(&store).await;
    assert_eq!(found, kept);
    assert_eq!(found[0].record.attributes.to_json(), text);
    assert!(serde_json::to_string(&found[0]).expect("JSON").contains(text));
}

async fn every_condition_is_met_as_the_live_filter_meets_it(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let mut records = Vec::new();
    for (n, level) in ["debug", "INFO", "WARN", "WARNING", "error", "BANANA"].iter().enumerate() {
        let mut made = record(["a", "b"][n % 2], level, &format!("Number {n} %_'\""));
        made.attributes.insert("Path".into(), format!("/x/{n}").into());
        made.trace_id = (n == 3).then(|| "t3".into());
        made.request_id = (n == 4).then(|| "r4".into());
        made.correlation_id = (n < 2).then(|| "c".into());
        records.push(made);
    }
    let kept = keep(&store, records).await;
    let words = |line: &str| Filter { words: Filter::words_of(line), ..Filter::default() };
    let filters = [
        Filter::default(),
        Filter { services: vec!["a".into()], ..Filter::default() },
        Filter { services: vec!["a".into(), "b".into(), "none".into()], ..Filter::default() },
        Filter { severity: Some(Severity::WARN), ..Filter::default() },
        Filter { trace_id: Some("t3".into()), ..Filter::default() },
        Filter { request_id: Some("r4".into()), ..Filter::default() },
        Filter { correlation_id: Some("c".into()), services: vec!["b".into()], ..Filter::default() },
        words("number"),
        words("NUMBER /X/4"),
        words("%_'"),
        words("\"path\":"),
        words("absent"),
    ];
    for filter in filters {
        let live: Vec<_> = kept.iter().filter(|stored| filter.matches(&stored.record)).cloned().collect();
        assert_eq!(select(&store, Order::Oldest, filter.clone()).await, live, "{filter:?}");
    }
    assert_eq!(select(&store, Order::Oldest, words("NUMBER /X/4")).await.len(), 1);
}

async fn words_are_found_in_values_whatever_their_case(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let mut made = record("Abrechnung", "KRITISCH", "Straße nach ΟΔΟΣ\nzweite Zeile");
    made.attributes = serde_json::json!({
        "path": r"C:\Temp\new", "said": r#"she said "no""#, "Größe": 12.5, "deep": {"list": [true, "tab\there"]},
    })
    .as_object()
    .expect("an object")
    .clone()
    .into();
    made.trace_id = Some("4bf92f3577b34da6a3ce929d0e0e4736".into());
    made.span_id = Some("00f067aa0ba902b7".into());
    let nul = record("other", "INFO", "before\0after K");
    let plain = LogRecord { attributes: made.attributes.clone(), ..record("plain", "INFO", "nothing else") };
    let kept = keep(&store, vec![made, nul, plain]).await;
    for (word, found) in [
        (r"C:\Temp\new", &[0, 2][..]),
        (r"c:\TEMP\NEW", &[0, 2]),
        (r"\t", &[0, 2]),
        ("\"no\"", &[0, 2]),
        ("\nzweite", &[0]),
        ("tab\there", &[0, 2]),
        ("STRASSE", &[0]),
        ("strasse", &[0]),
        ("οδοσ", &[0]),
        ("GRÖSSE", &[0, 2]),
        ("größe", &[0, 2]),
        ("12.5", &[0, 2]),
        ("true", &[0, 2]),
        ("4BF92F3577B34DA6", &[0]),
        ("00f067aa0ba902b7", &[0]),
        ("abrechnung", &[0]),
        ("kritisch", &[0]),
        ("after", &[1]),
        ("\u{212a}", &[0, 1]),
        (r#""path":"#, &[]),
        ("absent", &[]),
    ] {
        let filter = Filter { words: vec![word.into()], ..Filter::default() };
        let live: Vec<_> = kept.iter().filter(|stored| filter.matches(&stored.record)).cloned().collect();
        let expected: Vec<_> = found.iter().map(|place| kept[*place].clone()).collect();
        assert_eq!(live, expected, "{word:?} among what comes");
        for order in [Order::Oldest, Order::Newest, Order::Latest] {
            let mut stored = select(&store, order, filter.clone()).await;
            stored.sort_by_key(|stored| stored.seq);
            assert_eq!(stored, expected, "{word:?} among what is stored, {order:?}");
        }
    }
    let both = Filter { words: vec!["zeile".into(), "temp".into()], ..Filter::default() };
    assert_eq!(select(&store, Order::Oldest, both).await, kept[..1]);
}

async fn an_answer_ends_at_its_bytes_and_says_so(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let records = (0..20).map(|n| record("s", "INFO", &format!("{n:02}{}", "x".repeat(100_000))));
    keep(&store, records.collect()).await;
    for order in [Order::Latest, Order::Newest, Order::Oldest] {
        for words in [vec![], vec!["xxx".to_owned()]] {
            let filter = Filter { words, ..Filter::default() };
            let ask = async |after, bytes| {
                let query =
                    Query { filter: filter.clone(), order, after, bytes, limit: 100, ..Query::default() };
                store.select(query).await.expect("a page")
            };
            let (mut walked, mut after) = (Vec::new(), None);
            loop {
                let page = ask(after, 350_000).await;
                assert_eq!(page.records.len(), if page.partial { 3 } else { 2 }, "{order:?}");
                after = page.records.last().map(Cursor::after);
                walked.extend(page.records);
                if !page.partial {
                    break;
                }
            }
            assert_eq!(walked, select(&store, order, filter.clone()).await, "{order:?}");
            let one = ask(None, 1).await;
            assert_eq!((one.records.len(), one.partial), (1, true), "one is answered however large it is");
            assert!(!ask(after, 1).await.partial, "nothing is after the last");
        }
    }
}

async fn clearing_one_service_leaves_the_others(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    keep(&store, vec![record("a", "INFO", "1"), record("b", "INFO", "2"), record("a", "INFO", "3")]).await;
    assert_eq!(store.clear(Some("a".into())).await.expect("cleared"), 2);
    assert_eq!(store.clear(Some("unknown".into())).await.expect("nothing to do"), 0);
    assert_eq!(messages(&all(&store).await), ["2"]);
    drop(store);
    let store = open(dir.to_owned()).await;
    assert_eq!(store.counts().await.expect("counts").into_iter().collect::<Vec<_>>(), [("b".to_owned(), 1)]);
}

async fn clearing_all_leaves_nothing(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    keep(&store, (0..200).map(|n| record("a", "INFO", &n.to_string())).collect()).await;
    assert_eq!(store.clear(None).await.expect("cleared"), 200);
    assert!(all(&store).await.is_empty() && store.counts().await.expect("counts").is_empty());
    keep(&store, vec![record("a", "INFO", "later")]).await;
    assert_eq!(messages(&all(&store).await), ["later"]);
}

async fn counts_are_by_service(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    keep(&store, vec![record("a", "INFO", "1"), record("b", "INFO", "2")]).await;
    keep(&store, vec![record("a", "INFO", "3")]).await;
    let counts: Vec<_> = store.counts().await.expect("counts").into_iter().collect();
    assert_eq!(counts, [("a".to_owned(), 2), ("b".to_owned(), 1)]);
}

async fn a_closed_store_says_so(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    keep(&store, vec![record("a", "INFO", "1")]).await;
    store.close().await;
    let group = RecordBatch { delivery: None, records: vec![record("a", "INFO", "2")] };
    let error = store.append(vec![group]).await.expect_err("closed");
    assert_eq!(error.kind(), log_aggregator::ErrorKind::Closed);
    let reading = store.select(Query { limit: 1, ..Query::default() }).await;
    assert_eq!(reading.expect_err("closed").kind(), log_aggregator::ErrorKind::Closed);
}

async fn strange_text_is_only_text(dir: &Path, open: Open) {
    let store = open(dir.to_owned()).await;
    let strange =
        ["", "a\0b", "'; DROP TABLE records; --", "\u{202e}\u{feff}😀", "%", "<script>alert(1)</script>"];
    let kept = keep(&store, strange.iter().map(|text| record(text, text, text)).collect()).await;
    assert_eq!(all(&store).await, kept);
    for text in strange {
        let one = Filter { services: vec![text.into()], ..Filter::default() };
        assert_eq!(messages(&select(&store, Order::Oldest, one).await), [text]);
    }
}
