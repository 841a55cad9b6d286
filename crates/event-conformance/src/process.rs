//! Second processes for cases: the program starts itself again in a role, and a case can kill it at any
//! moment.

use std::io::Write as _;
use std::process::Stdio;

use event_client::transport::{Serve, Transport};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::exam::{Exam, open};
use crate::message::{SHORT, With, group, key, keyed, subject, text};
use crate::requests::frame;

const ROLE: &str = "BACKBONE_EXAM_ROLE";
const URL: &str = "BACKBONE_EXAM_URL";
const LEDGER: &str = "BACKBONE_EXAM_LEDGER";

/// The work of a second process.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// Takes one message, prints that it has it, and keeps it.
    Hold,
    /// Takes messages of a group, one at a time, and prints those that it acknowledged.
    Share,
    /// Publishes in windows for ever and prints each confirmed message.
    Publish,
    /// Works on a keyed group and writes each action to the ledger.
    Work,
    /// Fails one message with a retry after [`RETRY`], prints when the retry is due, and stays a member of
    /// the group.
    Retry,
    /// Answers requests with their own bytes; a request with the body `hang` is kept unanswered, and the
    /// process prints that.
    Serve,
}

impl Role {
    const ALL: [Self; 6] = [Self::Hold, Self::Share, Self::Publish, Self::Work, Self::Retry, Self::Serve];

    fn name(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Share => "share",
            Self::Publish => "publish",
            Self::Work => "work",
            Self::Retry => "retry",
            Self::Serve => "serve",
        }
    }
}

/// Long enough for another process to start before the retry is due.
const RETRY: std::time::Duration = std::time::Duration::from_secs(4);

/// The maximum number of unsettled deliveries of one working process.
pub(crate) const WORK_CREDIT: usize = 16;

/// Plays a role when the exam started this process for one, and then does not return. Call it first in
/// `main`.
pub fn play_if_asked() {
    let Ok(name) = std::env::var(ROLE) else { return };
    let Some(role) = Role::ALL.into_iter().find(|role| role.name() == name) else {
        panic!("the exam has no role {name:?}")
    };
    let url = std::env::var(URL).expect("the exam gives a URL");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(play(role, &url));
    std::process::exit(0);
}

async fn play(role: Role, url: &str) {
    let bus = open(url).await.expect("the bus opens");
    match role {
        Role::Hold => {
            let subscription = bus.subscribe(group("g", 1).lease(SHORT)).await.expect("subscribed");
            let delivery = subscription.next().await.expect("a delivery");
            say(&text(&delivery));
            std::future::pending().await
        }
        Role::Retry => {
            let mut spec = group("g", 2).lease(SHORT);
            spec.keyed = std::env::var(LEDGER).is_ok_and(|order| order == "keyed");
            let subscription = bus.subscribe(spec).await.expect("subscribed");
            let delivery = subscription.next().await.expect("a delivery");
            let due = jiff::Timestamp::now() + RETRY;
            delivery.retry(RETRY, "failed").await.expect("stored");
            say(&due.as_millisecond().to_string());
            std::future::pending().await
        }
        Role::Share => {
            let subscription = bus.subscribe(group("g", 1).lease(SHORT)).await.expect("subscribed");
            say("ready");
            while let Some(delivery) = subscription.next().await {
                let text = text(&delivery);
                delivery.ack().await.expect("acknowledged");
                say(&text);
            }
        }
        Role::Publish => {
            let mut confirms = std::collections::VecDeque::new();
            for n in 0_u64.. {
                confirms.push_back((n, bus.publish(keyed("k", n.to_string()))));
                if confirms.len() == 64
                    && let Some((n, confirm)) = confirms.pop_front()
                {
                    confirm.await.expect("confirmed");
                    say(&n.to_string());
                }
            }
        }
        Role::Serve => serve(bus.as_ref()).await,
        Role::Work => {
            let ledger = std::env::var(LEDGER).expect("the exam gives a ledger");
            let spec = group("g", WORK_CREDIT).keyed().lease(SHORT);
            let subscription = bus.subscribe(spec).await.expect("subscribed");
            let workers: Vec<_> = (0..8)
                .map(|_| {
                    let subscription = subscription.clone();
                    // Appended lines are not split and have one order for all processes that write the file.
                    let mut ledger = std::fs::File::options().append(true).open(&ledger).expect("a ledger");
                    tokio::spawn(async move {
                        let pid = std::process::id();
                        while let Some(delivery) = subscription.next().await {
                            let (key, n) = (key(&delivery), text(&delivery));
                            let attempt = delivery.info().attempt;
                            ledger
                                .write_all(format!("handled {key} {n} {pid} {attempt}\n").as_bytes())
                                .expect("written");
                            delivery.ack().await.expect("acknowledged");
                            ledger
                                .write_all(format!("acked {key} {n} {pid} {attempt}\n").as_bytes())
                                .expect("written");
                        }
                    })
                })
                .collect();
            for worker in workers {
                worker.await.expect("a worker panicked");
            }
        }
    }
}

async fn serve(bus: &dyn Transport) {
    let spec = Serve::new("shop", vec![subject("shop.quote")], 8);
    let mut incoming = bus.requests().serve(spec).await.expect("served");
    say("ready");
    let mut kept = Vec::new();
    while let Some(mut request) = incoming.recv().await {
        if &*request.message.payload == b"hang" {
            say("hanging");
            kept.push(request);
            continue;
        }
        let mut answer = frame("", true);
        answer.payload = request.message.payload.clone();
        // The caller may have left.
        let _ = request.responder.send(answer).await;
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The exam may have stopped reading the output.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A running second process. It is killed when dropped.
pub(crate) struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub(crate) pid: u32,
}

impl Process {
    pub(crate) fn start(exam: &Exam, role: Role) -> Self {
        Self::start_with(exam, role, "")
    }

    pub(crate) fn start_with(exam: &Exam, role: Role, ledger: &str) -> Self {
        let mut child = Command::new(exam.program())
            .env(ROLE, role.name())
            .env(URL, exam.url())
            .env(LEDGER, ledger)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the exam's own program starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let pid = child.id().expect("it runs");
        Self { child, lines, pid }
    }

    /// Returns the next line that the process prints; `None` when it has ended.
    pub(crate) async fn says(&mut self) -> Option<String> {
        self.lines.next_line().await.expect("its output is readable")
    }

    /// Kills the process with SIGKILL; returns when it has ended. Its earlier output can still be read.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// Returns whether the process ended without being killed.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("its state is known").is_some()
    }
}
