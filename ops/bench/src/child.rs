//! Measures one run in a separate process, so that CPU time and memory are the contestant's only.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::contestant::{Consumer, Contestant, Durability, Place, Publisher};
use crate::plan::{Broker, Row};
use crate::usage;

/// Messages published before the measurement, so that connections and caches are warm.
const WARM_UP: usize = 200;
/// The pause between two messages of the latency row: long enough for all threads to go idle.
const IDLE: Duration = Duration::from_millis(2);
/// How long acknowledgements may take to reach the server after the client reports that they are done.
const SETTLED: Duration = Duration::from_secs(12);

/// The task of a child process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub contestant: String,
    pub broker: Broker,
    pub row: Row,
    pub size: usize,
    pub messages: usize,
    pub durability: Durability,
    pub url: String,
    /// The name of stream, queue and topic.
    pub name: String,
    pub server: u32,
    /// Threads of the runtime; 0 is the current thread alone.
    pub threads: usize,
}

/// The child's result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub messages: usize,
    pub seconds: f64,
    /// CPU seconds during the run.
    pub client_cpu: f64,
    pub server_cpu: f64,
    /// Peak memory of the client, in bytes.
    pub peak: u64,
    /// Microseconds, p50 and p99, of the latency row.
    pub latency: Option<[f64; 2]>,
    /// Messages that the server still holds for the group afterwards; must be zero.
    pub unsettled: u64,
    /// Seconds from the end of the run until the server held none.
    pub settled_after: f64,
}

struct Clock {
    start: Instant,
    client: Duration,
    server: Duration,
    process: u32,
}

impl Clock {
    fn start(process: u32) -> Result<Self> {
        let (client, server) = (usage::own_cpu()?, usage::cpu_of(process)?);
        Ok(Self { start: Instant::now(), client, server, process })
    }

    fn stop(self, messages: usize) -> Result<Outcome> {
        let seconds = self.start.elapsed().as_secs_f64();
        Ok(Outcome {
            messages,
            seconds,
            client_cpu: (usage::own_cpu()? - self.client).as_secs_f64(),
            server_cpu: (usage::cpu_of(self.process)? - self.server).as_secs_f64(),
            peak: usage::own_peak()?,
            latency: None,
            unsettled: 0,
            settled_after: 0.0,
        })
    }
}

pub async fn run<C: Contestant>(task: Task) -> Result<Outcome> {
    let place = Place { url: task.url.clone(), name: task.name.clone(), durability: task.durability };
    let contestant = C::open(&place).await?;
    let payload = Bytes::from(vec![b'x'; task.size]);
    let total = task.messages;
    let mut outcome = match task.row {
        Row::Fill => {
            let clock = Clock::start(task.server)?;
            contestant.publisher().await?.publish(&payload, total, 256).await?;
            // A client that awaits no confirm must not end before all messages are sent.
            let end = Instant::now() + SETTLED;
            while contestant.unsettled().await? < total as u64 && Instant::now() < end {
                sleep(Duration::from_millis(20)).await;
            }
            return clock.stop(total);
        }
        Row::Publish1 | Row::Publish256 => {
            let mut publisher = contestant.publisher().await?;
            let window = if task.row == Row::Publish1 { 1 } else { 256 };
            publisher.publish(&payload, WARM_UP, window).await?;
            let clock = Clock::start(task.server)?;
            publisher.publish(&payload, total, window).await?;
            return clock.stop(total);
        }
        Row::Consume1 | Row::Consume64 => {
            let at_once = if task.row == Row::Consume1 { 1 } else { 64 };
            let mut consumer = contestant.consumer().await?;
            let clock = Clock::start(task.server)?;
            let mut bytes = 0;
            consumer.consume(total, at_once, |payload| bytes += payload.len()).await?;
            let outcome = clock.stop(total)?;
            if bytes != total * task.size {
                bail!("{bytes} bytes arrived, not {}", total * task.size);
            }
            consumer.close().await?;
            outcome
        }
        Row::Both => {
            let (mut publisher, mut consumer) = (contestant.publisher().await?, contestant.consumer().await?);
            let clock = Clock::start(task.server)?;
            let publishing = tokio::spawn(async move { publisher.publish(&payload, total, 256).await });
            consumer.consume(total, 64, |_| ()).await?;
            publishing.await??;
            let outcome = clock.stop(total)?;
            consumer.close().await?;
            outcome
        }
        Row::Latency => {
            let (mut publisher, mut consumer) = (contestant.publisher().await?, contestant.consumer().await?);
            let (arrived, mut arrivals) = mpsc::unbounded_channel();
            let runs = total + WARM_UP;
            let consuming = tokio::spawn(async move {
                let done =
                    consumer.consume(runs, 1, |_| arrived.send(Instant::now()).unwrap_or_default()).await;
                done.map(|()| consumer)
            });
            let mut clock = Clock::start(task.server)?;
            let mut micros = Vec::with_capacity(total);
            for turn in 0..runs {
                sleep(IDLE).await;
                if turn == WARM_UP {
                    clock = Clock::start(task.server)?;
                }
                let start = Instant::now();
                publisher.publish(&payload, 1, 1).await?;
                let Some(arrived) = timeout(SETTLED, arrivals.recv()).await? else { break };
                if turn >= WARM_UP {
                    micros.push(arrived.saturating_duration_since(start).as_secs_f64() * 1e6);
                }
            }
            let mut outcome = clock.stop(total)?;
            consuming.await??.close().await?;
            micros.sort_by(f64::total_cmp);
            outcome.latency = Some([micros[micros.len() / 2], micros[micros.len() * 99 / 100]]);
            outcome
        }
    };
    // Acknowledgements that the server never received would inflate the rate.
    let end = Instant::now();
    loop {
        outcome.unsettled = contestant.unsettled().await?;
        outcome.settled_after = end.elapsed().as_secs_f64();
        if outcome.unsettled == 0 || end.elapsed() > SETTLED {
            return Ok(outcome);
        }
        sleep(Duration::from_millis(20)).await;
    }
}
