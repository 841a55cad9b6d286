//! One server's process: start, stop, kill, pause, resume, on the same ports with the same data.

use crate::folder::{Folder, root};
use crate::port::Port;
use crate::{Error, ErrorKind, Result, spawner};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long a server may take to be ready. RabbitMQ on a busy machine is the one that needs it.
const READY: Duration = Duration::from_secs(120);
/// How long a server may take to end after SIGTERM.
const ENDED: Duration = Duration::from_secs(60);
/// How often something that has no signal is looked at.
const LOOK: Duration = Duration::from_millis(10);

type Looking = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Makes the command that starts the server; called for each start.
pub(crate) type Launch = Box<dyn Fn() -> Command + Send + Sync>;
/// Asks the server in its own protocol whether it is ready.
pub(crate) type Probe = Box<dyn Fn() -> Looking + Send + Sync>;

/// A server's process, its folder and its ports, which stay when it is down. Dropping it kills the server (SIGKILL)
/// and removes the folder.
pub struct Process {
    name: &'static str,
    launch: Launch,
    probe: Probe,
    child: Mutex<Option<Child>>,
    ports: Vec<Port>,
    folder: Folder,
}

/// Makes a server and starts it; again with other ports where a program that is not ours took one meanwhile.
pub(crate) async fn started(make: impl Fn() -> Result<Process>) -> Result<Process> {
    for _ in 0..3 {
        let process = make()?;
        match process.start().await {
            Err(error) if error.to_string().to_lowercase().contains("already in use") => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(process),
        }
    }
    Err(Error::new(ErrorKind::Start, "three times in a row the chosen port was taken by another program"))
}

/// Where a server will live, before its command line is known.
pub(crate) struct Place {
    pub(crate) folder: Folder,
    pub(crate) ports: Vec<Port>,
}

impl Place {
    /// A new folder and so many free ports.
    pub(crate) fn new(server: &str, limit: Option<u32>, ports: usize) -> Result<Self> {
        let locks = root()?.join("ports");
        let ports = (0..ports).map(|_| Port::free(&locks)).collect::<Result<_>>()?;
        Ok(Self { folder: Folder::new(server, limit)?, ports })
    }
}

impl Process {
    pub(crate) fn new(name: &'static str, place: Place, launch: Launch, probe: Probe) -> Self {
        Self { name, launch, probe, child: Mutex::new(None), ports: place.ports, folder: place.folder }
    }

    /// Starts the server where it is down, and waits until it answers. Nothing happens where it runs already.
    ///
    /// # Errors
    /// When it ends or does not answer within two minutes; the text has the end of its log.
    pub async fn start(&self) -> Result<()> {
        if !self.is_running() {
            let log = self.open_log()?;
            let also = log.try_clone().map_err(|e| Error::system("cannot share the log", e))?;
            let mut command = (self.launch)();
            command.process_group(0).stdin(Stdio::piped()).stdout(log).stderr(also);
            *self.child() = Some(spawner::spawn(command)?);
        }
        self.ready().await
    }

