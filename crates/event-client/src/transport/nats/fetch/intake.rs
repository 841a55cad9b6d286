//! Taking in what arrives: each message read, its attempt known, its lease begun.

use super::*;

impl Fetcher {
    /// Takes in messages as they came.
    pub(super) async fn arrive(&mut self, batch: &mut Vec<async_nats::Message>) -> Turn {
        let now = Instant::now();
        let mut entries = Vec::with_capacity(batch.len());
        for message in batch.drain(..) {
            // Others may put a status in front of a message: only a word of the server has nowhere to answer to.
            if let Some(status) = message.status
                && message.reply.is_none()
            {
                self.status(&message, status);
            } else if let Some(entry) = self.read(message, now).await {
                entries.push(entry);
            }
        }
        if !entries.is_empty() && self.trouble.is_on() {
            self.well();
        }
        // What was said of a message before it came again must be known first.
        while let Ok(order) = self.orders.try_recv() {
            match self.obey(order).await {
                Turn::Go => {}
                end => return end,
            }
        }
        self.accept(entries);
        Turn::Go
    }

    /// A message whose subject breaks the rules matches nobody's patterns; it must be seen all the same.
    fn bury(&self, source: &Arc<Source>, info: &wire::AckInfo<'_>, message: &async_nats::Message) {
        let why = format!(
            "its subject {:?} is none of this library's, which takes tokens of a-z 0-9 _ -",
            message.subject.as_str()
        );
        let (member, source) = (self.member.clone(), source.clone());
        let (sequence, time) = (info.sequence, info.published_at());
        let subject = unreadable::topic_of(&member.connection, &source.stream);
        let copy = wire::message(message.headers.as_ref(), message.payload.clone(), subject, || info.id());
        tokio::spawn(async move {
            if let Err(error) = unreadable::bury(&member, &source, sequence, time, copy, &why).await {
                // It comes again when its lease ends.
                tracing::debug!(%error, "a message of another client could not be buried");
            }
        });
    }

    /// Turns a message into a leased entry; `None` when it is not for us, or was here already.
    pub(super) async fn read(&mut self, message: async_nats::Message, now: Instant) -> Option<Entry> {
        let reply = message.reply.clone()?;
        let info = wire::AckInfo::read(&reply)?;
        let source = self.pulls.received(info.stream, info.consumer, now)?;
        let courier = &self.member.connection.courier;
        let until = now + self.member.certain();
        let seen = {
            let mut hand = self.member.hand();
            let seen = hand.seen(&source, info.sequence, info.delivered);
            // Its renewal was late, but nobody else got it: whoever works on it here goes on under the new lease.
            if seen == Seen::Perhaps
                && let Some(entry) = hand.at(&source, info.sequence)
            {
                entry.ack = reply.clone();
                entry.delivered = info.delivered;
                entry.lease_until = until;
                return None;
            }
            seen
        };
        if seen == Seen::Settled {
            courier.say(reply, None, ACK);
            return None;
        }
        let attempt = if info.delivered > 1 { self.attempts(&source, &info).await } else { None };
        let (position, published_at, first_ms, copy) = (
            Position(u128::from(info.sequence)),
            info.published_at(),
            attempt.as_ref().map_or_else(|| Timestamp::now().as_millisecond(), |attempt| attempt.first),
            source.copies,
        );
        let mut told = DeliveryInfo::new(number(&info, attempt.as_ref()));
        told.position = Some(position);
        told.published_at = Some(published_at);
        let decoded = if copy {
            let headers = message.headers.as_ref();
            headers.and_then(|headers| dead::copy(headers, message.payload.clone(), &mut told))
        } else {
            let names = &self.member.connection.names;
            let known = self.subjects.read(names, &self.record, &message.subject, info.sequence);
            let Some((subject, wanted)) = known else {
                self.bury(&source, &info, &message);
                return None;
            };
            if !wanted {
                courier.say(reply, None, ACK);
                return None;
            }
            Some(wire::message(message.headers.as_ref(), message.payload, subject, || info.id()))
        };
        let Some(decoded) = decoded else {
            foreign(&self.member.group, &message.subject, info.sequence);
            courier.say(reply, None, ACK);
            return None;
        };
        let mut entry = Entry::new(
            source,
            info.sequence,
            reply.clone(),
            info.delivered,
            decoded,
            told,
            first_ms,
            until,
            attempt.is_some(),
        );
        if entry.is_expired() {
            count_expired();
            courier.say(reply, None, ACK);
            return None;
        }
        entry.again = seen == Seen::Perhaps;
        Some(entry)
    }

    pub(super) async fn attempts(&self, source: &Source, info: &wire::AckInfo<'_>) -> Option<Attempt> {
        let subject = self.member.connection.attempt_subject(source, info.sequence);
        match self.member.connection.read::<Attempt>(&subject).await {
            Ok(stored) => stored.map(|stored| stored.value),
            Err(error) => {
                tracing::debug!(%error, "the attempts of a message are not known; its deliveries are counted");
                None
            }
        }
    }

    /// Takes entries into the hand.
    pub(super) fn accept(&mut self, entries: Vec<Entry>) {
        let mut hand = self.member.hand();
        for entry in entries {
            let here = if entry.again { hand.at(&entry.source, entry.sequence) } else { None };
            match here {
                // Two deliveries at once, for this process was late: the first one was nobody's attempt.
                Some(here) => {
                    (here.ack, here.delivered) = (entry.ack, entry.delivered);
                    here.lease_until = entry.lease_until;
                }
                None => self.ready.push_back(hand.insert(entry)),
            }
        }
    }
}

/// Which attempt a delivery is: releases on record do not count.
fn number(info: &wire::AckInfo<'_>, attempt: Option<&Attempt>) -> u32 {
    let (delivered, attempts) = attempt.map_or((0, 0), |attempt| (attempt.delivered, attempt.attempts));
    let since = u32::try_from(info.delivered.saturating_sub(delivered)).unwrap_or(u32::MAX);
    attempts.saturating_add(since).max(1)
}
