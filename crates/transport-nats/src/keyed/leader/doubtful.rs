//! Messages that the group's filters, as last read, do not match. Filters that changed in the meantime may match them, so
//! they are skipped only after the group's record was read again.

use std::collections::VecDeque;

/// Such messages, and all messages received after them.
pub(super) struct Doubtful<M> {
    messages: VecDeque<M>,
    /// Number of messages that were received before the running read of the group's record began.
    covered: usize,
}

impl<M> Default for Doubtful<M> {
    fn default() -> Self {
        Self { messages: VecDeque::new(), covered: 0 }
    }
}

impl<M> Doubtful<M> {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn push(&mut self, message: M) {
        self.messages.push_back(message);
    }

    /// Notes that a read of the group's record begins.
    pub(super) fn cover(&mut self) {
        self.covered = self.messages.len();
    }

    /// Removes all messages after a read of the group's record. With each one it returns whether the read began after
    /// the message was received.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (M, bool)> + use<M> {
        let Self { messages, covered } = std::mem::take(self);
        messages.into_iter().enumerate().map(move |(at, message)| (message, at < covered))
    }

    /// Drops all messages, because they are read again.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.covered = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_received_before_a_read_is_certain() {
        let mut doubtful = Doubtful::default();
        doubtful.push('a');
        doubtful.cover();
        doubtful.push('b');
        assert_eq!(doubtful.take().collect::<Vec<_>>(), [('a', true), ('b', false)]);
        assert!(doubtful.is_empty());

        doubtful.push('c');
        doubtful.cover();
        doubtful.clear();
        doubtful.push('d');
        assert_eq!(doubtful.take().collect::<Vec<_>>(), [('d', false)], "it came after the read began");
    }
}
