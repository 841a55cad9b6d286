//! A run: faults one after another, each followed by a check that work continues; then the end and the final
//! check.

use crate::broker::Broker;
use crate::checker::{Evidence, check};
use crate::faults::Fault;
use crate::options::Options;
use crate::team::{GROUPS, Team, connect};
use crate::watch::{Readings, read, verdicts};
use crate::{Result, ledger};
use event_client::Bus;
use event_client::subject::Group;
use event_client::transport::DeadLetterFilter;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long work may take to continue after a fault is over.
const RECOVERED: Duration = Duration::from_secs(90);
/// How long the groups may make no progress while they handle the remaining messages. The number of messages
/// and the speed depend on the machine.
const DRAINED: Duration = Duration::from_secs(120);
/// The growth of a ledger that proves progress, in bytes: about ten lines.
const LIFE: u64 = 250;

pub(crate) async fn run(options: &Options) -> Result<()> {
    let broker = Broker::start(options).await?;
    let mut team = Team::start(options, &broker).await?;
    let result = torture(options, &broker, &mut team).await;
    if result.is_err() {
        // The files are kept, so that the failure can be investigated.
        println!("kept: {}", team.keep().display());
        if let Some(server) = broker.process() {
            server.keep();
            println!("kept: {}", server.folder().display());
        }
    }
    result
}

async fn torture(options: &Options, broker: &Broker, team: &mut Team) -> Result<()> {
    let possible = Fault::of(options, broker)?;
    let mut random = fastrand::Rng::with_seed(options.seed);
    let (begun, mut counts, mut readings) =
        (Instant::now(), BTreeMap::<Fault, usize>::new(), Readings::new());
    goes_on(team, "the start").await?;
    let mut number = 0;
    while number < options.faults && options.time.is_none_or(|time| begun.elapsed() < time) {
        number += 1;
        let fault = possible[random.usize(..possible.len())];
        *counts.entry(fault).or_default() += 1;
        let started = Instant::now();
        fault
            .strike(broker, team, &mut random)
            .await
            .map_err(|e| format!("fault {number}, {}: {e}", fault.name()))?;
        let struck = started.elapsed();
        goes_on(team, &format!("fault {number}, {}", fault.name())).await?;
        println!(
            "{number}/{}: {} for {:.1} s, work continues after {:.1} s",
            options.faults,
            fault.name(),
            struck.as_secs_f64(),
            (started.elapsed() - struck).as_secs_f64()
        );
        read(&mut readings, team, broker).await;
        sleep(Duration::from_millis(random.u64(50..500))).await;
    }
    team.leave_to_the_steady().await?;
    goes_on(team, "all faults, with only the workers that survived them").await?;
    println!("finishing");
    let evidence = finish(options, broker, team, number).await?;
    let mut verdict = check(&evidence);
    for (line, flat) in verdicts(&readings) {
        verdict.facts.push(line.clone());
        if !flat {
            verdict.violations.push(format!("not flat: {line}"));
        }
    }
    println!(
        "{:?}{}, seed {}: {number} faults in {} s",
        options.on,
        if options.new { " (new)" } else { "" },
        options.seed,
        begun.elapsed().as_secs()
    );
    println!(
        "  {}",
        counts
            .iter()
            .map(|(fault, count)| format!("{} {}", count, fault.name()))
            .collect::<Vec<_>>()
            .join(", ")
    );
    verdict.facts.iter().for_each(|fact| println!("  {fact}"));
    if verdict.violations.is_empty() {
        println!("  nothing lost, all promises kept");
        return Ok(());
    }
    verdict.violations.iter().take(20).for_each(|violation| println!("  BROKEN: {violation}"));
    Err(format!("{} promises broken", verdict.violations.len()).into())
}

/// Waits until the ledgers of the publishers and both groups have grown.
async fn goes_on(team: &mut Team, after: &str) -> Result<()> {
    let (start, before) = (Instant::now(), team.progress());
    loop {
        team.all_live().map_err(|e| format!("after {after}: {e}"))?;
        let now = team.progress();
        if now.iter().zip(before).all(|(now, before)| now - before >= LIFE) {
            return Ok(());
        }
        if start.elapsed() > RECOVERED {
            let grown = [0, 1, 2].map(|index| now[index] - before[index]);
            return Err(format!(
                "{RECOVERED:?} after {after}: publishers, keyed and free group wrote {grown:?} bytes"
            )
            .into());
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Lets all children finish and collects their results.
pub(crate) async fn finish(
    options: &Options,
    broker: &Broker,
    team: &mut Team,
    faults: usize,
) -> Result<Evidence> {
    team.stop_publishers().await?;
    let bus = connect(broker.url()).await?;
    drained(&bus, team, &GROUPS[..2]).await?;
    team.call_back()?;
    drained(&bus, team, &GROUPS[2..]).await?;
    team.stop_workers().await?;
    // Messages that a worker held without recording them return to the group when it ends.
    let back = bus.admin().groups().await?;
    let left = back.iter().filter(|status| status.waiting + status.retrying > 0).map(|s| format!("{s:?}"));
    let left = left.collect();
    let mut published = Vec::new();
    for path in team.published() {
        published.extend(ledger::published(&path)?);
    }
    let (mut handled, mut dead) = (BTreeMap::new(), BTreeMap::new());
    for group in GROUPS {
        handled.insert(group.to_owned(), ledger::handled(&team.handled(group))?);
        let filter = DeadLetterFilter { group: Some(Group::new(group)?), ..Default::default() };
        let mut letters = Vec::new();
        for letter in bus.admin().dead_letters(filter).await? {
            let body: serde_json::Value = serde_json::from_slice(&letter.message.payload)?;
            let (lane, number) = (body["data"]["lane"].as_str(), body["data"]["number"].as_u64());
            letters
                .push((lane.ok_or("a dead letter without a lane")?.to_owned(), number.ok_or("and number")?));
        }
        dead.insert(group.to_owned(), letters);
    }
    bus.close().await?;
    Ok(Evidence { seed: options.seed, lanes: options.lanes, faults, published, handled, dead, left })
}

/// Waits until these groups have no unsettled message.
async fn drained(bus: &Bus, team: &mut Team, names: &[&str]) -> Result<()> {
    let (mut moved, mut last) = (Instant::now(), u64::MAX);
    loop {
        let all = bus.admin().groups().await?;
        let busy: Vec<_> = all
            .iter()
            .filter(|status| names.contains(&status.group.as_str()))
            .filter(|status| status.waiting + status.in_flight + status.retrying > 0)
            .collect();
        if busy.is_empty() && names.iter().all(|name| all.iter().any(|status| status.group.as_str() == *name))
        {
            return Ok(());
        }
        team.all_live()?;
        let left = busy.iter().map(|status| status.waiting + status.in_flight + status.retrying).sum();
        if left < last {
            (moved, last) = (Instant::now(), left);
        }
        if moved.elapsed() > DRAINED {
            return Err(format!("messages are left, and no progress for {DRAINED:?}: {busy:?}").into());
        }
        sleep(Duration::from_millis(100)).await;
    }
}
