//! Tests several processes on one store, killed and suspended: no task is lost, and no task runs in two processes
//! at a time.

use std::collections::{HashMap, HashSet};

use task_queue::{
    AsyncResult, TaskClient,
    store::{NewTask, Outcome, State},
};
use uuid::Uuid;

use crate::{
    child::{self, Note, Process, journal, read_journal},
    support::{SOON, until},
};

/// A test site: a store file, its URL with a short lease, a journal, and a client in this process.
struct Site {
    folder: tempfile::TempDir,
    url: String,
    client: TaskClient,
}

impl Site {
    async fn new() -> Self {
        Self::with_lease("8s").await
    }

    /// Creates a site with a short lease, for tests in which a worker is killed.
    async fn with_lease(lease: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}?lease={lease}", folder.path().join("tasks.db").display());
        let client = TaskClient::open(&url).await.unwrap();
        Self { folder, url, client }
    }

    fn journal(&self) -> std::path::PathBuf {
        self.folder.path().join("journal")
    }

    async fn enqueue(&self, count: usize, millis: u64) -> Vec<AsyncResult<u32>> {
        let tasks: Vec<NewTask> =
            (0..count).map(|_| journal.delay(self.journal(), millis).into_task().unwrap()).collect();
        self.client.send(tasks).await.unwrap().into_iter().map(AsyncResult::cast).collect()
    }

    async fn started(&self, count: usize) -> Vec<Note> {
        until("tasks have started", || async {
            read_journal(&self.journal()).iter().filter(|n| n.start).count() >= count
        })
        .await;
        read_journal(&self.journal())
    }
}

