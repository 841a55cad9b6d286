//! Controls one server's process: start, stop, kill, pause and resume, on the same ports with the same data.

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

/// How long a server may take to be ready. Only RabbitMQ on a busy machine needs this long.
const READY: Duration = Duration::from_secs(120);
/// How long a server may take to end after SIGTERM.
const ENDED: Duration = Duration::from_secs(60);
/// The poll interval for conditions without a signal.
const LOOK: Duration = Duration::from_millis(10);

type Looking = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Makes the command that starts the server; called for each start.
pub(crate) type Launch = Box<dyn Fn() -> Command + Send + Sync>;
/// Checks in the server's own protocol whether it is ready.
pub(crate) type Probe = Box<dyn Fn() -> Looking + Send + Sync>;

/// A server's process, its folder and its ports, which are kept while the server is down. Dropping it kills
/// the server (SIGKILL) and removes the folder.
pub struct Process {
    name: &'static str,
    launch: Launch,
    probe: Probe,
    child: Mutex<Option<Child>>,
    ports: Vec<Port>,
    folder: Folder,
}

/// Creates a server and starts it; again with other ports when another program has taken one meanwhile.
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

/// The folder and ports of a server, before its command line is known.
pub(crate) struct Place {
    pub(crate) folder: Folder,
    pub(crate) ports: Vec<Port>,
}

impl Place {
    /// Creates a folder and reserves `ports` free ports.
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

    /// Starts the server when it is not running, and waits until it answers. Does nothing when it is running.
    ///
    /// # Errors
    /// When it ends or does not answer within two minutes; the text contains the end of its log.
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
                Ok(Ok(())) => "another program answers on its port".to_owned(),
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

    /// Sends SIGTERM to the server and waits until it has ended. A paused server is resumed for that.
    ///
    /// # Errors
    /// When it still runs after a minute.
    pub async fn stop(&self) -> Result<()> {
        if self.is_running() {
            self.signal(Signal::TERM)?;
            let _ = self.resume(); // it may have ended already
        }
        self.ended(Vec::new()).await
    }

    /// Kills the server (SIGKILL), with all processes that it started, and waits until they have ended.
    ///
    /// # Errors
    /// When the processes have not ended in time.
    pub async fn kill(&self) -> Result<()> {
        let below = self.id().map(descendants).unwrap_or_default();
        if self.is_running() {
            self.signal_all(Signal::KILL)?;
        }
        self.ended(below).await
    }

    /// Suspends the server (SIGSTOP): connections stay open, and no request is answered. Returns when all its
    /// threads are stopped.
    ///
    /// # Errors
    /// When it is not running, or its threads are not stopped within a second.
    pub fn pause(&self) -> Result<()> {
        self.signal_all(Signal::STOP)?;
        let end = Instant::now() + Duration::from_secs(1);
        // Usually takes microseconds: each thread stops when it next leaves the kernel or is next scheduled.
        while !self.id().is_some_and(stands_still) {
            if Instant::now() > end {
                return Err(Error::new(
                    ErrorKind::Control,
                    format!("{} did not stop within a second of SIGSTOP", self.name),
                ));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Resumes a paused server (SIGCONT).
    ///
    /// # Errors
    /// When it is not running.
    pub fn resume(&self) -> Result<()> {
        self.signal_all(Signal::CONT)
    }

    /// [`stop`](Self::stop), then [`start`](Self::start): the same port, the same data.
    ///
    /// # Errors
    /// As for those two.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// Returns whether the process exists; a paused process does.
    pub fn is_running(&self) -> bool {
        self.child().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Returns the process id while the process runs.
    pub fn id(&self) -> Option<u32> {
        if self.is_running() { self.child().as_ref().map(Child::id) } else { None }
    }

    /// Returns the loopback port of the server's main protocol.
    pub fn port(&self) -> u16 {
        self.ports[0].number()
    }

    /// Returns the folder with the server's configuration, its `log` and its `data`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps the folder for a day after this value is dropped.
    pub fn keep(&self) {
        self.folder.keep();
    }

    /// Returns the text that the server wrote to standard output and standard error since its first start.
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Returns the memory that the server uses now (resident set), in bytes; none when it is not running.
    pub fn memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    }

    /// Writes to the server's standard input.
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

    /// Signals the process and all its descendants: PostgreSQL's backends lead process groups of their own.
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

    /// Waits until the process and those below it have ended: PostgreSQL does not start while one of them is
    /// running.
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

/// Returns whether all threads of a process are stopped.
fn stands_still(id: u32) -> bool {
    let mut threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    threads.all(|thread| state(&thread.path()) == Some('T'))
}

/// Returns the state of a process or a thread as the system names it: `R` is running, `T` is stopped, `Z` has
/// ended.
fn state(folder: &Path) -> Option<char> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Returns whether the process exists; a zombie, which has ended and has not been reaped by its parent, does
/// not count.
fn lives(id: u32) -> bool {
    state(Path::new(&format!("/proc/{id}"))).is_some_and(|state| state != 'Z')
}

/// Returns all processes below this one, parents first.
fn descendants(id: u32) -> Vec<u32> {
    let mut all = vec![id];
    let mut next = 0;
    while next < all.len() {
        // Each thread's `children` file lists the children that the thread started.
        let threads = fs::read_dir(format!("/proc/{}/task", all[next])).into_iter().flatten().flatten();
        for thread in threads {
            let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            all.extend(text.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
        next += 1;
    }
    all.split_off(1)
}
