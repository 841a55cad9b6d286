//! Implements the subcommand `worker`.

use std::sync::Arc;

use clap::Args;
use settings::duration;
use tokio_util::sync::CancellationToken;

use terminal::{note, plain};

use crate::{Beat, Error, Result, Worker, bounds::SLOTS, store::TaskStore};

/// Options of `worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Serve these queues, separated by commas (else those of the registered tasks)
    #[arg(short = 'Q', long, value_delimiter = ',', value_name = "QUEUES")]
    queues: Vec<String>,
    /// Run this many tasks at once, at most 65536 (else one for each core)
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=SLOTS as i64))]
    concurrency: Option<u32>,
    /// Fire schedules as well
    #[arg(short = 'B', long)]
    beat: bool,
    /// The worker's name, shown to people
    #[arg(short = 'n', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Time that running tasks have to finish at shutdown
    #[arg(long, default_value = "30s", value_name = "TIME")]
    grace: String,
}

impl WorkerArgs {
    pub(super) async fn run(
        self,
        store: Arc<dyn TaskStore>,
        url: &str,
        register: impl FnOnce(Worker) -> Worker,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        let grace = duration::parse(&self.grace).ok_or_else(|| {
            Error::invalid(format!("`--grace {}` is not a duration such as `30s`", self.grace))
        })?;
        let mut worker = register(Worker::new(store.clone())).grace(grace);
        if !self.queues.is_empty() {
            worker = worker.queues(self.queues);
        }
        if let Some(concurrency) = self.concurrency {
            worker = worker.concurrency(concurrency as usize);
        }
        if let Some(name) = self.hostname {
            worker = worker.name(name);
        }
        told(&worker, url);
        let stop = CancellationToken::new();
        let asked = stop.clone();
        // Each of the two stops the other when it ends, so that neither continues after the other has failed.
        let beat = async {
            let _stops_the_worker = stop.clone().drop_guard();
            match self.beat {
                true => Beat::new(store).run_until(stop.cancelled()).await,
                false => {
                    stop.cancelled().await;
                    Ok(())
                }
            }
        };
        let work = async {
            let _stops_the_beat = stop.clone().drop_guard();
            let shutdown = async move {
                tokio::select! {
                    () = shutdown => {}
                    () = asked.cancelled() => {}
                }
            };
            worker.run_until(shutdown).await
        };
        let (worked, fired) = tokio::join!(work, beat);
        worked.and(fired)
    }
}

/// Prints on standard error the tasks, queues and store of the worker.
fn told(worker: &Worker, url: &str) {
    let kinds = match worker.registered() {
        kinds if kinds.is_empty() => "no tasks, because none is registered".to_owned(),
        kinds => kinds.join(", "),
    };
    let (queues, slots) = (worker.served().join(", "), worker.slots());
    note(&format!("worker: runs {}", plain(&kinds)));
    note(&format!("        from queues {}, {slots} at a time", plain(&queues)));
    note(&format!("        of {}", plain(url)));
}
