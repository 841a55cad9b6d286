//! Processes received messages: decodes each one, determines its attempt, and starts its lease.

use super::*;

/// Result of reading a received message.
pub(super) enum Received {
    /// The message is for this member and leased.
    LeasedMessage(LeasedMessage),
    /// The group's record, as it was last read, does not match the message.
    Unmatched(Arc<Source>, Seen, async_nats::Message),
    Nothing,
}

/// How to treat a message that the group's filters do not match.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwanted {
    /// Return it as unmatched: the filters may have changed since they were read.
    Recheck,
    /// Acknowledge it: the filters were read after it arrived.
    Skip,
    /// Accept it anyway, to release it later.
    Take,
}

impl Fetcher {
    /// Processes received messages in their order.
    pub(super) async fn receive_all(&mut self, batch: &mut Vec<async_nats::Message>) -> Turn {
        // A server sends the changed record before it delivers messages that match the new filters.
        if let Some(Some(_)) = self.changes.next().now_or_never() {
            match self.reload().await {
                Turn::Go => {}
                end => return end,
            }
        }
        let now = Instant::now();
        let mut entries = Vec::with_capacity(batch.len());
        let mut unmatched = Vec::new();
        for message in batch.drain(..) {
            // Clients may set a status header as well; only messages from the server have no reply subject.
            if let Some(status) = message.status
                && message.reply.is_none()
            {
                self.status(&message, status);
                continue;
            }
            match self.read(message, now, Unwanted::Recheck).await {
                Received::LeasedMessage(entry) => entries.push(entry),
                Received::Unmatched(source, seen, message) => unmatched.push((source, seen, message)),
                Received::Nothing => {}
            }
        }
        if !entries.is_empty() && self.outage.is_on() {
            self.end_outage();
        }
        // Commands that were sent before a message was delivered again must be processed first.
        while let Ok(command) = self.commands.try_recv() {
            match self.on_command(command).await {
                Turn::Go => {}
                end => return end,
            }
        }
        if !unmatched.is_empty() {
            match self.recheck(unmatched, now, &mut entries).await {
                Turn::Go => {}
                end => return end,
            }
        }
        self.accept(entries);
        Turn::Go
    }

    /// Reads the group's record again for messages that its filters did not match. When that fails, the messages are
    /// delivered again after their leases end.
    async fn recheck(
        &mut self,
        unmatched: Vec<(Arc<Source>, Seen, async_nats::Message)>,
        now: Instant,
        entries: &mut Vec<LeasedMessage>,
    ) -> Turn {
        match self.member.connection.standing(&self.member.group, &self.record).await {
            Ok(Standing::Deleted) => return Turn::Gone,
            Ok(Standing::There(record)) if record.epoch != self.record.epoch => {
                return self.follow(record).await;
            }
            Ok(Standing::There(record)) => {
                if let end @ (Turn::Stop | Turn::Gone) = self.follow(record).await {
                    return end;
                }
            }
            Err(error) => {
                self.begin_outage(&error.to_string());
                return Turn::Go;
            }
        }
        for (source, seen, message) in unmatched {
            let Some(reply) = message.reply.clone() else { continue };
            let Some(info) = codec::AckInfo::read(&reply) else { continue };
            let read = self.decode(source, seen, &info, message, now, Unwanted::Skip).await;
            if let Received::LeasedMessage(entry) = read {
                entries.push(entry);
            }
        }
        Turn::Go
    }

    /// Stores a message with an invalid subject as a dead letter: no pattern matches it, but it must not be lost
    /// unnoticed.
    fn dead_letter(&self, source: &Arc<Source>, info: &codec::AckInfo<'_>, message: &async_nats::Message) {
        let why = format!(
            "its subject {:?} is none of this library's, which takes tokens of a-z 0-9 _ -",
            message.subject.as_str()
        );
        let (member, source) = (self.member.clone(), source.clone());
        let (sequence, time) = (info.sequence, info.published_at());
        let subject = poison::topic_of(&member.connection, &source.stream);
        let copy = codec::message(message.headers.as_ref(), message.payload.clone(), subject, || info.id());
        tokio::spawn(async move {
            if let Err(error) = poison::dead_letter(&member, &source, sequence, time, copy, &why).await {
                // The message is delivered again when its lease ends.
                tracing::debug!(%error, "a message of another client could not be stored as a dead letter");
            }
        });
    }

