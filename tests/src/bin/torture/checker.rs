//! Checks every promise against the ledgers and the dead letters.
//!
//! - Each confirmed step was handled by each group, or is among its dead letters.
//! - The dead letters of a group are all poison steps and no others; no poison step was handled.
//! - In the keyed group no step is handled before the previous one of its lane.
//! - When all workers have ended, no message returns to a group: nothing was left in flight.
//! - Only steps that were in flight at a fault are repeated: for each fault at most a fixed number.

use crate::ledger::{Handled, Published};
use crate::work::{CONCURRENCY, Kind, kind};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The number of acknowledgements that one fault may lose, so that their steps are handled again: a client sends up
/// to this many together when the machine is busy.
const UNSTORED: usize = 64;

/// The results of a run.
pub(crate) struct Evidence {
    pub(crate) seed: u64,
    pub(crate) lanes: usize,
    pub(crate) faults: usize,
    pub(crate) published: Vec<Published>,
    /// The ledger lines of each group.
    pub(crate) handled: BTreeMap<String, Vec<Handled>>,
    /// The dead letters of each group: lane and number, with repetitions.
    pub(crate) dead: BTreeMap<String, Vec<(String, u64)>>,
    /// Groups that have messages again after all workers have ended.
    pub(crate) left: Vec<String>,
}

/// The checker's result: facts, and violations of promises.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) facts: Vec<String>,
    pub(crate) violations: Vec<String>,
}

/// Checks all promises.
pub(crate) fn check(evidence: &Evidence) -> Report {
    let mut verdict = Report::default();
    let mut confirmed: HashSet<(&str, u64)> = HashSet::new();
    for line in &evidence.published {
        match line {
            Published::Confirmed(lane, number) => drop(confirmed.insert((lane, *number))),
            Published::Strange(text) => {
                verdict.violations.push(format!("a publish failed strangely: {text}"))
            }
            Published::Begun(..) => {}
        }
    }
    let is_poison = |(lane, number): &(&str, u64)| kind(evidence.seed, lane, *number) == Kind::Poison;
    let poison: HashSet<(&str, u64)> = confirmed.iter().copied().filter(is_poison).collect();
    verdict.facts.push(format!("{} confirmed, {} of them poison", confirmed.len(), poison.len()));
    for (group, lines) in &evidence.handled {
        let well: HashSet<(&str, u64)> =
            lines.iter().filter(|line| line.well).map(|line| (line.lane.as_str(), line.number)).collect();
        let letters = evidence.dead.get(group).map(Vec::as_slice).unwrap_or_default();
        let dead: HashSet<(&str, u64)> =
            letters.iter().map(|(lane, number)| (lane.as_str(), *number)).collect();
        let mut differ = |what: &str, set: Vec<(&str, u64)>| {
            if !set.is_empty() {
                let some = &set[..set.len().min(20)];
                verdict.violations.push(format!("{group}: {} {what}: {some:?}", set.len()));
            }
        };
        differ(
            "confirmed and lost",
            confirmed.iter().copied().filter(|s| !well.contains(s) && !dead.contains(s)).collect(),
        );
        differ("poison without a dead letter", poison.difference(&dead).copied().collect());
        differ(
            "dead letters that are no poison",
            dead.iter().copied().filter(|step| !is_poison(step)).collect(),
        );
        differ("poison handled", well.iter().copied().filter(is_poison).collect());
        let count = lines.iter().filter(|line| line.well).count();
        let repeats = count - well.len();
        // Steps in flight at two workers, acknowledgements that were not stored, and steps that were published
        // again because the confirmation was lost.
        let most = (evidence.faults + 1) * (2 * CONCURRENCY + UNSTORED + 2 * evidence.lanes);
        if repeats > most {
            verdict.violations.push(format!("{group}: {repeats} repeats, at most {most} are explained"));
        }
        let again = letters.len() - dead.len();
        if again > evidence.faults {
            verdict.violations.push(format!("{group}: {again} dead letters are there more than once"));
        }
        verdict.facts.push(format!(
            "{group}: {} handled, {repeats} repeated (at most {most} explained), {} dead letters, {again} of them twice",
            well.len(),
            dead.len()
        ));
    }
    let left = evidence.left.iter().map(|status| format!("left behind by its workers: {status}"));
    verdict.violations.extend(left);
    let keyed = evidence.handled.get("keyed").map(Vec::as_slice).unwrap_or_default();
    verdict.violations.extend(order(keyed));
    verdict
}

/// Checks the order of each lane: a step may be repeated, but not handled early; returns the violations.
fn order(lines: &[Handled]) -> Vec<String> {
    let mut next: HashMap<&str, u64> = HashMap::new();
    let mut violations = Vec::new();
    for line in lines {
        let next = next.entry(&line.lane).or_default();
        if line.number > *next {
            violations.push(format!("keyed: {}/{} came when {next} was next", line.lane, line.number));
        }
        *next = (*next).max(line.number + 1);
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 7;

    /// The first three steps of a lane whose second step is poison.
    fn lane() -> String {
        let of = |lane: &str, number| kind(SEED, lane, number);
        (0..)
            .map(|n| n.to_string())
            .find(|lane| {
                of(lane, 1) == Kind::Poison && of(lane, 0) == Kind::Quick && of(lane, 2) == Kind::Quick
            })
            .unwrap()
    }

    fn evidence(lines: &[(&str, u64)], dead: &[u64]) -> Evidence {
        let lane = lane();
        let handled = lines.iter().map(|(what, number)| Handled {
            lane: lane.clone(),
            number: *number,
            attempt: 1,
            well: *what == "handled",
        });
        Evidence {
            seed: SEED,
            lanes: 1,
            faults: 0,
            published: (0..3).map(|number| Published::Confirmed(lane.clone(), number)).collect(),
            handled: BTreeMap::from([("keyed".to_owned(), handled.collect())]),
            dead: BTreeMap::from([("keyed".to_owned(), dead.iter().map(|n| (lane.clone(), *n)).collect())]),
            left: Vec::new(),
        }
    }

    const GOOD: [(&str, u64); 4] = [("handled", 0), ("handled", 0), ("failed", 1), ("handled", 2)];

    #[test]
    fn a_good_run_is_good() {
        assert_eq!(check(&evidence(&GOOD, &[1])).violations, Vec::<String>::new());
    }

    #[test]
    fn what_must_not_be_is_found() {
        let lines = |change: fn(&mut Vec<(&'static str, u64)>)| {
            let mut lines = GOOD.to_vec();
            change(&mut lines);
            lines
        };
        let cases = [
            ("lost", evidence(&GOOD[..3], &[1])),
            ("without a dead letter", evidence(&GOOD, &[])),
            ("no poison", evidence(&GOOD, &[1, 2])),
            ("poison handled", evidence(&lines(|lines| lines.push(("handled", 1))), &[1])),
            ("was next", evidence(&lines(|lines| lines.swap(1, 3)), &[1])),
            ("repeats", evidence(&lines(|lines| lines.extend([("handled", 2); 200])), &[1])),
            ("more than once", evidence(&GOOD, &[1, 1])),
        ];
        let left = Evidence { left: vec!["1 waiting".to_owned()], ..evidence(&GOOD, &[1]) };
        for (what, evidence) in cases.into_iter().chain([("left behind", left)]) {
            let violations = check(&evidence).violations;
            assert!(violations.iter().any(|text| text.contains(what)), "{what}: {violations:?}");
        }
    }
}
