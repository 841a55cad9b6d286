//! Counts the records of each service; the memory stays bounded whatever names are sent.

use crate::store::{Counts, OTHERS};

/// Maximum number of services that are counted by name.
const MOST_NAMES: usize = 1000;
/// Longest counted name, in bytes.
const LONGEST_NAME: usize = 256;

/// Counts by name, and one count for all names that exceed the length or the number.
#[derive(Debug, Default)]
pub(super) struct Tally {
    named: Counts,
    others: u64,
    /// Whether a name was not added because the limit was reached. From then on no new name is added, so that the
    /// count of each named service is complete.
    full: bool,
}

impl Tally {
    pub(super) fn add(&mut self, service: &str, records: u64) {
        if let Some(count) = self.named.get_mut(service) {
            *count += records;
        } else if service.len() > LONGEST_NAME || self.full || self.named.len() >= MOST_NAMES {
            self.full |= service.len() <= LONGEST_NAME;
            self.others += records;
        } else {
            self.named.insert(service.to_owned(), records);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = self.named.clone();
        if self.others > 0 {
            *counts.entry(OTHERS.to_owned()).or_default() += self.others;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_in_number_and_length_and_every_record_is_counted() {
        let mut tally = Tally::default();
        tally.add("first", 1);
        tally.add(&"x".repeat(1_000_000), 5);
        for n in 0..5000 {
            tally.add(&format!("service {n}"), 1);
        }
        tally.add("first", 1);
        let counts = tally.counts();
        assert_eq!((counts["first"], counts[OTHERS], counts.len()), (2, 5 + 4001, MOST_NAMES + 1));
        assert_eq!(counts.values().sum::<u64>(), 5007);
        assert!(counts.keys().all(|name| name.len() <= LONGEST_NAME));
    }
}
