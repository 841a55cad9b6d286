//! Delayed messages: every open bus moves due messages into the log, and the first one that finds a message due moves
//! it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use redis::Value;
use smol_str::SmolStr;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::client::Client;
use super::codec::number;
use super::scripts;
use event_transport::error::Result;
use event_transport::supervise;
use event_transport::sync::lock;

/// Maximum number of messages that one step moves.
const BATCH: usize = 100;
/// How often all topics are checked, in case a notification was missed.
const SWEEP: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Hints {
    topics: Mutex<Vec<SmolStr>>,
    all: AtomicBool,
    wake: Notify,
}

/// Starts the task that moves due messages.
pub(super) async fn start(client: &Arc<Client>) -> Result<()> {
    let hints = Arc::new(Hints::default());
    hints.all.store(true, Ordering::Relaxed);
    let told = hints.clone();
    let listening = client
        .subscriber
        .on(client.keys.system(), move |message| {
            let text = std::str::from_utf8(message).unwrap_or_default();
            match text.split_once(' ') {
                Some(("delay", topic)) => {
                    let mut topics = lock(&told.topics);
                    if !topics.iter().any(|known| known == topic) {
                        topics.push(topic.into());
                    }
                }
                Some(_) => return,
                None => told.all.store(true, Ordering::Relaxed),
            }
            told.wake.notify_one();
        })
        .await?;
    let client = Arc::downgrade(client);
    tokio::spawn(async move {
        supervise::again("redis delays", || run(client.clone(), hints.clone())).await;
        drop(listening);
    });
    Ok(())
}

async fn run(client: Weak<Client>, hints: Arc<Hints>) {
    let mut due: HashMap<SmolStr, Instant> = HashMap::new();
    let mut sweep = Instant::now() + SWEEP;
    loop {
        let Some(client) = client.upgrade() else { return };
        let closing = client.closing.clone();
        let now = Instant::now();
        if hints.all.swap(false, Ordering::Relaxed) || now >= sweep {
            sweep = now + SWEEP;
            if let Err(error) = client.kept.look(&client.connection).await {
                tracing::debug!(%error, "cannot read the server's durability settings");
            }
            match client.topics().await {
                Ok(topics) => due.extend(topics.into_iter().map(|topic| (topic, now))),
                Err(error) => tracing::debug!(%error, "cannot list topics"),
            }
        }
        for topic in std::mem::take(&mut *lock(&hints.topics)) {
            due.insert(topic, now);
        }
        let ready: Vec<_> =
            due.iter().filter(|(_, at)| **at <= Instant::now()).map(|(topic, _)| topic.clone()).collect();
        for topic in ready {
            match advance(&client, &topic).await {
                Ok(Some(wait)) => drop(due.insert(topic, Instant::now() + wait)),
                Ok(None) => drop(due.remove(&topic)),
                Err(error) => {
                    tracing::debug!(%error, "cannot publish delayed messages");
                    due.insert(topic, Instant::now() + Duration::from_millis(500));
                }
            }
        }
        drop(client);
        let next = due.values().min().copied().map_or(sweep, |at| at.min(sweep));
        tokio::select! {
            () = closing.cancelled() => return,
            () = hints.wake.notified() => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

/// Publishes due messages; returns the time until the next one.
async fn advance(client: &Client, topic: &str) -> Result<Option<Duration>> {
    let mut command = scripts::DUE.on(&[&client.keys.log(topic), &client.keys.delayed(topic)]);
    command.arg(BATCH);
    let answer: Value = client.connection.ask(command).await?;
    Ok(u64::try_from(number(&answer)).ok().map(Duration::from_millis))
}
