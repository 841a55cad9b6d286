//! `backbone task`: the task queue's verbs, on the store beside the bus.

use std::process::ExitCode;

use event_client::transport::Finding;
use jiff::{SignedDuration, Timestamp};
use task_queue::command::{Settings, TaskCommand};
use task_queue::store::{StoreUrl, Waiting, url_beside_bus};

use super::interrupted;
use crate::args::Global;
use crate::builtin;

pub(crate) async fn run(global: &Global, command: TaskCommand) -> anyhow::Result<ExitCode> {
    // `worker` has a built-in task that publishes events; the other verbs need no bus.
    let bus =
        if matches!(command, TaskCommand::Worker(_)) { Some(super::connect(global).await?) } else { None };
    // Celery's variable names a store by itself; otherwise the store lies beside the bus.
    let url = match std::env::var_os("CELERY_BROKER_URL") {
        Some(_) => None,
        None => Some(url_beside_bus(global.bus_url())?),
    };
    let register = |worker| match &bus {
        Some(bus) => builtin::register(task_queue::Worker::with_state(worker, bus.clone())),
        None => worker,
    };
    command.run(Settings::new(url, global.json), register, interrupted()).await?;
    if let Some(bus) = bus {
        bus.close().await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether due tasks wait for a worker that nobody has started, for the doctor. Looks at the store that `backbone task`
/// uses; beside a broker, at the one that `backbone up` keeps in its data directory.
pub(crate) async fn examine(global: &Global) -> Finding {
    match waiting(global).await {
        Ok(Some((waiting, patience))) => told(&waiting, patience),
        Ok(None) => Finding::good("tasks", "there is no task store yet"),
        Err(error) => Finding::bad("tasks", error.to_string()),
    }
}

async fn waiting(global: &Global) -> task_queue::Result<Option<(Vec<Waiting>, SignedDuration)>> {
    let url = match (std::env::var("CELERY_BROKER_URL"), url_beside_bus(global.bus_url())) {
        (Ok(url), _) | (Err(_), Ok(url)) => url,
        (Err(_), Err(_)) => {
            let folder = std::env::var("BACKBONE_DATA_DIR").unwrap_or_else(|_| "backbone-data".to_owned());
            format!("sqlite:{folder}/bus-tasks.db")
        }
    };
    let StoreUrl::Sqlite(options) = StoreUrl::parse(&url)?;
    // To look makes nothing.
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
            let age = SignedDuration::from_secs(now.duration_since(kind.oldest).as_secs());
            let known = match kind.known {
                true => String::new(),
                false => format!(", registered by no worker, dead {patience} after it fell due"),
            };
            format!("`{}` in queue {} ({} due, oldest {age:#} old{known})", kind.name, kind.queue, kind.tasks)
        })
        .collect();
    if left.is_empty() {
        return Finding::good("tasks", "none waits without a worker that takes it");
    }
    Finding::bad(
        "tasks",
        format!(
            "no live worker takes {}; start one that registers the kind and serves the queue",
            left.join(", ")
        ),
    )
}
