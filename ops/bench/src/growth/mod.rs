//! Measures how the cost of our transports grows: each row runs at several sizes, and the exponent of the growth is
//! fitted to the results.

mod args;
mod backlog;
mod figures;
mod fit;
mod groups;
mod idle;
mod keys;
mod member;
mod point;
mod processes;
mod report;
mod row;
mod store;
mod topics;
mod traffic;

use anyhow::{Result, bail};

pub use args::GrowthArgs;
use row::{Bus, Row};
use store::Store;

/// Threads of the runtime of every process that is measured.
const THREADS: usize = 2;

/// Runs the command `growth`, or the part of it that a child process does.
pub fn run(args: &GrowthArgs) -> Result<()> {
    let children =
        tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    if let Some(task) = &args.point {
        let task: point::Task = serde_json::from_str(task)?;
        let figures = children.block_on(async { tokio::spawn(point::measure(task)).await? })?;
        println!("{}", serde_json::to_string(&figures)?);
    } else if let Some(task) = &args.member {
        let task: member::Task = serde_json::from_str(task)?;
        let share = children.block_on(async { tokio::spawn(member::run(task)).await? })?;
        println!("{}", serde_json::to_string(&share)?);
    } else {
        let mut points = Vec::new();
        for bus in args.buses() {
            points.extend(children.block_on(points_of(args, bus))?);
        }
        report::print(args, &points)?;
        let failed = points.iter().filter(|point| point.error.is_some()).count();
        if failed > 0 {
            bail!("{failed} of {} sizes failed", points.len());
        }
        return Ok(());
    }
    // The background tasks of a transport are not awaited: the process ends.
    children.shutdown_background();
    Ok(())
}

/// Measures all rows that `args` selects on `bus`. The rounds are the outer loop, so that other load on the machine
/// slows all sizes of a row.
async fn points_of(args: &GrowthArgs, bus: Bus) -> Result<Vec<point::Point>> {
    let store = Store::start(bus, args.generation.into(), args.durability).await?;
    let mut points: Vec<point::Point> = Vec::new();
    for row in args.rows().into_iter().filter(|row| row.runs_on(bus)) {
        for round in 0..args.rounds {
            for &size in args.sizes.of(row) {
                let point = one(args, &store, row, size, round, points.len()).await?;
                if !args.quiet {
                    eprintln!("{}", report::line(&point));
                }
                points.push(point);
            }
        }
    }
    Ok(points)
}

/// Measures one size of a row in a place of its own, and removes the place.
async fn one(
    args: &GrowthArgs,
    store: &Store,
    row: Row,
    size: usize,
    round: usize,
    number: usize,
) -> Result<point::Point> {
    let place = store.place(&format!("growth{number}")).await?;
    let task = point::Task { row, size, place, load: args.load };
    let result = match row {
        // This row starts the measured processes itself.
        Row::Processes => processes::measure(&task).await,
        _ => point::in_child(&task).await,
    };
    store.clear(&task.place).await?;
    let (figures, error) = match result {
        Ok(figures) => (figures, None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    Ok(point::Point { bus: store.bus(), row, size, round, figures, error })
}
