//! The subjects that messages come under, each read once.

use std::collections::HashMap;

use smol_str::SmolStr;

use crate::subject::Subject;
use crate::transport::nats::group::Record;
use crate::transport::nats::topology::Names;

/// How many are remembered; more are few to a name, and cost no more than reading them.
const MOST: usize = 1024;

/// What is known of the subjects of a group.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    /// The subject, and whether the group wants it wherever it stands.
    known: HashMap<SmolStr, (Subject, Option<bool>)>,
    /// The latest, which is often the next.
    last: Option<(SmolStr, (Subject, Option<bool>))>,
}

impl Subjects {
    /// The subject behind a name, and whether the group wants it; `None` for names that are not ours, and where it
    /// depends on the place.
    pub(super) fn read(
        &mut self,
        names: &Names,
        record: &Record,
        name: &str,
    ) -> Option<(Subject, Option<bool>)> {
        if let Some((last, known)) = &self.last
            && last == name
        {
            return Some(known.clone());
        }
        if let Some((name, known)) = self.known.get_key_value(name) {
            self.last = Some((name.clone(), known.clone()));
            return Some(known.clone());
        }
        let subject = Subject::new(names.event_subject(name)?).ok()?;
        let wanted = record.past.is_empty().then(|| record.wants(&subject, 0));
        if self.known.len() == MOST {
            self.known.clear();
        }
        self.known.insert(name.into(), (subject.clone(), wanted));
        Some((subject, wanted))
    }

    /// The group has changed.
    pub(super) fn forget(&mut self) {
        self.known.clear();
        self.last = None;
    }
}
