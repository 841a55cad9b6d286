//! The task of a keyed member: it stands by, leads the group, and leaves. All its state belongs to this task alone.
//!
//! - `state.rs`: the state and its reactions. It consists of these parts:
//! - `leadership.rs`: stands by, takes over, renews.
//! - `reader.rs` (with `opening.rs`, `doubtful.rs`, `replays.rs`): reads the topics in order into the backlog.
//! - `deliveries.rs`: delivers messages of the backlog and applies their settlements.
//! - `writer.rs`: writes these changes into the leader's record.
//! - `group_record.rs`: the filters and the lease of the group. `jobs.rs`: requests that run beside the loop.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::inputs::Inputs;
use self::state::Leader;
use super::member::{Command, KeyedMember};
use crate::group::Record;
use event_transport::error::Result;
use event_transport::subscription::{Feed, Health};

mod deliveries;
mod doubtful;
mod group_record;
mod inputs;
mod jobs;
mod leadership;
mod opening;
mod reader;
mod replays;
mod state;
mod writer;

/// Interval of scans for topics, in addition to the notifications of new ones.
const RESCAN: Duration = Duration::from_secs(30);
/// Largest number of messages processed before the loop checks its other inputs.
const BATCH: usize = 256;

pub(super) struct Task {
    inputs: Inputs,
    leader: Leader,
}

impl Task {
    pub(super) async fn open(
        member: &Arc<KeyedMember>,
        feed: Feed,
        record: Record,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Result<Self> {
        let inbox = member.client.new_inbox();
        let inputs = Inputs::open(member, commands, &inbox).await?;
        Ok(Self { inputs, leader: Leader::new(member.clone(), feed, record, inbox) })
    }

    pub(super) async fn run(self) {
        let Self { mut inputs, mut leader } = self;
        let feed = &leader.deliveries.feed;
        let (stopped, gone) = (feed.stopped().clone(), feed.gone().clone());
        feed.report(Health::Live);
        let closed = leader.member.client.closed.clone();
        inputs.connects.mark_unchanged();
        let mut rescan = Instant::now() + RESCAN;
        loop {
            let closing = *inputs.closing.borrow();
            if stopped.is_cancelled() || gone.is_cancelled() || closing {
                leader.stop(closing);
            }
            if closed.is_cancelled() || leader.is_over() {
                break;
            }
            let next = leader.tick().map_or(rescan, |at| at.min(rescan));
            let stopping = leader.deliveries.is_stopping();
            tokio::select! {
                message = inputs.messages.next() => {
                    let Some(message) = message else { break };
                    leader.on_message(message);
                    for _ in 1..BATCH {
                        let Some(message) = inputs.messages.next().now_or_never().flatten() else { break };
                        leader.on_message(message);
                    }
                }
                command = inputs.commands.recv() => {
                    let Some(command) = command else { break };
                    leader.on_command(command);
                    while let Ok(command) = inputs.commands.try_recv() {
                        leader.on_command(command);
                    }
                }
                Some(done) = leader.jobs.next(), if !leader.jobs.is_empty() => leader.on_done(done),
                slot = leader.deliveries.feed.slot(), if leader.can_claim() => leader.on_slot(slot),
                changed = inputs.changes.next() => if changed.is_some() { leader.reload() } else { break },
                news = inputs.news.next() => if news.is_some() { leader.on_news() } else { break },
                led = inputs.led.next() => if led.is_some() { leader.on_led() } else { break },
                _ = inputs.connects.changed() => leader.on_reconnect(),
                () = tokio::time::sleep_until(next) => {}
                _ = inputs.closing.changed() => {}
                () = stopped.cancelled(), if !stopping => {}
                () = gone.cancelled(), if !stopping => {}
                () = closed.cancelled() => {}
            }
            if Instant::now() >= rescan {
                leader.rescan();
                rescan = Instant::now() + RESCAN;
            }
            tokio::task::coop::consume_budget().await;
        }
        leader.end();
    }
}
