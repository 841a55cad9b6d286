//! Counts the cases that each transport ran and lists those that do not apply; printed after the run.

use std::sync::atomic::{AtomicUsize, Ordering};

/// One transport's count.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    name: String,
    passed: AtomicUsize,
    failed: AtomicUsize,
    /// Cases of abilities that the transport does not declare: a case of the refusal runs in their place. For
    /// a declared ability, the case of the refusal is listed here.
    elsewhere: Vec<String>,
}

impl Tally {
    pub(crate) fn new(name: &str, elsewhere: Vec<String>) -> Self {
        Self { name: name.to_owned(), elsewhere, ..Self::default() }
    }

    pub(crate) fn count<T, E>(&self, result: Result<T, E>) -> Result<T, E> {
        let counter = if result.is_ok() { &self.passed } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }
}

/// Prints a line for each transport with at least one case that ran.
pub(crate) fn print(tallies: &[std::sync::Arc<Tally>]) {
    for tally in tallies {
        let [passed, failed] = [&tally.passed, &tally.failed].map(|count| count.load(Ordering::Relaxed));
        if passed + failed > 0 {
            println!(
                "{:<13}{passed} passed, {failed} failed; not about this transport: {} ({})",
                tally.name,
                tally.elsewhere.len(),
                tally.elsewhere.join(", ")
            );
        }
    }
}
