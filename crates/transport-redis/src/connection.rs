//! The connection that all non-blocking commands share: it pipelines them, reconnects after a failure and limits the
//! time of every call.

use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::Poll;
use std::time::Duration;

use futures_util::poll;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, Value};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dial::Dialer;
use super::error::{Failure, closed, explain, is_code, is_misplaced, reply};
use super::scripts;
use event_transport::backoff::Backoff;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::supervise;
use event_transport::sync::lock;

/// Interval of the `PING` that detects a dead connection.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// The pauses between the tries of everything that must work again after an outage: connections and reads.
pub(super) const RETRY: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
static PROBE: LazyLock<Cmd> = LazyLock::new(|| redis::cmd("PING"));

#[derive(Clone)]
pub(super) struct Live {
    connection: MultiplexedConnection,
    /// Counts connections, so that a late failure of an old connection does not close the next one.
    pub(super) generation: u64,
}

pub(super) struct Connection {
    pub(super) server: Dialer,
    live: watch::Sender<Option<Live>>,
    broken: Notify,
    why: Mutex<String>,
    pub(super) closed: CancellationToken,
}

impl Connection {
    /// Connects once, so that a wrong URL fails at once; afterwards reconnects automatically.
    pub(super) async fn open(server: Dialer) -> Result<Arc<Self>> {
        let connection = connect(&server).await?;
        let shared = Arc::new(Self {
            server,
            live: watch::Sender::new(Some(Live { connection, generation: 1 })),
            broken: Notify::new(),
            why: Mutex::default(),
            closed: CancellationToken::new(),
        });
        let died = shared.closed.clone();
        tokio::spawn(supervise::run("redis connection", keep(shared.clone()), move || died.cancel()));
        Ok(shared)
    }

    /// Returns the connection; waits at most `within` for it.
    pub(super) async fn live(&self, within: Duration) -> Result<Live, Failure> {
        let mut late = None;
        loop {
            if let Some(live) = self.now() {
                return Ok(live);
            }
            let late = *late.get_or_insert_with(|| Instant::now() + within);
            self.wait_until(late).await?;
        }
    }

    /// The connection, if there is one now.
    pub(super) fn now(&self) -> Option<Live> {
        self.live.borrow().clone()
    }

    /// Waits for a connection until `late`.
    async fn wait_until(&self, late: Instant) -> Result<(), Failure> {
        let mut watch = self.live.subscribe();
        tokio::select! {
            found = watch.wait_for(Option::is_some) => match found {
                Ok(_) => Ok(()),
                Err(_) => Err(Failure::Unsent(closed())),
            },
            () = tokio::time::sleep_until(late) => {
                let why = lock(&self.why).clone();
                Err(Failure::Unsent(Error::new(ErrorKind::Unavailable, "the server cannot be reached").because(why)))
            }
            () = self.closed.cancelled() => Err(Failure::Unsent(closed())),
        }
    }

    fn condemn(&self, generation: u64, why: String) {
        let condemned = self.live.send_if_modified(|live| {
            let same = live.as_ref().is_some_and(|live| live.generation == generation);
            if same {
                *live = None;
            }
            same
        });
        if condemned {
            *lock(&self.why) = why;
            self.broken.notify_one();
        }
    }

