//! A soak: no faults, half of the machine's full speed, and every counter must stay flat.

use crate::Result;
use crate::broker::Broker;
use crate::checker::check;
use crate::ledger::{Published, published};
use crate::options::Options;
use crate::run::finish;
use crate::team::Team;
use crate::watch::{Readings, read, verdicts};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long the full speed is measured.
const MEASURED: Duration = Duration::from_secs(10);
/// The interval between two readings.
const EVERY: Duration = Duration::from_secs(2);

pub(crate) async fn run(options: &Options) -> Result<()> {
    let time = options.soak.unwrap_or_default();
    let broker = Broker::start(options).await?;
    let mut team = Team::start(options, &broker).await?;
    team.publishers_at_work().await?;
    team.stop_publishers().await?;
    let before = confirmed(&team)?;
    team.start_publishers(0)?;
    sleep(MEASURED).await;
    team.stop_publishers().await?;
    let full = (confirmed(&team)? - before) as f64 / MEASURED.as_secs_f64();
    // Each lane gets its share of half the speed; the duration of a publish itself is added to the pause.
    let pause = (2.0 * options.lanes as f64 * 1000.0 / (full / 2.0)).ceil().max(1.0) as u64;
    println!("full speed {full:.0}/s; half of it from now on: one step of each key every {pause} ms");
    team.start_publishers(pause)?;
    let (start, begun, mut readings) = (Instant::now(), confirmed(&team)?, Readings::new());
    while start.elapsed() < time {
        sleep(EVERY).await;
        team.all_live()?;
        read(&mut readings, &team, &broker).await;
    }
    let rate = (confirmed(&team)? - begun) as f64 / start.elapsed().as_secs_f64();
    let evidence = finish(options, &broker, &mut team, 0).await?;
    let mut verdict = check(&evidence);
    for (line, flat) in verdicts(&readings) {
        verdict.facts.push(line.clone());
        if !flat {
            verdict.violations.push(format!("not flat: {line}"));
        }
    }
    println!(
        "{:?}{}: {} s at {rate:.0}/s",
        options.on,
        if options.new { " (new)" } else { "" },
        start.elapsed().as_secs()
    );
    verdict.facts.iter().for_each(|fact| println!("  {fact}"));
    if verdict.violations.is_empty() {
        println!("  nothing lost, nothing grew");
        return Ok(());
    }
    verdict.violations.iter().take(20).for_each(|violation| println!("  BROKEN: {violation}"));
    Err(format!("{} promises broken", verdict.violations.len()).into())
}

fn confirmed(team: &Team) -> Result<usize> {
    let mut count = 0;
    for path in team.published() {
        count += published(&path)?.iter().filter(|line| matches!(line, Published::Confirmed(..))).count();
    }
    Ok(count)
}
