//! The subjects that messages come under, each read once.

use std::collections::HashMap;

use smol_str::SmolStr;

use crate::subject::Subject;
use crate::transport::nats::codec;
use crate::transport::nats::group::Record;
use crate::transport::nats::names::Names;

/// How many are remembered.
const MOST: usize = 1024;

/// What is known of the subjects of a group.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    /// The subject behind a name, and whether the group wants it, where that does not depend on the place.
    known: HashMap<SmolStr, (Subject, Option<bool>)>,
}

impl Subjects {
    /// The subject behind a name, and whether the group wants the message at `sequence`; `None` for names that are not
    /// ours.
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

    /// The group has changed.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }
}
