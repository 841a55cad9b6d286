//! The row `processes`: several processes on one SQLite file, each of which publishes and is a member of one group.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::{sleep, timeout};

use super::figures::{Figure, figure};
use super::member::{self, GO, GROUP, PUBLISHED, READY, STOP, Share};
use super::point::Task;
use super::traffic::{STALLED, Traffic};
use crate::spawn;

/// The pause between two looks at the backlog that the processes still handle.
const LOOK: Duration = Duration::from_millis(100);

/// One running process.
struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(task: &str) -> Result<Self> {
        let mut command = spawn::command(&["growth", "--member", task])?;
        let mut child = command.stdin(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        Ok(Self { child, input, output })
    }

    async fn tell(&mut self, line: &str) -> Result<()> {
        self.input.write_all(line.as_bytes()).await?;
        Ok(self.input.write_all(b"\n").await?)
    }

    /// Returns the next line of the process; the error has the reason when the process ended instead.
    async fn line(&mut self, patience: Duration) -> Result<String> {
        match timeout(patience, self.output.next_line()).await.context("a process does not proceed")?? {
            Some(line) => Ok(line),
            None => {
                let mut text = Vec::new();
                if let Some(mut stderr) = self.child.stderr.take() {
                    stderr.read_to_end(&mut text).await?;
                }
                bail!("a process ended: {}", spawn::reason(&text))
            }
        }
    }

    async fn expect(&mut self, wanted: &str, patience: Duration) -> Result<()> {
        let line = self.line(patience).await?;
        if line != wanted {
            bail!("{line:?} instead of {wanted:?}");
        }
        Ok(())
    }
}

/// Measures `task.size` processes that publish and consume at the same time for `task.load.seconds`, and then handle the
/// messages that are left.
pub async fn measure(task: &Task) -> Result<Vec<Figure>> {
    if task.size == 0 {
        bail!("a size must be at least 1");
    }
    let own = Traffic::open(&task.place.url, &task.load).await?;
    own.create(&[GROUP]).await?;
    let text = serde_json::to_string(&member::Task { place: task.place.clone(), load: task.load })?;
    let mut processes = (0..task.size).map(|_| Process::start(&text)).collect::<Result<Vec<_>>>()?;
    for process in &mut processes {
        process.expect(READY, STALLED).await?;
    }
    let start = Instant::now();
    for process in &mut processes {
        process.tell(GO).await?;
    }
    let patience = STALLED + Duration::from_secs_f64(task.load.seconds);
    for process in &mut processes {
        process.expect(PUBLISHED, patience).await?;
    }
    emptied(&own).await?;
    let whole = start.elapsed();
    let mut shares = Vec::with_capacity(processes.len());
    for process in &mut processes {
        process.tell(STOP).await?;
        shares.push(serde_json::from_str::<Share>(&process.line(STALLED).await?)?);
    }
    for process in &mut processes {
        process.child.wait().await?;
    }
    own.transport.close().await?;
    figures(&shares, whole)
}

/// Waits until no message of the group is unsettled.
async fn emptied(own: &Traffic) -> Result<()> {
    let end = Instant::now() + STALLED;
    loop {
        let groups = own.transport.admin().groups().await?;
        let left: u64 = groups.iter().map(|group| group.waiting + group.in_flight).sum();
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{left} messages are unsettled");
        }
        sleep(LOOK).await;
    }
}

/// Returns the figures of all processes together. A message that was delivered twice or never is an error: no process
/// ended and no lease expired.
fn figures(shares: &[Share], whole: Duration) -> Result<Vec<Figure>> {
    let published: u64 = shares.iter().map(|share| share.published).sum();
    let delivered: u64 = shares.iter().map(|share| share.delivered).sum();
    if published != delivered {
        bail!("{delivered} deliveries of {published} messages");
    }
    let each = |seconds: f64| seconds * 1e6 / published.max(1) as f64;
    let longest = |of: fn(&Share) -> f64| shares.iter().map(of).fold(0.0, f64::max) * 1e3;
    Ok(vec![
        figure("time us/message", each(whole.as_secs_f64())),
        figure("CPU us/message", each(shares.iter().map(|share| share.cpu).sum())),
        figure("published max/min", unfairness(shares, |share| share.published)),
        figure("delivered max/min", unfairness(shares, |share| share.delivered)),
        figure("longest open ms", longest(|share| share.open)),
        figure("longest publish of 100 ms", longest(|share| share.publish)),
        figure("longest publish to delivery ms", longest(|share| share.delivery)),
    ])
}

/// Returns the largest share divided by the smallest; a process without any counts as one message, so that the ratio is
/// finite.
fn unfairness(shares: &[Share], of: fn(&Share) -> u64) -> f64 {
    let largest = shares.iter().map(of).max().unwrap_or(1).max(1);
    let smallest = shares.iter().map(of).min().unwrap_or(1).max(1);
    largest as f64 / smallest as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(published: u64, delivered: u64) -> Share {
        Share { published, delivered, ..Default::default() }
    }

    #[test]
    fn the_ratio_of_shares_is_finite() {
        let shares = [share(400, 0), share(100, 500)];
        assert_eq!(unfairness(&shares, |share| share.published), 4.0);
        assert_eq!(unfairness(&shares, |share| share.delivered), 500.0);
    }

    #[test]
    fn a_lost_message_is_an_error() {
        assert!(figures(&[share(100, 99)], Duration::from_secs(1)).is_err());
        assert!(figures(&[share(100, 40), share(0, 60)], Duration::from_secs(1)).is_ok());
    }
}
