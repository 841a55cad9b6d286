//! A consumer of a stream that messages are fetched from.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use smol_str::SmolStr;

use super::ack_log::AckLog;
use super::codec::AckInfo;
use super::group::StartAt;
use super::group::consumer::ConsumerInfo;

/// A consumer of a stream, with the acknowledgements sent to it and the progress seen.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) stream: SmolStr,
    pub(super) consumer: String,
    /// Its messages are copies; the headers identify the originals.
    pub(super) copies: bool,
    /// Acknowledgements sent to it.
    pub(super) ack_log: AckLog,
    /// The highest sequence that it has delivered.
    highest: AtomicU64,
    /// Its creation time, which distinguishes it from another consumer of the same name.
    created: Option<Timestamp>,
    /// The last settled sequence when the consumer's information was last read.
    floor: AtomicU64,
}

impl Source {
    pub(super) fn new(stream: String, consumer: String, copies: bool) -> Self {
        Self {
            stream: stream.into(),
            consumer,
            copies,
            ack_log: AckLog::default(),
            highest: AtomicU64::default(),
            created: None,
            floor: AtomicU64::default(),
        }
    }

    /// Builds the source of a group's consumer from the server's information.
    pub(super) fn of(stream: String, consumer: String, copies: bool, info: &ConsumerInfo) -> Self {
        let floor = AtomicU64::new(info.ack_floor.stream_seq);
        Self { created: info.created, floor, ..Self::new(stream, consumer, copies) }
    }

    /// Returns whether `info` describes the same consumer, and if so takes over its ack floor.
    pub(super) fn is_still(&self, info: &ConsumerInfo) -> bool {
        let same = self.created == info.created;
        if same {
            self.floor.fetch_max(info.ack_floor.stream_seq, Ordering::Relaxed);
        }
        same
    }

    /// Records that a message has arrived. Returns whether the consumer cannot have delivered it before.
    pub(super) fn is_first(&self, info: &AckInfo<'_>) -> bool {
        info.delivered == 1 && info.sequence > self.highest.fetch_max(info.sequence, Ordering::Relaxed)
    }

    /// Returns the start of another consumer in its place, in a stream created at `stream_created`. Returns `None`
    /// when that is another stream than this consumer's.
    pub(super) fn successor(&self, stream_created: Option<Timestamp>) -> Option<StartAt> {
        let same_stream =
            stream_created.zip(self.created).is_some_and(|(stream, consumer)| stream <= consumer);
        same_stream.then(|| StartAt::Sequence(self.floor.load(Ordering::Relaxed) + 1))
    }
}
