//! A cache of the subjects of received messages, so that each subject is parsed once.

use std::collections::HashMap;

use smol_str::SmolStr;

use crate::codec;
use crate::group::Record;
use crate::names::Names;
use event_transport::subject::Subject;

/// Largest number of cached subjects.
const MOST: usize = 1024;

/// The cached subjects of a group.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    /// The event subject by NATS subject, and whether the group wants it where that does not depend on the sequence.
    known: HashMap<SmolStr, (Subject, Option<bool>)>,
}

impl Subjects {
    /// Returns the event subject of a NATS subject, and whether the group wants the message at `sequence`. Returns
    /// `None` for NATS subjects that are not valid here.
    pub(super) fn read(
        &mut self,
        names: &Names,
        record: &Record,
        name: &str,
        sequence: u64,
    ) -> Option<(Subject, bool)> {
        let (subject, wanted) = match self.known.get(name) {
            Some(known) => known.clone(),
            None => {
                let subject = codec::subject(names, name)?;
                let wanted = record.past.is_empty().then(|| record.wants(&subject, sequence));
                if self.known.len() == MOST {
                    self.known.clear();
                }
                self.known.insert(name.into(), (subject.clone(), wanted));
                (subject, wanted)
            }
        };
        let wanted = wanted.unwrap_or_else(|| record.wants(&subject, sequence));
        Some((subject, wanted))
    }

    /// Clears the cache because the group has changed.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }
}
