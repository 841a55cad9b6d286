//! Observes a process whose groups have nothing to do, and its server.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use super::figures::{Figure, Meter, figure};
use super::store::Place;
use crate::usage;

/// The pause before the observation, in which the work that follows a burst ends.
const PAUSE: Duration = Duration::from_secs(1);

/// Returns CPU time and wake-ups of this process and of its server over `seconds`, and on Redis the number of commands.
pub async fn observe(place: &Place, seconds: f64) -> Result<Vec<Figure>> {
    sleep(PAUSE).await;
    let commands = commands(place).await?;
    let own = usage::own_wake_ups()?;
    let server = place.server.map(usage::wake_ups_of).transpose()?;
    let meter = Meter::start(place.server)?;
    sleep(Duration::from_secs_f64(seconds)).await;
    let cost = meter.stop()?;
    let wall = cost.wall.as_secs_f64();
    let per_second = |count: u64| count as f64 / wall;
    let mut figures = vec![
        figure("idle client CPU %", cost.client.as_secs_f64() / wall * 100.0),
        figure("idle client wake-ups/s", per_second(usage::own_wake_ups()?.saturating_sub(own))),
    ];
    if let (Some(process), Some(before), Some(cpu)) = (place.server, server, cost.server) {
        let after = usage::wake_ups_of(process)?;
        figures.push(figure("idle server CPU %", cpu.as_secs_f64() / wall * 100.0));
        figures.push(figure("idle server wake-ups/s", per_second(after.saturating_sub(before))));
    }
    if let (Some(before), Some(after)) = (commands, self::commands(place).await?) {
        // The connection that reads the second number also sends commands of its own.
        figures.push(figure("idle server commands/s", per_second(after.saturating_sub(before))));
    }
    Ok(figures)
}

/// Returns the number of commands that a Redis server has processed so far.
async fn commands(place: &Place) -> Result<Option<u64>> {
    if !place.url.starts_with("redis") {
        return Ok(None);
    }
    let client = redis::Client::open(place.url.as_str())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let text: String = redis::cmd("INFO").arg("stats").query_async(&mut connection).await?;
    let count = text.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
    Ok(Some(count.context("no number of commands")?.trim().parse()?))
}
