//! The time at which the reader opens topics that it does not read yet, and whether it opens them with care.

use std::time::Duration;

use tokio::time::Instant;

use crate::client::Client;
use crate::poison::Disconnects;
use event_transport::backoff::Backoff;

/// The pauses after failures.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(1600));

pub(super) struct Opening {
    /// Topics are being opened.
    running: bool,
    /// Time at which topics are to be opened.
    at: Option<Instant>,
    backoff: Backoff,
    disconnects: Disconnects,
    /// The connection may have broken because of a message that cannot be read.
    care: bool,
}

impl Opening {
    pub(super) fn new(client: &Client) -> Self {
        Self {
            running: false,
            at: None,
            backoff: BACKOFF,
            disconnects: Disconnects::new(client),
            care: false,
        }
    }

    /// Returns whether topics are being opened or are to be opened.
    pub(super) fn is_ahead(&self) -> bool {
        self.running || self.at.is_some()
    }

    pub(super) fn care(&self) -> bool {
        self.care
    }

    /// Opens topics after a delay, or at the time set before if that is earlier.
    pub(super) fn soon(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.at = Some(self.at.map_or(at, |set| set.min(at)));
    }

    /// Returns the pause before the next try, after a failure.
    pub(super) fn back_off(&mut self) -> Duration {
        self.backoff.next_pause()
    }

    /// Returns the time at which topics are to be opened; `None` while they are being opened.
    pub(super) fn due(&self) -> Option<Instant> {
        self.at.filter(|_| !self.running)
    }

    /// Notes that topics are being opened.
    pub(super) fn begin(&mut self) {
        self.at = None;
        self.running = true;
    }

    /// Notes the end of opening.
    pub(super) fn ended(&mut self) {
        self.running = false;
    }

    /// Notes that topics were opened.
    pub(super) fn succeeded(&mut self) {
        self.backoff = BACKOFF;
        self.care = false;
    }

    /// Forgets that topics are being opened or are to be opened.
    pub(super) fn clear(&mut self) {
        self.running = false;
        self.at = None;
    }

    /// Records a new connection: the connection may have broken because of a message.
    pub(super) fn reconnected(&mut self, client: &Client, lease: Duration) {
        self.care |= self.disconnects.are_odd(client, lease);
    }
}
