//! Tests that parts drain in order, within a time limit, after a real signal.

use crate::child::{Process, role};
use rustix::process::Signal;
use service_kit::shutdown::{Parts, Report, Settings, Shutdown, Stop};
use std::convert::Infallible;
use std::future::pending;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const NEVER: Duration = Duration::from_secs(3600);

fn parts(drain: Duration) -> (Shutdown, Parts) {
    let shutdown = Shutdown::new();
    (shutdown.clone(), Parts::new(shutdown, Settings { drain, ..Settings::default() }))
}

async fn idle(stop: Stop) -> Result<(), Infallible> {
    stop.requested().await;
    Ok(())
}

async fn stuck(_: Stop) -> Result<(), Infallible> {
    pending().await
}

fn broken() -> Result<(), Infallible> {
    panic!("a row")
}

#[tokio::test]
async fn the_last_started_stops_first() {
    let (shutdown, mut parts) = parts(NEVER);
    let order = Arc::new(Mutex::new(Vec::new()));
    for name in ["store", "bus", "http"] {
        let order = order.clone();
        parts.add(name, move |stop| async move {
            stop.requested().await;
            order.lock().unwrap().push(format!("{name} begins"));
            tokio::task::yield_now().await; // slow work: the next part still waits for it
            order.lock().unwrap().push(format!("{name} ends"));
            Ok::<_, Infallible>(())
        });
    }
    shutdown.ask("the test says so");
    let report = parts.run().await;
    let order = order.lock().unwrap().clone();
    assert_eq!(order, ["http begins", "http ends", "bus begins", "bus ends", "store begins", "store ends"]);
    assert_eq!(report.finished, ["http", "bus", "store"]);
    assert!(report.is_clean() && report.why == "the test says so", "{report}");
}

#[tokio::test]
async fn a_part_that_ends_by_itself_ends_the_process() {
    let (_, mut parts) = parts(NEVER);
    parts.add("bus", idle);
    parts.add("once", |_| async { Ok::<_, Infallible>(()) });
    let report = parts.run().await;
    assert_eq!((report.why.as_str(), report.is_clean()), ("once ended", true));
    assert_eq!(report.finished, ["once", "bus"]);
}

#[tokio::test]
async fn a_failure_and_a_panic_are_reported_with_their_words() {
    let (_, mut failing) = parts(NEVER);
    failing.add("bus", idle);
    failing.add("worker", |_| async { Err("the disk is full") });
    let report = failing.run().await;
    assert_eq!(report.why, "worker failed");
    assert_eq!(report.failed, [("worker".to_owned(), "the disk is full".to_owned())]);
    assert_eq!(report.exit_code(), ExitCode::FAILURE);

    let (_, mut panicking) = parts(NEVER);
    panicking.add("worker", |_| async { broken() });
    let report = panicking.run().await;
    assert_eq!(report.failed, [("worker".to_owned(), "panicked: a row".to_owned())]);
}

#[tokio::test]
async fn a_stuck_part_is_named_and_keeps_nobody_from_draining() {
    let (shutdown, mut parts) = parts(Duration::from_secs(1));
    parts.add("store", idle);
    parts.add("stuck", stuck);
    parts.add("http", idle);
    shutdown.ask("the test says so");
    let report = parts.run().await;
    assert_eq!(report.finished, ["http", "store"]);
    assert_eq!(report.abandoned, ["stuck"]);
    assert_eq!(report.exit_code(), ExitCode::FAILURE);
    assert!(report.to_string().contains("abandoned while busy: stuck"), "{report}");
}

#[tokio::test]
async fn force_does_not_wait_for_the_bound() {
    let (shutdown, mut parts) = parts(NEVER);
    parts.add("stuck", stuck);
    shutdown.force();
    let report: Report = tokio::time::timeout(crate::DEADLINE, parts.run()).await.unwrap();
    assert_eq!(report.abandoned, ["stuck"]);
}

/// The program of the child processes below: it reports its end on standard error and by the exit code.
fn program(role: &str) -> ! {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let report = runtime.block_on(async {
        let mut parts =
            Parts::new(Shutdown::on_signals().unwrap(), Settings { drain: NEVER, ..Settings::default() });
        if role == "stuck" {
            parts.add("part", stuck);
        } else {
            parts.add("part", idle);
        }
        eprintln!("running");
        parts.run().await
    });
    eprintln!("{report}");
    std::process::exit(i32::from(!report.is_clean()));
}

#[tokio::test]
async fn sigterm_and_sigint_drain() {
    if let Some(role) = role() {
        std::thread::spawn(move || program(&role)).join().unwrap();
    }
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let mut process = Process::start("shutdown::sigterm_and_sigint_drain", "idle", &[]);
        process.line("running").await;
        process.signal(signal);
        let report = process.line("stopped").await;
        assert!(report.contains(name) && report.contains("finished: part"), "{report}");
        assert!(process.exit().await.success());
    }
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    if let Some(role) = role() {
        std::thread::spawn(move || program(&role)).join().unwrap();
    }
    let mut process = Process::start("shutdown::a_second_signal_stops_at_once", "stuck", &[]);
    process.line("running").await;
    process.signal(Signal::TERM);
    // Two pending signals of different kinds are both delivered, in any order.
    process.signal(Signal::INT);
    assert!(process.line("stopped").await.contains("abandoned while busy: part"));
    assert_eq!(process.exit().await.code(), Some(1));
}

#[tokio::test]
async fn the_longest_bound_and_notice_do_not_overflow() {
    let shutdown = Shutdown::new();
    let mut parts = Parts::new(shutdown.clone(), Settings { drain: Duration::MAX, notice: Duration::MAX });
    parts.add("part", |stop| async move {
        stop.requested().await;
        Ok::<(), std::convert::Infallible>(())
    });
    let run = tokio::spawn(parts.run());
    shutdown.ask("the test asks");
    tokio::task::yield_now().await;
    shutdown.force();
    run.await.expect("no panic");

    let shutdown = Shutdown::new();
    let mut parts = Parts::new(shutdown.clone(), Settings { drain: Duration::MAX, ..Settings::default() });
    parts.add("part", |stop| async move {
        stop.requested().await;
        Ok::<(), std::convert::Infallible>(())
    });
    shutdown.ask("the test asks");
    assert!(parts.run().await.is_clean());
}