    /// Turns a message into a leased entry. Returns `Nothing` when this member already holds or has settled it.
    pub(super) async fn read(
        &mut self,
        message: async_nats::Message,
        now: Instant,
        unwanted: Unwanted,
    ) -> Received {
        let Some(reply) = message.reply.clone() else { return Received::Nothing };
        let Some(info) = codec::AckInfo::read(&reply) else { return Received::Nothing };
        let Some(source) = self.pulls.received(info.stream, info.consumer, now) else {
            return Received::Nothing;
        };
        let seen = {
            let mut in_flight = self.member.in_flight();
            let seen = in_flight.seen(&source, &info);
            // The renewal was late, but no other member received the message: the handler here continues under the
            // new lease.
            if seen == Seen::Perhaps
                && let Some(entry) = in_flight.at(&source, info.sequence)
                && entry.time == info.time
            {
                entry.ack = reply.clone();
                entry.delivered = info.delivered;
                entry.lease_until = now + self.member.certain();
                return Received::Nothing;
            }
            seen
        };
        if seen == Seen::Settled {
            self.member.connection.outbound.send_bare(reply, None, ACK);
            return Received::Nothing;
        }
        self.decode(source, seen, &info, message, now, unwanted).await
    }

    /// Checks a message against the group's filters, and decodes it when they match.
    async fn decode(
        &mut self,
        source: Arc<Source>,
        seen: Seen,
        info: &codec::AckInfo<'_>,
        message: async_nats::Message,
        now: Instant,
        unwanted: Unwanted,
    ) -> Received {
        let Some(reply) = message.reply.clone() else { return Received::Nothing };
        let outbound = self.member.connection.outbound.clone();
        let mut own = None;
        if !source.copies {
            let names = &self.member.connection.names;
            let known = self.subjects.read(names, &self.record, &message.subject, info.sequence);
            let Some((subject, wanted)) = known else {
                self.dead_letter(&source, info, &message);
                return Received::Nothing;
            };
            match unwanted {
                _ if wanted => {}
                Unwanted::Recheck => return Received::Unmatched(source, seen, message),
                Unwanted::Skip => {
                    outbound.send_bare(reply, None, ACK);
                    return Received::Nothing;
                }
                Unwanted::Take => {}
            }
            own = Some(subject);
        }
        let attempt = if info.delivered > 1 { self.attempts(&source, info).await } else { None };
        let (position, published_at, first_ms) = (
            Position(u128::from(info.sequence)),
            info.published_at(),
            attempt.as_ref().map_or_else(|| Timestamp::now().as_millisecond(), |attempt| attempt.first),
        );
        let mut told = DeliveryInfo::new(number(info, attempt.as_ref()));
        told.position = Some(position);
        told.published_at = Some(published_at);
        let decoded = match own {
            None => {
                let headers = message.headers.as_ref();
                headers.and_then(|headers| dead_letters::copy(headers, message.payload.clone(), &mut told))
            }
            Some(subject) => {
                Some(codec::message(message.headers.as_ref(), message.payload, subject, || info.id()))
            }
        };
        let Some(decoded) = decoded else {
            foreign(&self.member.group, &message.subject, info.sequence);
            outbound.send_bare(reply, None, ACK);
            return Received::Nothing;
        };
        let mut entry = LeasedMessage::new(
            source,
            info,
            reply.clone(),
            decoded,
            told,
            first_ms,
            now + self.member.certain(),
            attempt.is_some(),
        );
        if entry.is_expired() {
            count_expired();
            outbound.send_bare(reply, None, ACK);
            return Received::Nothing;
        }
        entry.again = seen == Seen::Perhaps;
        Received::LeasedMessage(entry)
    }

    pub(super) async fn attempts(&self, source: &Source, info: &codec::AckInfo<'_>) -> Option<Attempt> {
        let subject = self.member.connection.attempt_subject(source, info.sequence);
        match self.member.connection.read::<Attempt>(&subject).await {
            Ok(stored) => stored.map(|stored| stored.value),
            Err(error) => {
                tracing::debug!(%error, "the attempts of a message could not be read; its deliveries are counted instead");
                None
            }
        }
    }

    /// Adds entries to the messages in flight and to the ready queue.
    pub(super) fn accept(&mut self, entries: Vec<LeasedMessage>) {
        let mut in_flight = self.member.in_flight();
        for entry in entries {
            let here = if entry.again { in_flight.at(&entry.source, entry.sequence) } else { None };
            match here.filter(|here| here.time == entry.time) {
                // This process was late, so two deliveries arrived together. The first one was not an attempt of any
                // member.
                Some(here) => {
                    (here.ack, here.delivered) = (entry.ack, entry.delivered);
                    here.lease_until = entry.lease_until;
                }
                None => self.ready.push_back(in_flight.insert(entry)),
            }
        }
    }
}

/// Returns the attempt number of a delivery. Releases on record do not count.
fn number(info: &codec::AckInfo<'_>, attempt: Option<&Attempt>) -> u32 {
    let (delivered, attempts) = attempt.map_or((0, 0), |attempt| (attempt.delivered, attempt.attempts));
    let since = u32::try_from(info.delivered.saturating_sub(delivered)).unwrap_or(u32::MAX);
    attempts.saturating_add(since).max(1)
}