    /// Waits until the server answers in its own protocol.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn ready(&self) -> Result<()> {
        let end = Instant::now() + READY;
        loop {
            let last = match tokio::time::timeout(Duration::from_secs(2), (self.probe)()).await {
                Ok(Ok(())) if self.is_running() => return Ok(()),
                Ok(Ok(())) => "somebody else answers on its port".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer within 2 s".to_owned(),
            };
            let problem = if !self.is_running() {
                "ended before it was ready".to_owned()
            } else if Instant::now() > end {
                format!("was not ready within {READY:?} ({last})")
            } else {
                sleep(LOOK).await;
                continue;
            };
            return Err(Error::new(
                ErrorKind::Start,
                format!("{} {problem}; its log ends:\n{}", self.name, self.log_end()),
            ));
        }
    }

    /// Asks the server to end (SIGTERM) and waits until it has. Where it is paused it is resumed for that.
    ///
    /// # Errors
    /// When it still runs after a minute.
    pub async fn stop(&self) -> Result<()> {
        if self.is_running() {
            self.signal(Signal::TERM)?;
            let _ = self.resume(); // it may be gone already
        }
        self.ended(Vec::new()).await
    }

    /// Kills the server (SIGKILL), with all processes it started, and waits until it is gone.
    ///
    /// # Errors
    /// When the system does not let it go.
    pub async fn kill(&self) -> Result<()> {
        let below = self.id().map(descendants).unwrap_or_default();
        if self.is_running() {
            self.signal_all(Signal::KILL)?;
        }
        self.ended(below).await
    }

    /// Stops the server's clock (SIGSTOP): connections stay open, nothing is answered. Returns when it stands still.
    ///
    /// # Errors
    /// When it does not run, or does not stand still within a second.
    pub fn pause(&self) -> Result<()> {
        self.signal_all(Signal::STOP)?;
        let end = Instant::now() + Duration::from_secs(1);
        // Microseconds, as a rule: each thread stops when it next leaves the kernel or is next run.
        while !self.id().is_some_and(stands_still) {
            if Instant::now() > end {
                return Err(Error::new(ErrorKind::Control, format!("{} does not stand still", self.name)));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Lets a paused server go on (SIGCONT).
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal_all(Signal::CONT)
    }

    /// [`stop`](Self::stop), then [`start`](Self::start): the same port, the same data.
    ///
    /// # Errors
    /// As those.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// Whether the process lives; a paused one does.
    pub fn is_running(&self) -> bool {
        self.child().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The process id while it runs.
    pub fn id(&self) -> Option<u32> {
        if self.is_running() { self.child().as_ref().map(Child::id) } else { None }
    }

    /// The loopback port of its main protocol.
    pub fn port(&self) -> u16 {
        self.ports[0].number()
    }

    /// The folder with its configuration, its `log` and its `data`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Lets its folder stay for a day after it is dropped.
    pub fn keep(&self) {
        self.folder.keep();
    }

    /// What it wrote to standard output and standard error since its first start.
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Bytes of memory it holds now (resident set); none when it does not run.
    pub fn memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    }

    /// Writes to its standard input.
    pub(crate) fn write(&self, text: &str) -> io::Result<()> {
        match self.child().as_mut().and_then(|child| child.stdin.as_mut()) {
            Some(stdin) => stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()),
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "the server does not run")),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn open_log(&self) -> Result<File> {
        let path = self.log_path();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.map_err(|e| Error::system(format!("cannot open {}", path.display()), e))
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id =
            self.id().ok_or_else(|| Error::new(ErrorKind::Control, format!("{} does not run", self.name)))?;
        send(id, signal).map_err(|e| Error::system(format!("cannot signal {}", self.name), e))
    }

    /// Signals the process and everything below it: PostgreSQL's backends lead groups of their own.
    fn signal_all(&self, signal: Signal) -> Result<()> {
        let id =
            self.id().ok_or_else(|| Error::new(ErrorKind::Control, format!("{} does not run", self.name)))?;
        let below = descendants(id);
        send(id, signal).map_err(|e| Error::system(format!("cannot signal {}", self.name), e))?;
        for id in below {
            let _ = send(id, signal); // it may have ended meanwhile
        }
        Ok(())
    }

    /// Waits for the process, and for those below it: PostgreSQL does not start while one of them lives.
    async fn ended(&self, below: Vec<u32>) -> Result<()> {
        let end = Instant::now() + ENDED;
        while self.is_running() || below.iter().any(|id| lives(*id)) {
            if Instant::now() > end {
                return Err(Error::new(
                    ErrorKind::Control,
                    format!("{} still runs after {ENDED:?}; its log ends:\n{}", self.name, self.log_end()),
                ));
            }
            sleep(LOOK).await;
        }
        *self.child() = None;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.signal_all(Signal::KILL);
        }
        if let Some(child) = self.child().as_mut() {
            let _ = child.wait();
        }
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id = self.id();
        f.debug_struct("Process")
            .field("name", &self.name)
            .field("port", &self.port())
            .field("id", &id)
            .finish()
    }
}

fn send(id: u32, signal: Signal) -> io::Result<()> {
    let pid = Pid::from_raw(id.cast_signed()).expect("a process id is not zero");
    Ok(kill_process(pid, signal)?)
}

/// Whether all threads of a process are stopped.
fn stands_still(id: u32) -> bool {
    let mut threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    threads.all(|thread| state(&thread.path()) == Some('T'))
}

/// The state of a process or a thread as the system names it: `R` runs, `T` is stopped, `Z` has ended.
fn state(folder: &Path) -> Option<char> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Whether there is such a process; one that ended and waits for its parent to notice is none.
fn lives(id: u32) -> bool {
    state(Path::new(&format!("/proc/{id}"))).is_some_and(|state| state != 'Z')
}

/// All processes below this one, parents first.
fn descendants(id: u32) -> Vec<u32> {
    let mut all = vec![id];
    let mut next = 0;
    while next < all.len() {
        // Each thread lists the children that it started.
        let threads = fs::read_dir(format!("/proc/{}/task", all[next])).into_iter().flatten().flatten();
        for thread in threads {
            let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            all.extend(text.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
        next += 1;
    }
    all.split_off(1)
}