    /// Sends commands in one write; returns the replies in order, errors of single commands among them.
    pub(super) async fn run(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Failure> {
        let late = Instant::now() + self.server.answer_timeout;
        loop {
            let live = self.live(late.saturating_duration_since(Instant::now())).await?;
            match self.run_on(live, pipeline).await {
                Err(Failure::Unsent(_)) => {}
                result => return result,
            }
        }
    }

    /// Like [`run`](Self::run), on this connection. Returns [`Failure::Unsent`] at the first poll when the connection
    /// had ended before the commands were sent; the caller then waits for the next connection.
    pub(super) async fn run_on(&self, live: Live, pipeline: &Pipeline) -> Result<Vec<Value>, Failure> {
        let Live { mut connection, generation } = live;
        let sent = {
            let mut sending = pin!(connection.send_packed_commands(pipeline, 0, pipeline.len()));
            match poll!(sending.as_mut()) {
                // The client's task has ended and accepts no commands. A task that accepts the commands and ends before
                // this poll returns looks the same; then the commands may run twice.
                Poll::Ready(Err(error)) => {
                    self.condemn(generation, "it ended while no command was in flight".into());
                    return Err(Failure::Unsent(explain(&error)));
                }
                Poll::Ready(sent) => sent,
                Poll::Pending => sending.await,
            }
        };
        let mut replies = match sent {
            Ok(replies) => replies,
            Err(error) => {
                let explained = explain(&error);
                self.condemn(generation, error.to_string());
                return Err(Failure::Unknown(explained));
            }
        };
        if replies.iter().any(|value| is_code(value, "NOSCRIPT")) {
            self.repeat_unknown_scripts(&mut connection, pipeline, &mut replies).await;
        }
        if let Some(value) = replies.iter().find(|value| is_misplaced(value)) {
            self.condemn(generation, format!("{value:?}"));
        }
        Ok(replies)
    }

    /// Handles a server that was restarted or replaced and no longer has the scripts: loads them and repeats the
    /// commands that failed with `NOSCRIPT`.
    async fn repeat_unknown_scripts(
        &self,
        connection: &mut MultiplexedConnection,
        pipeline: &Pipeline,
        replies: &mut [Value],
    ) {
        if load_scripts(connection).await.is_err() {
            return;
        }
        for (command, value) in pipeline.cmd_iter().zip(replies) {
            if is_code(value, "NOSCRIPT")
                && let Ok(again) = connection.send_packed_command(command).await
            {
                *value = again;
            }
        }
    }

    /// Runs one command.
    pub(super) async fn ask(&self, command: Cmd) -> Result<Value> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        let mut replies = self.run(&pipeline).await?;
        reply(replies.pop().unwrap_or_default())
    }

    /// Runs several commands; an error reply to any of them is an error.
    pub(super) async fn ask_all(&self, pipeline: &Pipeline) -> Result<Vec<Value>> {
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        self.run(pipeline).await?.into_iter().map(reply).collect()
    }
}

async fn connect(server: &Dialer) -> Result<MultiplexedConnection> {
    let mut connection = server.commands().await?;
    load_scripts(&mut connection).await?;
    Ok(connection)
}

async fn load_scripts(connection: &mut MultiplexedConnection) -> Result<()> {
    let pipeline = scripts::load();
    let replies = connection
        .send_packed_commands(&pipeline, 0, pipeline.len())
        .await
        .map_err(|error| explain(&error))?;
    replies.into_iter().try_for_each(|value| reply(value).map(drop))
}

/// Reconnects whenever the connection fails; logs each outage once.
async fn keep(shared: Arc<Connection>) {
    let mut generation = 1;
    loop {
        tokio::select! {
            () = shared.closed.cancelled() => return,
            () = shared.broken.notified() => {}
            () = tokio::time::sleep(PROBE_EVERY) => {
                // Uses this connection only: `run` would wait for the next connection, which this task itself has to
                // make.
                if let Some(live) = shared.now() {
                    let mut ping = Pipeline::with_capacity(1);
                    ping.add_command(PROBE.clone());
                    let _ = shared.run_on(live, &ping).await;
                }
                continue;
            }
        }
        let since = Instant::now();
        let why = lock(&shared.why).clone();
        tracing::warn!(error = why, "the connection to Redis was lost; reconnecting");
        let mut backoff = RETRY;
        loop {
            let attempt = tokio::select! {
                () = shared.closed.cancelled() => return,
                attempt = connect(&shared.server) => attempt,
            };
            match attempt {
                Ok(connection) => {
                    generation += 1;
                    shared.live.send_replace(Some(Live { connection, generation }));
                    tracing::info!(outage = ?since.elapsed(), "the connection to Redis is back");
                    break;
                }
                Err(error) => *lock(&shared.why) = error.to_string(),
            }
            tokio::select! {
                () = shared.closed.cancelled() => return,
                () = backoff.pause() => {}
            }
        }
    }
}
