//! Jobs that run beside the leader's loop: requests to the server, whose results return to the loop.

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use crate::group::Standing;
use crate::keyed::election::{Claimed, Written};
use crate::keyed::open::{Fetched, Opened};
use event_transport::confirm::Answer;
use event_transport::delivery::Token;
use event_transport::error::Result;

/// The jobs that have not ended.
#[derive(Default)]
pub(super) struct Jobs(FuturesUnordered<BoxFuture<'static, Done>>);

/// Result of a job. `term` and `reading` are the numbers under which it was started: under a later one it is void.
pub(super) enum Done {
    /// The leader's record was read by a standby member, and taken over if no member led.
    Claimed(Result<Claimed>),
    /// The leader's record was written.
    Written { term: u64, asked: Instant, left: bool, result: Result<Written> },
    /// A rejected message was stored as a dead letter.
    DeadLettered { token: Token, result: Result<()>, answer: Answer<()> },
    /// Topics were opened.
    Opened { reading: u64, result: Result<Vec<Opened>> },
    /// Replayed letters were fetched, at most `room`.
    Replays { reading: u64, room: usize, result: Result<Vec<Fetched>> },
    /// The group's record was read.
    Reloaded(Result<Standing>),
}

impl Jobs {
    pub(super) fn start(&mut self, job: impl Future<Output = Done> + Send + 'static) {
        self.0.push(job.boxed());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits for the end of a job; `None` when there is none.
    pub(super) async fn next(&mut self) -> Option<Done> {
        self.0.next().await
    }
}
