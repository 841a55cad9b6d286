//! Tests edge cases of numbers: numbers that JSON does not have, more digits than a machine word, and the smallest
//! and largest value of every option.

use std::time::Duration;

use jiff::Timestamp;
use task_queue::{
    ErrorKind, Schedule, TaskError, Timing,
    store::{
        NewTask, State,
        sqlite::{SqliteOptions, SqliteStore},
    },
    task,
};

use crate::support::{Bench, SOON};

#[task]
async fn reading(celsius: f64, note: Option<String>) -> Result<f64, String> {
    Ok(note.map_or(celsius, |_| celsius / 0.0))
}

#[task]
async fn wide(number: u128, least: i128) -> Result<(u128, i128), String> {
    Ok((number, least))
}

#[task(retries = 4294967295, priority = i32::MIN, crashes = 4294967295, timeout = "18446744073709551615ms")]
async fn patient(end: u8) -> Result<(), TaskError> {
    match end {
        0 => Ok(()),
        1 => Err(TaskError::retry_after(Duration::MAX, "far")),
        _ => Err(TaskError::snooze(Duration::MAX)),
    }
}

#[tokio::test]
async fn numbers_that_json_does_not_have_are_refused_by_name() {
    let bench = Bench::new().await;
    for celsius in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let error = reading.delay(celsius, None).on(&bench.client).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("argument `celsius` is"), "{error}");
        let error = Schedule::every("s", Duration::from_secs(1))
            .unwrap()
            .call(reading.delay(celsius, None))
            .unwrap_err();
        assert!(error.to_string().contains("argument `celsius` is"), "{error}");
    }
    let worker = bench.work(|worker| worker.register(reading));
    assert_eq!(reading.delay(-0.5, None).on(&bench.client).await.unwrap().get(SOON).await.unwrap(), -0.5);
    let infinite = reading.delay(1.0, Some("divide".to_owned())).on(&bench.client).await.unwrap();
    let error = infinite.get(SOON).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.to_string().contains("the result is inf"), "{error}");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn integers_keep_all_digits_by_position_by_name_through_schedules_and_in_results() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(wide));
    let (most, least) = (u128::MAX, i128::MIN);
    assert_eq!(
        wide.delay(most, least).on(&bench.client).await.unwrap().get(SOON).await.unwrap(),
        (most, least)
    );
    let mut named = NewTask::named("wide", format!("[{most}]"));
    named.kwargs = Some(format!("{{\"least\": {least}}}"));
    let sent = bench.client.send(vec![named]).await.unwrap().remove(0);
    let record = sent.wait(SOON).await.unwrap();
    assert_eq!(record.result.unwrap().as_str(), format!("[{most},{least}]"));
    let plan =
        Schedule::every("wide", Duration::from_secs(3600)).unwrap().call(wide.delay(most, least)).unwrap();
    bench.store.put_schedule(plan.into_record()).await.unwrap();
    let schedule = bench.store.schedules().await.unwrap().remove(0);
    assert_eq!(schedule.args.as_str(), format!("[{most},{least}]"));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_name_that_comes_twice_is_refused() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(wide));
    let mut twice = NewTask::named("wide", "[]");
    twice.kwargs = Some(r#"{"number": 1, "least": 2, "number": 3}"#.to_owned());
    let sent = bench.client.send(vec![twice]).await.unwrap().remove(0);
    let error = sent.get(SOON).await.unwrap_err().to_string();
    assert!(error.contains("argument `number` is given twice"), "{error}");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn every_option_of_a_call_is_taken_to_its_ends() {
    let bench = Bench::new().await;
    let worker = bench.work(|worker| worker.register(patient).concurrency(usize::MAX).grace(Duration::MAX));
    let call = |end| patient.apply_async((end,));
    for call in [
        call(0).eta(Timestamp::MIN).result_ttl(Duration::MAX).priority(i32::MAX).max_retries(0),
        call(0).expires(Duration::MAX).result_ttl(Duration::from_millis(i64::MAX as u64)),
        call(0).countdown(Duration::ZERO).expires_at(Timestamp::MAX).priority(i32::MIN).max_retries(u32::MAX),
    ] {
        call.on(&bench.client).await.unwrap().get(SOON).await.unwrap();
    }
    let late = [call(0).countdown(Duration::MAX), call(0).eta(Timestamp::MAX), call(1), call(2)];
    for call in late {
        let task = call.on(&bench.client).await.unwrap();
        crate::support::until("it is put off to the end of time", || async {
            let record = task.record().await.unwrap();
            record.state == State::Scheduled && record.due.as_millisecond() == Timestamp::MAX.as_millisecond()
        })
        .await;
    }
    let gone = call(0).expires_at(Timestamp::MIN).result_ttl(Duration::MAX).on(&bench.client).await.unwrap();
    assert_eq!(gone.get(Duration::MAX).await.unwrap_err().kind(), ErrorKind::Expired);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn options_out_of_their_bounds_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let open = async |change: fn(&mut SqliteOptions)| {
        let mut options = SqliteOptions::new(folder.path().join("tasks.db"));
        change(&mut options);
        SqliteStore::open(options).await.map(|_| ())
    };
    for (change, said) in [
        ((|options| options.lease = Duration::MAX) as fn(&mut SqliteOptions), "a lease"),
        (|options| options.lease = Duration::ZERO, "a lease"),
        (|options| options.busy_timeout = Duration::MAX, "a busy timeout"),
        (|options| options.dead_ttl = Duration::MAX, "a time to live of dead tasks"),
        (|options| options.patience = Duration::ZERO, "a patience"),
        (|options| options.patience = Duration::MAX, "a patience"),
        (|options| options.max_args = usize::MAX, "arguments"),
        (|options| options.max_result = usize::MAX, "result"),
    ] {
        let error = open(change).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().starts_with(said), "{error}");
    }
    open(|options| {
        options.busy_timeout = Duration::ZERO;
        options.dead_ttl = Duration::ZERO;
        options.max_args = 0;
    })
    .await
    .unwrap();
    for interval in [Duration::MAX, Duration::from_secs(u64::MAX), Duration::ZERO] {
        assert_eq!(Timing::every(interval).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(Schedule::every("s", interval).unwrap_err().kind(), ErrorKind::Invalid);
    }
    let century = Schedule::every("s", Duration::from_secs(36_500 * 86_400)).unwrap().into_record();
    assert!(century.next.is_some());
    let bench = Bench::new().await;
    for (name, queue, unique) in [("n", "q", "u"), ("x", "q", "n"), ("x", "n", "u")] {
        let long = |text: &str| if text == "n" { "n".repeat(1025) } else { text.to_owned() };
        let task =
            NewTask { queue: long(queue), unique: Some(long(unique)), ..NewTask::named(long(name), "[]") };
        assert_eq!(bench.client.send(vec![task]).await.unwrap_err().kind(), ErrorKind::TooLarge);
    }
    let mut heavy = NewTask::named("x", "[]");
    heavy.headers.insert("h".to_owned(), "x".repeat(2 << 20));
    assert_eq!(bench.client.send(vec![heavy]).await.unwrap_err().kind(), ErrorKind::TooLarge);
}
