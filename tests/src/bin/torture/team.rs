//! The child processes: two publishers, two workers of each active group, and the choice of those that faults
//! may hit.

use crate::Result;
use crate::broker::Broker;
use crate::options::Options;
use crate::work::CONCURRENCY;
use event_client::subject::{Group, Pattern};
use event_client::transport::Subscribe;
use event_client::{Bus, ErrorKind};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// The groups: one with order of keys, one without, and one that has no worker until the end.
pub(crate) const GROUPS: [&str; 3] = ["keyed", "free", "away"];

/// All children and their ledgers.
pub(crate) struct Team {
    folder: tempfile::TempDir,
    url: String,
    seed: u64,
    lanes: usize,
    pause: u64,
    publishers: Vec<Child>,
    /// Workers of the keyed group, then of the free one.
    workers: Vec<(usize, Child)>,
}

/// Connects, and repeats that until it succeeds: a child may be started in the middle of a fault.
pub(crate) async fn connect(url: &str) -> Result<Bus> {
    for _ in 0..600 {
        match Bus::connect(url).await {
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                sleep(Duration::from_millis(100)).await;
            }
            result => return Ok(result?),
        }
    }
    Err("no connection within a minute".into())
}

impl Team {
    /// Creates the groups, so that they receive every message, and starts all children.
    pub(crate) async fn start(options: &Options, broker: &Broker) -> Result<Self> {
        let bus = connect(broker.url()).await?;
        for group in GROUPS {
            let pattern = Pattern::new("torture.step.v1")?;
            let mut spec = Subscribe::group(Group::new(group)?, [pattern]);
            spec.keyed = group == "keyed";
            drop(bus.subscribe(spec).await?);
        }
        bus.close().await?;
        let mut team = Self {
            folder: tempfile::tempdir()?,
            url: broker.url().to_owned(),
            seed: options.seed,
            lanes: options.lanes,
            pause: options.pause,
            publishers: Vec::new(),
            workers: Vec::new(),
        };
        for group in [0, 0, 1, 1] {
            team.workers.push((group, team.worker(group)?));
        }
        team.start_publishers(options.pause)?;
        Ok(team)
    }

    pub(crate) fn start_publishers(&mut self, pause: u64) -> Result<()> {
        self.pause = pause;
        for number in 0..2 {
            self.publishers.push(self.publisher(number)?);
        }
        Ok(())
    }

    /// Keeps the ledgers after the run, and returns their folder.
    pub(crate) fn keep(&mut self) -> &Path {
        self.folder.disable_cleanup(true);
        self.folder.path()
    }

    /// Returns the ledger of a group's workers.
    pub(crate) fn handled(&self, group: &str) -> PathBuf {
        self.folder.path().join(group)
    }

    /// Returns the ledgers of the publishers.
    pub(crate) fn published(&self) -> [PathBuf; 2] {
        [0, 1].map(|number| self.folder.path().join(format!("published-{number}")))
    }

    /// Returns the sizes of the ledgers in bytes: publishers together, then each active group.
    pub(crate) fn progress(&self) -> [u64; 3] {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
        let published = self.published().iter().map(|path| size(path)).sum();
        [published, size(&self.handled(GROUPS[0])), size(&self.handled(GROUPS[1]))]
    }

    /// Kills the second publisher and starts a new one.
    pub(crate) async fn replace_publisher(&mut self) -> Result<()> {
        self.publishers[1].kill().await?;
        self.publishers[1] = self.publisher(1)?;
        Ok(())
    }

    /// Kills a worker, the second one of either group, and starts a new one.
    pub(crate) async fn replace_worker(&mut self, group: usize) -> Result<()> {
        let index = group * 2 + 1;
        self.workers[index].1.kill().await?;
        self.workers[index].1 = self.worker(group)?;
        Ok(())
    }

    /// Suspends a worker for a while: for the others it has disappeared, for itself no time has passed.
    pub(crate) async fn freeze_worker(&mut self, group: usize, time: Duration) -> Result<()> {
        let worker = &self.workers[group * 2 + 1].1;
        signal(worker, Signal::STOP)?;
        sleep(time).await;
        signal(worker, Signal::CONT)
    }

