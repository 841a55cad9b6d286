//! Counts the unread entries of a topic that groups want: from the first entries after their positions, and from the
//! server's count of the others.

use std::collections::VecDeque;

use super::client::Client;
use super::codec::{EntryId, parts, text};
use super::filters::Filters;
use super::scripts;
use event_transport::error::Result;
use event_transport::subject::Subject;

/// Number of entries whose subjects are read in one step: publishes wait no longer than for one step.
const PAGE: usize = 250;
/// Beyond this number of unread entries the rest is estimated.
const EXACT: usize = 5_000;
/// The same where the server does not know the number of unread entries.
const EXACT_ALONE: usize = 50_000;

/// A group whose unread entries of one topic are to be counted.
pub(super) struct Wanted {
    /// Number of the group, for the caller.
    pub(super) group: usize,
    pub(super) filters: Filters,
    /// The last entry that was delivered to the group.
    pub(super) delivered: EntryId,
    /// Number of entries after it; negative when the server does not know it.
    pub(super) lag: i64,
}

/// The unread entries that a group wants.
pub(super) struct Unread {
    pub(super) group: usize,
    pub(super) count: u64,
    pub(super) first: Option<EntryId>,
}

/// Counts for several groups; those at the same position share the reading.
pub(super) async fn count(client: &Client, topic: &str, mut wanted: Vec<Wanted>) -> Result<Vec<Unread>> {
    wanted.sort_by_key(|wanted| wanted.delivered);
    let mut window =
        Window { client, topic, after: EntryId::default(), subjects: VecDeque::new(), ended: false };
    let mut counts = Vec::new();
    for Wanted { group, filters, delivered, lag } in wanted {
        let most = if lag < 0 { EXACT_ALONE } else { EXACT };
        window.move_to(delivered, most).await?;
        let (mut count, mut first) = (0, None);
        for (id, subject) in window.subjects.iter().take(most) {
            if subject.as_ref().is_some_and(|subject| filters.matches(subject, *id)) {
                count += 1;
                first = first.or(Some(*id));
            }
        }
        let seen = window.subjects.len().min(most) as u64;
        let rest = u64::try_from(lag).unwrap_or(0).saturating_sub(seen);
        if rest > 0 && !(window.ended && window.subjects.len() <= most) {
            count += rest * count / seen.max(1);
        }
        counts.push(Unread { group, count, first });
    }
    Ok(counts)
}

/// Entries that follow one another in a topic's log.
struct Window<'a> {
    client: &'a Client,
    topic: &'a str,
    /// The entries begin after this one.
    after: EntryId,
    /// The subject of each entry, if it is valid.
    subjects: VecDeque<(EntryId, Option<Subject>)>,
    /// The log has no entries after these.
    ended: bool,
}

impl Window<'_> {
    /// Makes the window begin after `delivered` and hold `most` entries, if there are as many.
    async fn move_to(&mut self, delivered: EntryId, most: usize) -> Result<()> {
        let reaches = self.subjects.back().is_some_and(|(last, _)| *last >= delivered);
        if delivered >= self.after && (reaches || self.ended) {
            while self.subjects.front().is_some_and(|(id, _)| *id <= delivered) {
                self.subjects.pop_front();
            }
        } else {
            self.subjects.clear();
            self.ended = false;
        }
        self.after = delivered;
        while !self.ended && self.subjects.len() < most {
            let last = self.subjects.back().map_or(self.after, |(id, _)| *id);
            let mut command = scripts::SCAN.on(&[&self.client.keys.log(self.topic)]);
            command.arg(last).arg(PAGE);
            let page = parts(self.client.connection.ask(command).await?);
            self.ended = page.len() / 2 < PAGE;
            for pair in page.chunks(2) {
                let [id, subject] = pair else { continue };
                // A foreign entry without a subject has its topic's name.
                let subject = match text(subject) {
                    "" => Subject::new(self.topic),
                    subject => Subject::new(subject),
                };
                self.subjects.push_back((text(id).parse()?, subject.ok()));
            }
        }
        Ok(())
    }
}
