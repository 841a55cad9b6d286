//! Runs child processes: this test binary, started as a program with its own tasks.
//!
//! The child runs the crate's command line with the given arguments, so these tests call `worker`, `beat` and the
//! other subcommands as a user's program would.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use clap::Parser;
use jiff::Timestamp;
use task_queue::{
    TaskContext,
    command::{Settings, TaskCommand},
    task,
};

const ARGS: &str = "TASK_TEST_CHILD";
const STORE: &str = "TASK_TEST_STORE";
const BEGIN: &str = "-----begin-----";

#[derive(Parser)]
struct Cli {
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: TaskCommand,
}

/// Writes its start and its end to a journal that all processes share.
#[task(retries = 3, backoff = "1ms")]
pub(crate) async fn journal(context: TaskContext, path: PathBuf, millis: u64) -> Result<u32, String> {
    let note = |what: &str| {
        let line =
            format!("{what} {} {} {}\n", context.id(), std::process::id(), Timestamp::now().as_microsecond());
        let file = std::fs::OpenOptions::new().append(true).create(true).open(&path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).map_err(|error| error.to_string())
    };
    note("start")?;
    tokio::time::sleep(Duration::from_millis(millis)).await;
    note("end")?;
    Ok(context.attempt())
}

/// Ends its own process, as a bug in other code may.
#[task]
pub(crate) async fn abort() -> Result<(), String> {
    std::process::abort()
}

/// A task whose options are not the defaults.
#[task(queue = "mail", retries = 7, priority = 4, crashes = 2, expires = "2h", result_ttl = "5m", unique)]
pub(crate) async fn mailed(to: String, copies: u32) -> Result<String, String> {
    Ok(format!("{to} {copies}"))
}

/// The child's `main`; does nothing when the binary runs as a test.
#[test]
fn entry() {
    let (Ok(args), Ok(url)) = (std::env::var(ARGS), std::env::var(STORE)) else { return };
    let args: Vec<String> = serde_json::from_str(&args).unwrap();
    println!("\n{BEGIN}");
    let cli = Cli::try_parse_from(std::iter::once("tasks".to_owned()).chain(args))
        .unwrap_or_else(|error| error.exit());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outcome = runtime.block_on(cli.command.run(
        Settings::new(Some(url), cli.json),
        |worker| worker.register(journal).register(abort).register(mailed),
        async {
            let mut terminate =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
            terminate.recv().await;
        },
    ));
    if let Err(error) = &outcome {
        eprintln!("error: {error}");
    }
    std::process::exit(i32::from(outcome.is_err()));
}

fn command(url: &str, args: &[&str]) -> Command {
    set_up(Command::new(std::env::current_exe().unwrap()), url, args)
}

fn set_up(mut command: Command, url: &str, args: &[&str]) -> Command {
    command
        .args(["child::entry", "--exact", "--nocapture"])
        .env(ARGS, serde_json::to_string(args).unwrap())
        .env(STORE, url);
    command
}

/// A running child; it is killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(url: &str, args: &[&str]) -> Self {
        Self(command(url, args).stdout(Stdio::null()).spawn().unwrap())
    }

    /// Starts a child whose standard error is captured.
    pub(crate) fn start_heard(url: &str, args: &[&str]) -> Self {
        Self(command(url, args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Sends SIGTERM, waits for a clean end, and returns the child's standard error.
    pub(crate) fn said(mut self) -> String {
        self.signal("TERM");
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(self.0.wait().unwrap().success(), "{said}");
        said
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        assert!(Command::new("sh").args(["-c", &format!("kill -{name} {id}")]).status().unwrap().success());
    }

    /// Sends SIGKILL and waits for the end of the process.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Sends SIGTERM and waits for a clean end.
    pub(crate) fn terminate(mut self) {
        self.signal("TERM");
        assert!(self.0.wait().unwrap().success());
    }

    /// Waits for an end with an error status.
    pub(crate) fn crashed(mut self) {
        assert!(!self.0.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a subcommand to its end: returns its output or its error.
pub(crate) fn verb(url: &str, args: &[&str]) -> Result<String, String> {
    answer(command(url, args))
}

/// The same as a user without write access everywhere, whichever user runs the tests. `folder` is a folder that all
/// users may enter.
pub(crate) fn verb_unprivileged(folder: &Path, url: &str, args: &[&str]) -> Result<String, String> {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !root {
        return verb(url, args);
    }
    // A copy, because other users may not be able to enter the build directory.
    let program = folder.join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    answer(set_up(command, url, args))
}

fn answer(command: Command) -> Result<String, String> {
    let said = hear(command);
    if said.ok { Ok(said.out) } else { Err(said.err) }
}

/// The output of a subcommand.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a subcommand to its end and returns its output.
pub(crate) fn said(url: &str, args: &[&str]) -> Said {
    hear(command(url, args))
}

fn hear(mut command: Command) -> Said {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let printed = String::from_utf8(stdout).unwrap();
    let (_, out) = printed.split_once(&format!("{BEGIN}\n")).unwrap_or_default();
    Said { ok: status.success(), out: out.to_owned(), err: String::from_utf8(stderr).unwrap() }
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Note {
    pub(crate) id: String,
    pub(crate) at: i64,
    pub(crate) start: bool,
    pub(crate) process: u32,
}

/// The journal in order of time.
pub(crate) fn read_journal(path: &Path) -> Vec<Note> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut notes: Vec<Note> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let start = words.next()? == "start";
            let id = words.next()?.to_owned();
            let process = words.next()?.parse().ok()?;
            Some(Note { id, start, process, at: words.next()?.parse().ok()? })
        })
        .collect();
    notes.sort_by_key(|note| note.at);
    notes
}
