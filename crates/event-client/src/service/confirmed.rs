//! Tracks the settlements of a worker until the transport has confirmed them.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;

use super::stats::Stats;
use crate::confirm::Confirm;
use event_transport::error::Result;

/// The most unconfirmed settlements of one worker.
const UNCONFIRMED: usize = 1024;

/// Settlements of one worker that the transport has not confirmed yet, the oldest first.
#[derive(Default)]
pub(super) struct Unconfirmed {
    waiting: VecDeque<Confirm<()>>,
    /// Where a confirmation needs a request of its own, only the last one is requested: its reply confirms all before
    /// it.
    last: Option<Confirm<()>>,
    failing: bool,
}

impl Unconfirmed {
    pub(super) async fn add(&mut self, confirm: Confirm<()>, group: &str, stats: &Stats) {
        if confirm.is_question() {
            self.last = Some(confirm);
            return;
        }
        self.waiting.push_back(confirm);
        loop {
            let many = self.waiting.len() > UNCONFIRMED;
            let Some(oldest) = self.waiting.front_mut() else { return };
            let result = match oldest.now_or_never() {
                Some(result) => result,
                None if many => oldest.await,
                None => return,
            };
            self.waiting.pop_front();
            self.note(&result, group, stats);
        }
    }

    /// Waits for all confirmations.
    pub(super) async fn rest(mut self, group: &str, stats: &Stats) {
        let waiting = std::mem::take(&mut self.waiting);
        for confirm in waiting.into_iter().chain(self.last.take()) {
            let result = confirm.await;
            self.note(&result, group, stats);
        }
    }

    fn note(&mut self, result: &Result<()>, group: &str, stats: &Stats) {
        let Err(error) = result else {
            self.failing = false;
            return;
        };
        stats.unsettled.fetch_add(1, Ordering::Relaxed);
        // One log line for a series of failures, which usually have the same reason.
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                group, %error,
                "a settlement was not confirmed; its message is delivered again unless another consumer holds it"
            );
        }
    }
}
