//! `backbone task`: the task queue's verbs, on the store beside the bus.

use std::process::ExitCode;

use task_queue::command::{Settings, TaskCommand};
use task_queue::store::url_beside_bus;

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
