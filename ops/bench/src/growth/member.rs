//! Runs one of several processes on one SQLite file: it publishes as fast as it can, and is a member of the one group.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use event_client::confirm::Confirm;
use event_client::message::Message;
use event_client::subject::Subject;
use event_client::subscription::Subscription;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::args::Load;
use super::figures::Meter;
use super::store::Place;
use super::traffic::{Spec, Traffic};
use crate::contestant::CONTENT_TYPE;

/// The group of all processes.
pub const GROUP: Spec<'_> = Spec { group: "workers", pattern: "shared.>", keyed: false };
/// Messages that a process publishes before it awaits their confirmations.
const BATCH: usize = 100;
/// Acknowledgements that are not confirmed yet.
const AT_ONCE: usize = 64;

/// Lines by which the parent and its processes keep in step: each line that a process prints is followed by the
/// parent's next line.
pub const READY: &str = "ready";
pub const GO: &str = "go";
pub const PUBLISHED: &str = "published";
pub const STOP: &str = "stop";

/// The task of one process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub place: Place,
    pub load: Load,
}

/// The part of the work that one process did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Share {
    pub published: u64,
    pub delivered: u64,
    /// CPU seconds from the start of the publishing to the end.
    pub cpu: f64,
    /// Seconds until the transport was open and the member had joined.
    pub open: f64,
    /// Seconds of the slowest batch until its last confirmation.
    pub publish: f64,
    /// Seconds of the slowest message from its publish to its delivery.
    pub delivery: f64,
}

/// Runs one process; the parent prints the commands on standard input.
pub async fn run(task: Task) -> Result<Share> {
    let start = Instant::now();
    let traffic = Traffic::open(&task.place.url, &task.load).await?;
    let member = traffic.subscribe(&GROUP).await?;
    let open = start.elapsed().as_secs_f64();
    say(READY)?;
    listen(GO).await?;
    let meter = Meter::start(None)?;
    let (stop, stopped) = watch::channel(false);
    let consuming = tokio::spawn(consume(member, stopped));
    let published = publish(&traffic, &task.load).await?;
    say(PUBLISHED)?;
    listen(STOP).await?;
    stop.send_replace(true);
    let consumed = consuming.await??;
    let cpu = meter.stop()?.client.as_secs_f64();
    Ok(Share { open, cpu, published: published.0, publish: published.1, ..consumed })
}

/// Publishes batches until the time is over; returns the number of messages and the seconds of the slowest batch.
async fn publish(traffic: &Traffic, load: &Load) -> Result<(u64, f64)> {
    let subject = Subject::new("shared.placed.v1")?;
    let (mut count, mut slowest) = (0, 0f64);
    let end = Instant::now() + Duration::from_secs_f64(load.seconds);
    while Instant::now() < end {
        let start = Instant::now();
        let mut waiting = Vec::with_capacity(BATCH);
        for _ in 0..BATCH {
            let message = Message::new(subject.clone(), CONTENT_TYPE, stamped(load.body));
            waiting.push(traffic.transport.publish(message));
        }
        for confirm in waiting {
            confirm.await?;
        }
        slowest = slowest.max(start.elapsed().as_secs_f64());
        count += BATCH as u64;
    }
    Ok((count, slowest))
}

/// Handles messages until the parent stops the process. The parent does so when no message waits any more.
async fn consume(member: Subscription, mut stopped: watch::Receiver<bool>) -> Result<Share> {
    let mut share = Share::default();
    let mut waiting: VecDeque<Confirm<()>> = VecDeque::with_capacity(AT_ONCE);
    loop {
        let delivery = tokio::select! {
            delivery = member.next() => delivery.context("the subscription ended")?,
            _ = stopped.changed() => break,
        };
        share.delivered += 1;
        share.delivery = share.delivery.max(age(&delivery.message().payload)?);
        waiting.push_back(delivery.ack());
        if waiting.len() == AT_ONCE {
            waiting.pop_front().context("a full window")?.await?;
        }
    }
    for ack in waiting {
        ack.await?;
    }
    Ok(share)
}

/// Returns a body of `size` bytes, at least 8, that begins with the present time. All processes share the machine's
/// clock.
fn stamped(size: usize) -> Bytes {
    let mut body = vec![b'x'; size.max(8)];
    body[..8].copy_from_slice(&now().to_be_bytes());
    body.into()
}

/// Returns the seconds since the time in `body`.
fn age(body: &[u8]) -> Result<f64> {
    let stamp = body.first_chunk::<8>().context("a body without a time")?;
    Ok(now().saturating_sub(u64::from_be_bytes(*stamp)) as f64 / 1e6)
}

/// Returns microseconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// Prints one line for the parent.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Waits for the line `wanted` of the parent. A process whose parent has ended reads the end of its input and ends too.
async fn listen(wanted: &'static str) -> Result<()> {
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    match line.await??.trim() {
        line if line == wanted => Ok(()),
        line => bail!("{line:?} instead of {wanted:?} on standard input"),
    }
}
