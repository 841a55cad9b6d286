//! The writes of the leader's record: one at a time, each with all changes since the one before. Answers and claims wait
//! for the write that includes them.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use event_transport::confirm::Answer;
use event_transport::delivery::Token;
use event_transport::error::Error;

/// Messages that were claimed for delivery, each with its permit.
pub(super) type Claims = Vec<(Token, OwnedSemaphorePermit)>;

pub(super) struct CheckpointWriter {
    /// There are changes to write.
    dirty: bool,
    /// Waits for the next write.
    pending: Pending,
    /// Waits for the write in progress, if there is one.
    writing: Option<Pending>,
    /// No write starts before this time.
    not_before: Instant,
    failures: u32,
}

/// Answers, with their waiting time, and claimed messages that both wait for a write.
#[derive(Default)]
struct Pending {
    answers: Vec<(Instant, Answer<()>)>,
    claims: Claims,
}

impl CheckpointWriter {
    pub(super) fn new() -> Self {
        Self {
            dirty: false,
            pending: Pending::default(),
            writing: None,
            not_before: Instant::now(),
            failures: 0,
        }
    }

    /// Notes a change, so that a write starts as soon as possible.
    pub(super) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    /// Begins a leadership: the record was written when it was taken over, and there are no changes.
    pub(super) fn taken_over(&mut self) {
        self.dirty = false;
        self.failures = 0;
        self.not_before = Instant::now();
    }

    /// Returns whether all changes are in a write that has started.
    pub(super) fn is_clean(&self) -> bool {
        !self.dirty
    }

    /// Notes a change whose confirmation is sent after the next write.
    pub(super) fn confirm(&mut self, answer: Answer<()>) {
        self.dirty = true;
        self.pending.answers.push((Instant::now(), answer));
    }

    /// Adds a claimed message, which is delivered after the next write.
    pub(super) fn claim(&mut self, token: Token, permit: OwnedSemaphorePermit) {
        self.pending.claims.push((token, permit));
    }

    /// Removes all claimed messages, because they are not to be delivered, and returns their tokens.
    pub(super) fn take_claims(&mut self) -> Vec<Token> {
        let all = [Some(&mut self.pending), self.writing.as_mut()];
        all.into_iter()
            .flatten()
            .flat_map(|pending| pending.claims.drain(..))
            .map(|(token, _permit)| token)
            .collect()
    }

    /// Returns the time of the next write; `None` while one is in progress. Without changes and without `must` it is
    /// that of the `renewal`.
    pub(super) fn next(&self, must: bool, renewal: Option<Instant>) -> Option<Instant> {
        if self.writing.is_some() {
            return None;
        }
        if self.dirty || must || !self.pending.is_empty() {
            return Some(self.not_before);
        }
        renewal.map(|at| at.max(self.not_before))
    }

    /// Starts a write with all changes so far.
    pub(super) fn begin(&mut self) {
        self.dirty = false;
        self.writing = Some(std::mem::take(&mut self.pending));
    }

    /// Confirms everything that the write contains, and returns the claims in it.
    pub(super) fn stored(&mut self) -> Claims {
        self.failures = 0;
        self.not_before = Instant::now();
        let written = self.writing.take().unwrap_or_default();
        for (_, answer) in written.answers {
            let _ = answer.send(Ok(()));
        }
        written.claims
    }

    /// Ends the pause after a failure.
    pub(super) fn retry_soon(&mut self) {
        self.not_before = Instant::now();
    }

    /// Puts the content of the write in front of the next one, which includes it.
    pub(super) fn put_back(&mut self) {
        self.dirty = true;
        self.pending.put_back(self.writing.take().unwrap_or_default());
    }

    /// Repeats a failed write after a pause. Answers that have waited for `patience` get the error.
    pub(super) fn failed(&mut self, patience: Duration, error: &Error) {
        self.put_back();
        self.failures = (self.failures + 1).min(5);
        self.not_before = Instant::now() + Duration::from_millis(25 << self.failures);
        self.pending.expire(patience, error);
    }

    /// Answers everything that waits with `error`, and drops the claims.
    pub(super) fn give_up(&mut self, error: fn() -> Error) {
        self.pending.give_up(error);
        if let Some(writing) = &mut self.writing {
            writing.give_up(error);
        }
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.claims.is_empty()
    }

    /// Puts the content of a failed write in front, so that the next write includes it.
    fn put_back(&mut self, mut earlier: Self) {
        earlier.answers.append(&mut self.answers);
        earlier.claims.append(&mut self.claims);
        *self = earlier;
    }

    fn give_up(&mut self, error: fn() -> Error) {
        for (_, answer) in self.answers.drain(..) {
            let _ = answer.send(Err(error().during("settle")));
        }
        self.claims.clear();
    }

    /// Answers settlements that have waited too long with an error. Their changes are still written as soon as
    /// possible.
    fn expire(&mut self, patience: Duration, error: &Error) {
        let now = Instant::now();
        let (late, rest): (Vec<_>, Vec<_>) =
            self.answers.drain(..).partition(|(since, _)| now.duration_since(*since) >= patience);
        self.answers = rest;
        for (_, answer) in late {
            let _ = answer.send(Err(Error::new(error.kind(), error.to_string()).during("settle")));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;
    use event_transport::confirm::Confirm;
    use event_transport::error::ErrorKind;

    fn unavailable() -> Error {
        Error::new(ErrorKind::Unavailable, "no server")
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_write_is_part_of_the_next_one() {
        let permits = Arc::new(Semaphore::new(2));
        let mut writer = CheckpointWriter::new();
        assert_eq!(writer.next(false, None), None, "nothing to write");
        writer.claim(1, permits.clone().try_acquire_owned().unwrap());
        assert_eq!(writer.next(false, None), Some(Instant::now()));
        writer.begin();
        writer.claim(2, permits.clone().try_acquire_owned().unwrap());
        assert_eq!(writer.next(true, None), None, "one write at a time");

        writer.failed(Duration::from_secs(5), &unavailable());
        assert!(writer.next(false, None).unwrap() > Instant::now(), "after a pause");
        writer.begin();
        assert!(writer.is_clean());
        let tokens: Vec<Token> = writer.stored().into_iter().map(|(token, _)| token).collect();
        assert_eq!(tokens, [1, 2]);
        assert_eq!(writer.next(false, None), None);
        assert_eq!(permits.available_permits(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_for_its_write_but_not_for_ever() {
        let mut writer = CheckpointWriter::new();
        let (answer, stored) = Confirm::channel();
        writer.confirm(answer);
        writer.begin();
        writer.stored();
        stored.await.unwrap();

        let (answer, late) = Confirm::channel();
        writer.confirm(answer);
        writer.begin();
        tokio::time::advance(Duration::from_secs(5)).await;
        writer.failed(Duration::from_secs(5), &unavailable());
        assert_eq!(late.await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(!writer.is_clean(), "its change is still written");
    }
}
