//! `worker`.

use clap::Args;

use super::Shared;
use crate::{Beat, Error, Result, Worker, span};

/// Options of `worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Serve these queues, separated by commas (else those of the registered tasks)
    #[arg(short = 'Q', long, value_delimiter = ',', value_name = "QUEUES")]
    queues: Vec<String>,
    /// Run this many tasks at once (else one for each core)
    #[arg(short = 'c', long, value_name = "N")]
    concurrency: Option<usize>,
    /// Fire schedules as well
    #[arg(short = 'B', long)]
    beat: bool,
    /// The worker's name, for people
    #[arg(short = 'n', long, value_name = "NAME")]
    hostname: Option<String>,
    /// How long running tasks may finish at shutdown
    #[arg(long, default_value = "30s", value_name = "TIME")]
    grace: String,
}

impl WorkerArgs {
    pub(super) async fn run(
        self,
        store: Shared,
        register: impl FnOnce(Worker) -> Worker,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        let grace = span::parse(&self.grace).ok_or_else(|| {
            Error::invalid(format!("`--grace {}` is no length of time such as `30s`", self.grace))
        })?;
        let mut worker = register(Worker::new(store.clone())).grace(grace);
        if !self.queues.is_empty() {
            worker = worker.queues(self.queues);
        }
        if let Some(concurrency) = self.concurrency {
            worker = worker.concurrency(concurrency);
        }
        if let Some(name) = self.hostname {
            worker = worker.name(name);
        }
        let stop = tokio_util::sync::CancellationToken::new();
        let (stopped, stopper) = (stop.clone().cancelled_owned(), stop.clone().drop_guard());
        let beat = async move {
            match self.beat {
                true => Beat::new(store).run_until(stopped).await,
                false => Ok(()),
            }
        };
        let work = async move {
            let _stops_the_beat = stopper;
            worker.run_until(shutdown).await
        };
        let (worked, fired) = tokio::join!(work, beat);
        worked.and(fired)
    }
}