/// Asserts that two processes never work on a task at the same time. A killed process's run ends with its lease;
/// the store records this time as the end of the crashed attempt.
async fn assert_never_two_at_once(site: &Site, results: &[AsyncResult<u32>]) {
    let mut runs = HashMap::<String, Vec<Note>>::new();
    for note in read_journal(&site.journal()) {
        runs.entry(note.id.clone()).or_default().push(note);
    }
    for result in results {
        let record = result.record().await.unwrap();
        let notes = &runs[&record.id.to_string()];
        let mut open: Option<&Note> = None;
        for note in notes {
            match (note.start, open) {
                (true, None) => open = Some(note),
                (true, Some(before)) => {
                    let crashed = record.attempts.iter().any(|attempt| {
                        attempt.outcome == Outcome::Crashed
                            && attempt.started.as_microsecond() <= before.at
                            && attempt.ended.as_microsecond() <= note.at
                    });
                    assert!(crashed, "two runs of one task at a time: {notes:#?} {:#?}", record.attempts);
                    open = Some(note);
                }
                (false, Some(before)) => {
                    assert_eq!(before.process, note.process, "ended by another process: {notes:#?}");
                    open = None;
                }
                (false, None) => panic!("an end without a start: {notes:#?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_killed_workers_tasks_all_run_again() {
    let site = Site::with_lease("1s").await;
    let results = site.enqueue(40, 300).await;
    let first = Process::start(&site.url, &["worker", "-c", "8"]);
    let before = site.started(8).await;
    first.kill();
    let second = Process::start(&site.url, &["worker", "-c", "20"]);
    for result in &results {
        result.get(SOON).await.unwrap();
    }
    let ended: HashSet<_> =
        read_journal(&site.journal()).into_iter().filter(|n| !n.start).map(|n| n.id).collect();
    assert_eq!(ended.len(), 40, "each task has run to its end");
    let mut crashed = 0;
    for result in &results {
        let record = result.record().await.unwrap();
        assert_eq!((record.state, record.errors), (State::Succeeded, 0));
        assert_eq!(record.attempts.len() as u32, record.crashes + 1);
        crashed += record.crashes;
    }
    assert!(crashed >= 1, "the kill came while tasks ran: {before:?}");
    assert_never_two_at_once(&site, &results).await;
    second.terminate();
}

#[tokio::test]
async fn two_processes_share_the_work_and_never_a_task() {
    let site = Site::new().await;
    let workers = [0, 1].map(|_| Process::start(&site.url, &["worker", "-c", "6"]));
    until("both are there", || async { site.client.store().workers().await.unwrap().len() == 2 }).await;
    let results = site.enqueue(300, 3).await;
    for result in &results {
        assert_eq!(result.get(SOON).await.unwrap(), 1);
    }
    let notes = read_journal(&site.journal());
    assert_eq!(notes.len(), 600, "each started once and ended once");
    assert_eq!(notes.iter().map(|note| note.process).collect::<HashSet<_>>().len(), 2, "both had some");
    assert_never_two_at_once(&site, &results).await;
    workers.into_iter().for_each(Process::terminate);
    assert!(site.client.store().workers().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_frozen_workers_late_end_changes_nothing() {
    let site = Site::with_lease("1s").await;
    let results = site.enqueue(4, 400).await;
    let frozen = Process::start(&site.url, &["worker", "-c", "4", "-n", "frozen"]);
    site.started(4).await;
    frozen.signal("STOP");
    let second = Process::start(&site.url, &["worker", "-c", "4", "-n", "second"]);
    for result in &results {
        assert_eq!(result.get(SOON).await.unwrap(), 2);
    }
    let before: Vec<_> = records(&results).await;
    frozen.signal("CONT");
    // The worker has recovered when it has registered again; by then it has stopped the tasks of its lost lease.
    until("it has registered anew", || async {
        site.client.store().workers().await.unwrap().iter().any(|worker| worker.info.name == "frozen")
    })
    .await;
    let more = site.enqueue(8, 1).await;
    for result in &more {
        result.get(SOON).await.unwrap();
    }
    assert_eq!(records(&results).await, before);
    for record in &before {
        let outcomes: Vec<_> =
            record["attempts"].as_array().unwrap().iter().map(|a| a["outcome"].clone()).collect();
        assert_eq!(outcomes, ["crashed", "succeeded"]);
    }
    frozen.terminate();
    second.terminate();
}

async fn records(results: &[AsyncResult<u32>]) -> Vec<serde_json::Value> {
    let mut records = Vec::new();
    for result in results {
        records.push(serde_json::to_value(result.record().await.unwrap()).unwrap());
    }
    records
}

#[tokio::test]
async fn a_poison_pill_is_buried_and_its_neighbours_live() {
    let site = Site::with_lease("1s").await;
    let mut pill = child::abort.delay().into_task().unwrap();
    pill.max_crashes = 2;
    pill.priority = 9;
    let id = pill.id;
    site.client.send(vec![pill]).await.unwrap();
    let neighbours = site.enqueue(2, 1).await;
    for _ in 0..2 {
        Process::start(&site.url, &["worker", "-c", "1"]).crashed();
        // The next worker claims it again when the dead worker's lease has expired.
        until("it was handed on", || async {
            site.client.store().maintain().await.unwrap();
            site.client.store().get(id).await.unwrap().unwrap().state != State::Running
        })
        .await;
    }
    let record = site.client.store().get(id).await.unwrap().unwrap();
    assert_eq!((record.state, record.crashes), (State::Dead, 2));
    let worker = Process::start(&site.url, &["worker"]);
    for result in &neighbours {
        result.get(SOON).await.unwrap();
    }
    worker.terminate();
}

#[tokio::test]
async fn a_terminated_worker_finishes_what_runs_and_leaves_the_rest() {
    let site = Site::new().await;
    let results = site.enqueue(6, 200).await;
    let worker = Process::start(&site.url, &["worker", "-c", "2"]);
    site.started(2).await;
    worker.terminate();
    let notes = read_journal(&site.journal());
    assert_eq!(notes.iter().filter(|n| n.start).count(), notes.iter().filter(|n| !n.start).count());
    let mut left = 0;
    for result in &results {
        let record = result.record().await.unwrap();
        assert!(matches!(record.state, State::Succeeded | State::Queued), "{}", record.state);
        assert_eq!((record.errors, record.crashes), (0, 0));
        left += usize::from(record.state == State::Queued);
    }
    assert!(left >= 1);
}

#[tokio::test]
async fn many_schedulers_fire_each_nominal_time_once() {
    let site = Site::new().await;
    child::verb(
        &site.url,
        &[
            "schedule",
            "add",
            "tick",
            "--task",
            "journal",
            "--every",
            "100ms",
            "--missed",
            "all",
            "-a",
            "[\"/dev/null\",0]",
        ],
    )
    .unwrap();
    let mut schedulers: Vec<_> = (0..3).map(|_| Process::start(&site.url, &["beat"])).collect();
    let fired = || async { site.client.store().schedules().await.unwrap()[0].fired };
    until("it has fired", || async { fired().await >= 10 }).await;
    schedulers.pop().unwrap().kill();
    let then = fired().await;
    until("the others go on", || async { fired().await >= then + 10 }).await;
    schedulers.into_iter().for_each(Process::terminate);

    let schedule = site.client.store().schedules().await.unwrap().remove(0);
    let filter = task_queue::store::Filter { limit: 10_000, ..Default::default() };
    let tasks = site.client.store().list(filter).await.unwrap();
    let mut nominal: Vec<jiff::Timestamp> =
        tasks.iter().map(|task| task.headers["nominal"].parse().unwrap()).collect();
    nominal.sort_unstable();
    assert_eq!(nominal.len() as u64, schedule.fired);
    assert_eq!(nominal.last(), schedule.last.as_ref());
    for pair in nominal.windows(2) {
        assert_eq!(pair[1].duration_since(pair[0]).as_millis(), 100, "no time twice, none left out");
    }
}

#[tokio::test]
async fn processes_may_make_a_store_together() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("tasks.db").display());
    let outcomes = std::thread::scope(|scope| {
        let callers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| child::verb(&url, &["call", "journal"]))).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect::<Vec<_>>()
    });
    let ids: HashSet<String> = outcomes.into_iter().map(Result::unwrap).collect();
    assert_eq!(ids.len(), 8);
    let stats = TaskClient::open(&url).await.unwrap().store().stats().await.unwrap();
    assert_eq!(stats[0].counts, [(State::Queued, 8)].into());
}

#[tokio::test]
async fn a_read_only_store_says_so() {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};
    let site = Site::new().await;
    let Site { folder, url, client } = site;
    drop(client);
    let set =
        |path: &std::path::Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        set(&entry.unwrap().path(), 0o444);
    }
    let others = tempfile::tempdir().unwrap();
    set(others.path(), 0o755);
    set(folder.path(), 0o555);
    let error = child::verb_unprivileged(others.path(), &url, &["call", "journal"]).unwrap_err();
    set(folder.path(), 0o755);
    assert!(error.contains("may not be written") || error.contains("cannot be opened"), "{error}");
    assert!(error.contains("permissions") || error.contains("directory"), "{error}");
}