    /// Returns an error when one of the children has ended without being stopped.
    pub(crate) fn all_live(&mut self) -> Result<()> {
        let workers = self.workers.iter_mut().map(|(_, child)| child);
        for child in self.publishers.iter_mut().chain(workers) {
            if let Some(status) = child.try_wait()? {
                return Err(format!("a child process ended unexpectedly: {status}").into());
            }
        }
        Ok(())
    }

    /// Returns the children that no fault hits, by their role, with their process ids.
    pub(crate) fn steady(&self) -> Vec<(&'static str, u32)> {
        let all = [
            ("publisher", self.publishers.first()),
            ("keyed worker", self.workers.first().map(|(_, child)| child)),
            ("free worker", self.workers.get(2).map(|(_, child)| child)),
        ];
        all.into_iter().filter_map(|(name, child)| Some((name, child?.id()?))).collect()
    }

    /// Waits until each publisher is running: before that, it has no signal handler, and SIGTERM would just
    /// kill it.
    pub(crate) async fn publishers_at_work(&self) -> Result<()> {
        let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.len());
        for path in self.published() {
            let (mut tries, before) = (0, size(&path));
            while size(&path) == before {
                sleep(Duration::from_millis(20)).await;
                tries += 1;
                if tries > 3000 {
                    return Err("a publisher did not begin within a minute".into());
                }
            }
        }
        Ok(())
    }

    /// Lets the publishers finish the steps that they have begun.
    pub(crate) async fn stop_publishers(&mut self) -> Result<()> {
        for mut publisher in std::mem::take(&mut self.publishers) {
            end(&mut publisher, "a publisher").await?;
        }
        Ok(())
    }

    /// Stops all workers but those that no fault has hit: they ran through every fault and must still be
    /// running.
    pub(crate) async fn leave_to_the_steady(&mut self) -> Result<()> {
        for index in [3, 1] {
            let (group, mut worker) = self.workers.remove(index);
            end(&mut worker, &format!("a worker of `{}`", GROUPS[group])).await?;
        }
        Ok(())
    }

    /// Starts a worker for the group that had none.
    pub(crate) fn call_back(&mut self) -> Result<()> {
        let worker = self.worker(2)?;
        self.workers.push((2, worker));
        Ok(())
    }

    pub(crate) async fn stop_workers(&mut self) -> Result<()> {
        for (group, mut worker) in std::mem::take(&mut self.workers) {
            end(&mut worker, &format!("a worker of `{}`", GROUPS[group])).await?;
        }
        Ok(())
    }

    fn publisher(&self, number: usize) -> Result<Child> {
        let mut command = command("publish", &self.url, &self.published()[number])?;
        command.args(["--number", &number.to_string(), "--lanes", &self.lanes.to_string()]);
        command.args(["--pause", &self.pause.to_string(), "--seed", &self.seed.to_string()]);
        Ok(command.spawn()?)
    }

    fn worker(&self, group: usize) -> Result<Child> {
        let mut command = command("work", &self.url, &self.handled(GROUPS[group]))?;
        command.args(["--group", GROUPS[group], "--concurrency", &CONCURRENCY.to_string()]);
        if group == 0 {
            command.arg("--keyed");
        }
        Ok(command.spawn()?)
    }
}

fn command(role: &str, url: &str, ledger: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([role, "--url", url, "--ledger"]).arg(ledger).stdin(Stdio::null()).kill_on_drop(true);
    // A child's standard error goes to a file beside its ledger, which keeps the text of its predecessors.
    let log = ledger.with_extension("log");
    command.stderr(File::options().create(true).append(true).open(log)?);
    Ok(command)
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).ok_or("the child has ended")?;
    Ok(kill_process(id, signal)?)
}

async fn end(child: &mut Child, who: &str) -> Result<()> {
    signal(child, Signal::TERM)?;
    let status = timeout(Duration::from_secs(120), child.wait()).await;
    let status = status.map_err(|_| format!("{who} did not end within 120 s of SIGTERM"))??;
    if status.success() { Ok(()) } else { Err(format!("{who} ended with {status}").into()) }
}
