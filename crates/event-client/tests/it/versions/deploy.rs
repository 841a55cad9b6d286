//! Tests the deployment of a new version of an event, with members of different versions in separate
//! processes.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use event_client::Bus;
use event_client::service::{Attempt, Handler, Msg, Running, Service, State};
use event_client::subject::{Group, Pattern};
use event_client::transport::{DeadLetterFilter, Subscribe};
use test_servers::{Generation, Nats, Rabbit, Redis};

use super::*;

const GROUP: &str = "books.ledger.entry";

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "ledger.entry", version = 1, key = account)]
struct EntryV1 {
    account: String,
    n: u32,
}

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "ledger.entry", version = 2, key = account, upcast_from = EntryV1)]
struct Entry {
    account: String,
    n: u32,
    currency: String,
}

impl From<EntryV1> for Entry {
    fn from(v1: EntryV1) -> Self {
        Self { account: v1.account, n: v1.n, currency: "EUR".into() }
    }
}

/// The file to which every member writes its handled entries: appended lines are not split and have one
/// order.
#[derive(Clone)]
struct Ledger(Arc<PathBuf>);

impl Ledger {
    fn note(&self, version: u32, n: u32, attempt: &Attempt) {
        let mut file = std::fs::File::options().append(true).create(true).open(&*self.0).unwrap();
        file.write_all(format!("{n} v{version} {}\n", attempt.number()).as_bytes()).unwrap();
    }
}

async fn old(State(ledger): State<Ledger>, attempt: Attempt, Msg(entry): Msg<EntryV1>) {
    ledger.note(1, entry.n, &attempt);
}

async fn new(State(ledger): State<Ledger>, attempt: Attempt, Msg(entry): Msg<Entry>) {
    assert!(!entry.currency.is_empty());
    ledger.note(2, entry.n, &attempt);
}

async fn start(url: &str, ledger: &Path, version: &str, keyed: bool, within: Duration) -> Running {
    let bus = Bus::connect(url).await.unwrap();
    let books = Service::new("books").bus(bus);
    let books = match (version, keyed) {
        ("1", false) => books.on(old.await_version(within)),
        ("1", true) => books.on(old.await_version(within).keyed()),
        (_, false) => books.on(new.await_version(within)),
        (_, true) => books.on(new.await_version(within).keyed()),
    };
    books.with_state(Ledger(Arc::new(ledger.to_owned()))).start().await.unwrap()
}

/// Not a test: a member in a separate process, until its input ends.
#[tokio::test]
#[ignore = "run by other tests as a child process"]
async fn member_as_a_child() {
    let Ok(url) = std::env::var("DEPLOY_URL") else { return };
    let word = |name: &str| std::env::var(name).unwrap();
    let within = Duration::from_millis(word("DEPLOY_WITHIN").parse().unwrap());
    let ledger = PathBuf::from(word("DEPLOY_LEDGER"));
    let running = start(&url, &ledger, &word("DEPLOY_VERSION"), word("DEPLOY_KEYED") == "true", within).await;
    println!(">ready");
    tokio::task::spawn_blocking(|| std::io::stdin().lines().count()).await.unwrap();
    let bus = running.bus().clone();
    running.drain().await.unwrap();
    bus.close().await.unwrap();
    println!(">gone");
}

/// One bus, its ledger, and the settings of the members.
struct Fleet {
    url: String,
    ledger: PathBuf,
    keyed: bool,
    within: Duration,
    bus: Bus,
    _folder: tempfile::TempDir,
}

/// A member's process; killed when dropped.
struct Member {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Box<dyn Iterator<Item = String> + Send>,
}

impl Member {
    fn says(&mut self, word: &str) {
        assert!(self.lines.any(|line| line.contains(word)), "the member ended before it printed {word:?}");
    }