#[tokio::test]
async fn the_command_line_tells_and_does_what_it_says() {
    let site = Site::new().await;
    let url = &site.url;
    let list = |args: &[&str]| -> Vec<serde_json::Value> {
        let answer = child::verb(url, &[&["--json"], args].concat()).unwrap();
        let parse =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {answer}"));
        answer.lines().filter(|line| !line.is_empty()).map(parse).collect()
    };
    let json = |args: &[&str]| list(args).remove(0);
    let journal_args = format!("[\"{}\"]", site.journal().display());
    let id = child::verb(url, &["call", "journal", "-a", &journal_args, "-k", "{\"millis\":1}"]).unwrap();
    let id: Uuid = id.trim().parse().unwrap();
    let later = json(&["call", "journal", "--countdown", "1h", "--queue", "slow"]);
    let later = later["id"].as_str().unwrap();
    assert_eq!(list(&["inspect", "reserved"])[0]["id"], id.to_string());
    assert_eq!(list(&["inspect", "scheduled"])[0]["id"], later);
    assert!(list(&["status"]).is_empty());
    assert!(child::verb(url, &["status"]).unwrap().contains("no live workers"));

    child::verb(url, &["pause", "default"]).unwrap();
    let worker = Process::start(url, &["worker", "-c", "1", "-B", "-Q", "default,slow", "-n", "only"]);
    until("it is there", || async { !site.client.store().workers().await.unwrap().is_empty() }).await;
    assert_eq!(
        list(&["inspect", "registered"]),
        [serde_json::json!(["only", ["abort", "journal", "mailed"]])]
    );
    assert_eq!(json(&["result", &id.to_string()])["state"], "queued");
    child::verb(url, &["resume", "default"]).unwrap();
    assert_eq!(json(&["result", &id.to_string(), "--timeout", "30s"])["result"], 1);
    assert_eq!(child::verb(url, &["result", &id.to_string()]).unwrap().trim(), "1");
    let strangers = ["018f0000-0000-7000-8000-000000000000", "018f0000-0000-7000-8000-000000000001"];
    let said = child::said(url, &["cancel", strangers[0], later, strangers[1]]);
    assert!(!said.ok && said.out.contains(&format!("{later} is cancelled")), "{said:?}");
    assert!(strangers.iter().all(|id| said.err.contains(id)) && !said.err.contains(later), "{said:?}");
    assert!(child::verb(url, &["result", later]).unwrap().contains("cancelled before it started"));

    let bad = json(&["call", "journal", "-a", "[7]"])["id"].as_str().unwrap().to_owned();
    json(&["result", &bad, "--timeout", "30s"]);
    assert_eq!(list(&["dead", "ls"])[0]["id"], bad);
    assert_eq!(json(&["dead", "replay", &bad])["replayed"], 1);
    json(&["result", &bad, "--timeout", "30s"]);
    let said = child::said(url, &["dead", "drop", &bad, strangers[0]]);
    assert!(!said.ok && said.out.contains("1 dead tasks deleted") && said.err.contains("1 of 2"), "{said:?}");
    assert!(!child::said(url, &["dead", "replay", strangers[0]]).ok);

    json(&[
        "schedule",
        "add",
        "nightly",
        "--task",
        "journal",
        "--cron",
        "0 2 * * *",
        "--tz",
        "Europe/Berlin",
    ]);
    assert_eq!(list(&["schedule", "ls"])[0]["timing"], "cron 0 2 * * *");
    assert!(child::verb(url, &["schedule", "ls"]).unwrap().contains("Europe/Berlin"));
    assert_eq!(json(&["schedule", "rm", "nightly"])["removed"], "nightly");
    assert_eq!(list(&["inspect", "stats"])[0]["counts"]["succeeded"], 1);
    let text = child::verb(url, &["inspect", "query-task", &id.to_string()]).unwrap();
    assert!(text.contains("succeeded") && text.contains("only"), "{text}");
    worker.terminate();

    for (args, said) in [
        (&["call", "journal", "-a", "{}"][..], "--args takes a json array"),
        (&["call", "journal", "--countdown", "soon"], "not a duration"),
        (&["schedule", "add", "x", "--task", "t", "--cron", "* * *"], "it has 3"),
        (&["schedule", "add", "x", "--task", "t", "--cron", "* * * * *", "--tz", "Mars"], "not a time zone"),
        (&["schedule", "rm", "x"], "no schedule `x`"),
        (&["dead", "replay"], "--all"),
        (&["purge"], "--force"),
        (&["schedule", "add", "x", "--task", "t", "--every", "99999999999h"], "a hundred years at most"),
        (&["call", "journal", "-k", "{\"millis\":1,\"millis\":2}"], "`millis` is given twice"),
        (&["call", "journal", "--priority", "2147483648"], "--priority"),
        (&["call", "journal", "--max-retries", "4294967296"], "--max-retries"),
        (&["worker", "-c", "0"], "--concurrency"),
        (&["worker", "-c", "65537"], "--concurrency"),
        (&["worker", "--grace", "forever"], "not a duration"),
        (&["result", "018f0000-0000-7000-8000-000000000000"], "unknown"),
        (&["frobnicate"], "unrecognized subcommand"),
    ] {
        let error = child::verb(url, args).unwrap_err();
        assert!(error.contains(said), "{args:?}: {error}");
    }
    let error = child::verb("redis://localhost", &["status"]).unwrap_err();
    assert!(error.contains("not in this build") && error.contains("sqlite:PATH"), "{error}");
}
