//! How many cases each transport ran, and which it could not: printed after the run.

use std::sync::atomic::{AtomicUsize, Ordering};

/// One transport's count.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    name: String,
    passed: AtomicUsize,
    failed: AtomicUsize,
    /// Cases about abilities that the transport does not declare. The case that it refuses them runs in their place;
    /// of one that it does declare, the case of the refusal is here.
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

/// A line for each transport of which anything ran.
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
