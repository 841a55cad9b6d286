//! Claims messages for delivery, and processes the settlements and renewals of consumers.

use super::*;

impl Leader {
    /// Claims ready messages. They are delivered when the claim has been written.
    pub(super) fn claim(&mut self, mut slot: Option<OwnedSemaphorePermit>) {
        while !self.stopping && self.backlog.has_ready() {
            let Some(slot) = slot.take().or_else(|| self.feed.try_slot()) else { return };
            // `claim` may settle expired messages, and that has to be written too.
            self.dirty = true;
            let Some(token) = self.backlog.claim() else { return };
            self.pending.claims.push((token, slot));
        }
    }

    pub(super) fn on_command(&mut self, command: Command) {
        let mut next = Some(command);
        while let Some(command) = next {
            match command {
                Command::Settle(token, settlement, answer) => self.settle(token, settlement, answer),
                Command::Renew(token, answer) => match self.backlog.out(token) {
                    Some(_) => {
                        self.dirty = true;
                        self.pending.answers.push((Instant::now(), answer));
                    }
                    None => drop(answer.send(Err(lost()))),
                },
            }
            next = self.commands.try_recv().ok();
        }
    }

    pub(super) fn settle(&mut self, token: Token, settlement: Settlement, answer: Answer<()>) {
        let first_ms = self.backlog.first_attempt(token);
        let Some(entry) = self.backlog.out(token) else {
            let _ = answer.send(Err(lost()));
            return;
        };
        match settlement {
            Settlement::Reject(rejection) => {
                let stream = self.connection.names.stream(&entry.topic);
                let time = entry.info.published_at.unwrap_or_default().as_nanosecond();
                let dead_lettering = DeadLettering {
                    message: entry.message.clone(),
                    info: entry.info.clone(),
                    first_ms,
                    // The same id for a leader that stores the letter again after a take-over.
                    id: format!(
                        "dlq/{stream}/{}@{}/{}/{time}",
                        self.member.group, self.record.epoch, entry.sequence
                    ),
                };
                let (connection, group, term) =
                    (self.connection.clone(), self.member.group.clone(), self.term);
                self.dead_lettering.insert(token);
                self.jobs.push(
                    async move {
                        let result =
                            dead_letters::dead_letter(&connection, &group, &dead_lettering, rejection).await;
                        Done::Buried { term, token, result, answer }
                    }
                    .boxed(),
                );
                return;
            }
            Settlement::Ack => self.backlog.settle(token),
            Settlement::Retry { after, .. } => self.backlog.retry(token, after),
            Settlement::Release => self.backlog.release(token),
            Settlement::Defer { after } => self.backlog.defer(token, after),
        }
        self.put_down(answer);
    }

    /// Counts a delivery as no longer held by its consumer. Its answer is sent after the next write.
    pub(super) fn put_down(&mut self, answer: Answer<()>) {
        self.member.out.fetch_sub(1, Ordering::AcqRel);
        self.dirty = true;
        self.pending.answers.push((Instant::now(), answer));
        if self.stopping {
            self.backlog.let_go();
        }
    }
}
