//! `backbone task`: runs the commands of the task queue on the task store beside the bus.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use event_client::Bus;
use event_client::transport::Finding;
use jiff::{SignedDuration, Timestamp};
use service_kit::shutdown::signal;
use task_queue::command::{Settings, TaskCommand};
use task_queue::store::{StoreUrl, Waiting};
use terminal::age;

use crate::args::Global;
use crate::builtin;
use crate::stack::tasks_url;

pub(crate) async fn run(global: &Global, command: TaskCommand) -> anyhow::Result<ExitCode> {
    // `worker` has a built-in task that publishes events; the other commands need no bus.
    let bus = if matches!(command, TaskCommand::Worker(_)) {
        Some(super::connect::connect(global).await?)
    } else {
        None
    };
    let data_dir = data_dir();
    let url = tasks_url(&global.bus_url(), &data_dir)?;
    if data_dir == Path::new(Bus::DEFAULT_FOLDER) {
        private_files::create_folder(&data_dir)?;
    }
    let register = |worker| match &bus {
        Some(bus) => builtin::register(task_queue::Worker::with_state(worker, bus.clone())),
        None => worker,
    };
    let stop = async { _ = signal().await };
    command.run(Settings::new(Some(url), global.json), register, stop).await?;
    if let Some(bus) = bus {
        bus.close().await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the directory in which `backbone up` stores all data that are not on a broker.
fn data_dir() -> PathBuf {
    std::env::var_os("BACKBONE_DATA_DIR").map_or_else(|| Bus::DEFAULT_FOLDER.into(), PathBuf::from)
}

/// Reports due tasks for which no worker runs, for `backbone doctor`. Reads the store that `backbone task` uses; if
/// the bus is a broker, the store that `backbone up` creates in its data directory.
pub(crate) async fn examine(global: &Global) -> Finding {
    match waiting(global).await {
        Ok(Some((waiting, patience))) => told(&waiting, patience),
        Ok(None) => Finding::good("tasks", "there is no task store yet"),
        Err(error) => Finding::bad("tasks", format!("{error:#}")),
    }
}

async fn waiting(global: &Global) -> anyhow::Result<Option<(Vec<Waiting>, SignedDuration)>> {
    let url = tasks_url(&global.bus_url(), &data_dir())?;
    let StoreUrl::Sqlite(options) = StoreUrl::parse(&url)?;
    // The check must not create a store.
    if !options.path.exists() {
        return Ok(None);
    }
    let store = task_queue::store::open(&url).await?;
    let patience = SignedDuration::try_from(store.patience()).unwrap_or(SignedDuration::MAX);
    Ok(Some((store.waiting().await?, patience)))
}

fn told(waiting: &[Waiting], patience: SignedDuration) -> Finding {
    let now = Timestamp::now();
    let patience = match patience.as_secs() % 86_400 {
        0 => format!("{}d", patience.as_secs() / 86_400),
        _ => format!("{patience:#}"),
    };
    let left: Vec<_> = waiting
        .iter()
        .filter(|kind| kind.workers == 0)
        .map(|kind| {
            let age = age(now.duration_since(kind.oldest));
            let known = match kind.known {
                true => String::new(),
                false => format!(", registered by no worker, becomes dead {patience} after it is due"),
            };
            format!("`{}` in queue {} ({} due, oldest {age} old{known})", kind.name, kind.queue, kind.tasks)
        })
        .collect();
    if left.is_empty() {
        return Finding::good("tasks", "every due task has a worker");
    }
    Finding::bad(
        "tasks",
        format!(
            "no live worker takes {}; start one that registers the kind and serves the queue",
            left.join(", ")
        ),
    )
}