    /// Drains the member, as a deployment would.
    fn stop(mut self) {
        drop(self.stdin.take());
        self.says(">gone");
        self.child.wait().unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Fleet {
    async fn new(url: impl FnOnce(&Path) -> String, keyed: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = url(folder.path());
        let (bus, ledger) = (Bus::connect(&url).await.unwrap(), folder.path().join("ledger"));
        std::fs::write(&ledger, "").unwrap();
        Self { url, ledger, keyed, within: Duration::from_secs(24 * 3600), bus, _folder: folder }
    }

    /// Starts a member that knows the event up to `version`.
    fn member(&self, version: u32) -> Member {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["versions::deploy::member_as_a_child", "--exact", "--ignored", "--nocapture"]);
        command.env("DEPLOY_URL", &self.url).env("DEPLOY_LEDGER", &self.ledger);
        command.env("DEPLOY_VERSION", version.to_string()).env("DEPLOY_KEYED", self.keyed.to_string());
        command.env("DEPLOY_WITHIN", self.within.as_millis().to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut member = Member { stdin: child.stdin.take(), child, lines: Box::new(lines) };
        member.says(">ready");
        member
    }

    async fn publish(&self, version: u32, account: &str, n: u32) {
        let account = account.to_owned();
        match version {
            1 => self.bus.publish(EntryV1 { account, n }).await.map(drop).unwrap(),
            _ => self.bus.publish(Entry { account, n, currency: "CHF".into() }).await.map(drop).unwrap(),
        }
    }

    /// Returns the entries handled so far: number, version of the handler, attempt.
    fn handled(&self) -> Vec<(u32, u32, u32)> {
        let text = std::fs::read_to_string(&self.ledger).unwrap();
        let line = |line: &str| {
            let mut words = line.split(' ').map(|word| word.trim_start_matches('v').parse().unwrap());
            (words.next().unwrap(), words.next().unwrap(), words.next().unwrap())
        };
        text.lines().map(line).collect()
    }

    /// Waits until every number of `wanted` was handled, and checks the handler's version and that it was the
    /// first attempt.
    async fn until(&self, wanted: &[(u32, Option<u32>)]) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(90);
        loop {
            let handled = self.handled();
            if wanted.iter().all(|(n, _)| handled.iter().any(|(done, ..)| done == n)) {
                for (n, version) in wanted {
                    let (_, by, attempt) = handled.iter().find(|(done, ..)| done == n).unwrap();
                    assert!(version.is_none_or(|version| version == *by), "{n} was handled by v{by}");
                    assert_eq!(*attempt, 1, "waiting counted as attempts of {n}");
                }
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "want {wanted:?}, was handled: {handled:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn place(&self, n: u32) -> usize {
        self.handled().iter().position(|(done, ..)| *done == n).unwrap()
    }

    async fn filters(&self) -> Vec<String> {
        let groups = self.bus.admin().groups().await.unwrap();
        let group = groups.iter().find(|status| status.group.as_str() == GROUP).unwrap();
        group.filters.iter().map(ToString::to_string).collect()
    }
}

/// Runs a whole deployment on one bus: new publisher, new consumer, and roll-back.
async fn deploys(url: impl FnOnce(&Path) -> String, keyed: bool) {
    let fleet = Fleet::new(url, keyed).await;
    // The group as builds created it that knew only a handler's own versions.
    let lineage = [Pattern::new("ledger.entry.v1").unwrap()];
    let spec = Subscribe { keyed, ..Subscribe::group(Group::new(GROUP).unwrap(), lineage) };
    drop(fleet.bus.subscribe(spec).await.unwrap());

    // The publisher is updated first: version 2 waits for a member that knows it, the later messages of its
    // key wait behind it, and other messages are handled.
    let first = fleet.member(1);
    assert_eq!(fleet.filters().await, ["ledger.entry.*"]);
    fleet.publish(1, "a", 1).await;
    fleet.publish(2, "a", 2).await;
    fleet.publish(1, "a", 3).await;
    fleet.publish(1, "b", 4).await;
    fleet.until(&[(1, Some(1)), (4, Some(1))]).await;
    let second = fleet.member(2);
    fleet.until(&[(2, Some(2)), (3, None)]).await;
    if keyed {
        assert!(fleet.place(2) < fleet.place(3), "{:?}", fleet.handled());
    }

    // An old member that restarts after the new one does not narrow the group's filters.
    first.stop();
    let first = fleet.member(1);
    assert_eq!(fleet.filters().await, ["ledger.entry.*"]);
    for n in 10..16 {
        fleet.publish(2, &format!("k{n}"), n).await;
        fleet.publish(1, &format!("k{n}"), n + 10).await;
    }
    let newer: Vec<_> = (10..16).map(|n| (n, Some(2))).collect();
    fleet.until(&newer).await;
    fleet.until(&(20..26).map(|n| (n, None)).collect::<Vec<_>>()).await;

    // A roll-back: messages of the new version wait until it is deployed again.
    second.stop();
    fleet.publish(2, "a", 30).await;
    fleet.publish(1, "c", 31).await;
    fleet.until(&[(31, Some(1))]).await;
    first.stop();
    let second = fleet.member(2);
    fleet.until(&[(30, Some(2))]).await;

    // The consumer is updated first: it knows both versions.
    fleet.publish(1, "a", 40).await;
    fleet.publish(2, "a", 41).await;
    fleet.until(&[(40, Some(2)), (41, Some(2))]).await;
    second.stop();
    assert_eq!(fleet.handled().len(), 20, "nothing was handled twice: {:?}", fleet.handled());
    assert!(fleet.bus.admin().dead_letters(DeadLetterFilter::default()).await.unwrap().is_empty());
    // However the members left, the group has no unsettled message.
    let groups = fleet.bus.admin().groups().await.unwrap();
    let status = groups.iter().find(|status| status.group.as_str() == GROUP).unwrap();
    assert_eq!((status.waiting, status.in_flight), (0, 0), "{status:?}");
    fleet.bus.close().await.unwrap();
}

/// When no member knows the version within the given time, the message becomes a dead letter, and a replay
/// delivers it to a member that does.
async fn gives_up(url: impl FnOnce(&Path) -> String, keyed: bool) {
    let mut fleet = Fleet::new(url, keyed).await;
    fleet.within = Duration::from_secs(1);
    let first = fleet.member(1);
    fleet.publish(2, "a", 1).await;
    fleet.publish(1, "a", 2).await;
    fleet.until(&[(2, Some(1))]).await;
    let letters = async || fleet.bus.admin().dead_letters(DeadLetterFilter::default()).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while letters().await.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "no dead letter");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let letter = letters().await.remove(0);
    assert_eq!((letter.reason, letter.attempts), (Reason::UnknownVersion, 1));
    assert!(letter.error.contains("`ledger.entry.v2`") && letter.error.contains("v1"), "{}", letter.error);
    let waited = letter.dead_at.duration_since(letter.published_at);
    assert!(waited.as_millis() >= 950, "{waited:?}");
    first.stop();
    let second = fleet.member(2);
    let other = DeadLetterFilter { reason: Some(Reason::UnknownType), ..DeadLetterFilter::default() };
    assert_eq!(fleet.bus.admin().replay_dead_letters(other).await.unwrap(), 0);
    let these = DeadLetterFilter { reason: Some(Reason::UnknownVersion), ..DeadLetterFilter::default() };
    assert_eq!(fleet.bus.admin().replay_dead_letters(these).await.unwrap(), 1);
    fleet.until(&[(1, Some(2))]).await;
    second.stop();
    fleet.bus.close().await.unwrap();
}

macro_rules! on_every_bus {
    ($($bus:ident: $url:expr;)*) => {$(
        mod $bus {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn a_new_version_loses_nothing() {
                deploys($url, false).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn a_new_version_loses_nothing_and_keys_keep_their_order() {
                deploys($url, true).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn what_nobody_knows_becomes_a_dead_letter() {
                gives_up($url, false).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn what_nobody_knows_becomes_a_dead_letter_and_frees_its_key() {
                gives_up($url, true).await;
            }
        }
    )*};
}

/// Returns the URL of a shared server with a namespace that only this test uses.
fn apart(url: &str) -> String {
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}namespace=deploy-{:016x}", fastrand::u64(..))
}

on_every_bus! {
    sqlite: |folder| format!("sqlite:{}", folder.join("bus.db").display());
    nats_old: { let url = apart(&Nats::shared(Generation::Old).await.url()); move |_| url };
    nats_new: { let url = apart(&Nats::shared(Generation::New).await.url()); move |_| url };
    redis_old: { let url = apart(&Redis::shared(Generation::Old).await.url()); move |_| url };
    redis_new: { let url = apart(&Redis::shared(Generation::New).await.url()); move |_| url };
    rabbitmq_old: { let url = apart(&Rabbit::shared(Generation::Old).await.url()); move |_| url };
    rabbitmq_new: { let url = apart(&Rabbit::shared(Generation::New).await.url()); move |_| url };
}
