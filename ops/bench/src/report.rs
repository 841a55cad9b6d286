//! Computes medians, spreads and ratios of the runs, and prints them as tables or as JSON.

use anyhow::Result;
use serde::Serialize;

use crate::args::Args;
use crate::contestants;
use crate::plan::{Broker, Row};
use crate::rounds::Run;

/// The result of one contestant in one row.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    broker: String,
    row: String,
    size: usize,
    contestant: String,
    /// Rounds that succeeded.
    rounds: usize,
    /// Messages per second, median.
    rate: f64,
    /// Half of the distance between the fastest and the slowest round, as a fraction of the median.
    spread: f64,
    /// The median over the rounds of this rate divided by the raw client's in the same round; for the latency
    /// row: of its p50.
    of_raw: Option<f64>,
    /// Microseconds, medians of the rounds' p50 and p99.
    latency: Option<[f64; 2]>,
    /// CPU seconds per million messages, medians; in the latency row mostly the waiting between messages.
    client_cpu: f64,
    server_cpu: f64,
    /// The highest memory of the client in any round, MiB.
    peak_mib: f64,
    /// Guarantees of the raw client that this contestant lacks, and failures.
    notes: Vec<String>,
}

/// Returns the median of `values`; not a number when there are none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Returns the compared number: the p50 of the latency row, else the rate.
fn score(run: &Run) -> Option<f64> {
    let outcome = run.outcome.as_ref()?;
    Some(match outcome.latency {
        Some([p50, _]) => p50,
        None => outcome.messages as f64 / outcome.seconds,
    })
}

fn summary(
    all: &[Run],
    broker: Broker,
    row: Row,
    size: usize,
    entry: &contestants::Entry,
) -> Option<Summary> {
    let same = |run: &&Run| run.broker == broker && run.row == row && run.size == size;
    let mine: Vec<&Run> = all.iter().filter(same).filter(|run| run.contestant == entry.name).collect();
    if mine.is_empty() {
        return None;
    }
    let mut this = Summary {
        broker: broker.to_string(),
        row: row.title().to_owned(),
        size,
        contestant: entry.name.to_owned(),
        ..Default::default()
    };
    let good: Vec<_> = mine.iter().filter_map(|run| run.outcome.as_ref()).collect();
    this.rounds = good.len();
    if !good.is_empty() {
        let scores: Vec<f64> = mine.iter().filter_map(|run| score(run)).collect();
        let (least, most) = scores.iter().fold((f64::MAX, 0f64), |(a, b), &x| (a.min(x), b.max(x)));
        let middle = median(scores);
        this.spread = (most - least) / 2.0 / middle;
        this.rate = median(good.iter().map(|one| one.messages as f64 / one.seconds).collect());
        let million = |cpu: fn(&crate::child::Outcome) -> f64| {
            median(good.iter().map(|one| cpu(one) / one.messages as f64 * 1e6).collect())
        };
        (this.client_cpu, this.server_cpu) = (million(|one| one.client_cpu), million(|one| one.server_cpu));
        this.peak_mib = good.iter().map(|one| one.peak).max().unwrap_or_default() as f64 / f64::from(1 << 20);
        if row == Row::Latency {
            let part =
                |at: usize| median(good.iter().filter_map(|one| one.latency).map(|both| both[at]).collect());
            this.latency = Some([part(0), part(1)]);
        }
        let raw = |round| all.iter().filter(same).find(|run| run.round == round && run.contestant == "raw");
        let ratios: Vec<f64> =
            mine.iter().filter_map(|run| Some(score(run)? / score(raw(run.round)?)?)).collect();
        this.of_raw = (!ratios.is_empty()).then(|| median(ratios));
    }
    let lacks = [(row.publishes(), entry.publish_lacks), (row.consumes(), entry.consume_lacks)];
    this.notes.extend(
        lacks.iter().filter(|(so, text)| *so && !text.is_empty()).map(|(_, text)| (*text).to_owned()),
    );
    let left = good.iter().map(|one| one.unsettled).max().unwrap_or_default();
    if left > 0 {
        this.notes.push(format!("{left} NOT SETTLED"));
    }
    let late = good.iter().map(|one| one.settled_after).fold(0.0, f64::max);
    if left == 0 && late > 0.5 {
        this.notes.push(format!("settled {late:.1} s after the end"));
    }
    if let Some(error) = mine.iter().find_map(|run| run.error.as_ref()) {
        this.notes.push(error.clone());
    }
    Some(this)
}

fn summaries(args: &Args, runs: &[Run]) -> Vec<Summary> {
    let mut out = Vec::new();
    for broker in args.brokers() {
        for &size in &args.size {
            for row in args.rows() {
                let entries = contestants::of(broker).iter();
                out.extend(entries.filter_map(|entry| summary(runs, broker, row, size, entry)));
            }
        }
    }
    out
}

/// Returns one line about one run.
pub fn line(run: &Run) -> String {
    let head =
        format!("{} {:?} {} B round {} {}", run.broker, run.row, run.size, run.round + 1, run.contestant);
    match (&run.outcome, &run.error) {
        (Some(outcome), _) => {
            let what = match outcome.latency {
                Some([p50, p99]) => format!("{p50:.0} / {p99:.0} us"),
                None => format!("{:.0}/s", outcome.messages as f64 / outcome.seconds),
            };
            format!("{head}: {what} ({} messages, {:.2} s)", outcome.messages, outcome.seconds)
        }
        (None, error) => format!("{head}: {}", error.as_deref().unwrap_or("nothing")),
    }
}

pub fn json(args: &Args, runs: &[Run]) -> Result<()> {
    let all = serde_json::json!({
        "durability": args.durability,
        "generation": format!("{:?}", args.generation).to_lowercase(),
        "threads": args.threads,
        "summary": summaries(args, runs),
        "runs": runs,
    });
    println!("{}", serde_json::to_string_pretty(&all)?);
    Ok(())
}

pub fn tables(args: &Args, runs: &[Run]) -> Result<()> {
    let mut head = (String::new(), 0);
    for one in summaries(args, runs) {
        if (one.broker.clone(), one.size) != head {
            head = (one.broker.clone(), one.size);
            println!("\n### {}, {} B\n", one.broker, one.size);
            println!(
                "| row | contestant | per second | of raw | ± | client CPU s/M | server CPU s/M | peak MiB | notes |"
            );
            println!("|---|---|--:|--:|--:|--:|--:|--:|---|");
        }
        let rate = match (one.rounds, one.latency) {
            (0, _) => "-".to_owned(),
            (_, Some([p50, p99])) => format!("{p50:.0} / {p99:.0} us"),
            (_, None) => format!("{:.0}", one.rate),
        };
        let ratio = one.of_raw.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        println!(
            "| {} | {} | {rate} | {ratio} | {:.0}% | {:.1} | {:.1} | {:.0} | {} |",
            one.row,
            one.contestant,
            one.spread * 100.0,
            one.client_cpu,
            one.server_cpu,
            one.peak_mib,
            one.notes.join("; "),
        );
    }
    Ok(())
}
