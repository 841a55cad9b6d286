//! Redis Pub/Sub: notifications that keys have changed, and the frames of requests.
//!
//! Notifications are only hints. After a reconnect, and periodically, members read the keys again, so a lost
//! notification costs time, not messages.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::PubSub;
use smol_str::SmolStr;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, RETRY};
use super::error::{closed, explain};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::supervise;
use event_transport::sync::lock;

/// A callback for each message on a channel; an empty message means that messages may have been missed.
pub(super) type Listener = Arc<dyn Fn(&[u8]) + Send + Sync>;

type Listeners = HashMap<SmolStr, Vec<(u64, Listener)>>;

/// The pub/sub connection of a bus.
pub(super) struct Subscriber {
    listeners: Arc<Mutex<Listeners>>,
    commands: mpsc::UnboundedSender<Command>,
    next: Mutex<u64>,
}

enum Command {
    Listen(SmolStr, oneshot::Sender<Result<()>>),
    Forget(SmolStr),
}

/// A registered listener; dropping it ends the calls.
pub(super) struct Listening {
    subscriber: Arc<Subscriber>,
    channel: SmolStr,
    id: u64,
}

impl Subscriber {
    pub(super) async fn open(shared: Arc<Connection>) -> Result<Arc<Self>> {
        let connection = shared.server.listening().await?;
        let (commands, received) = mpsc::unbounded_channel();
        let listeners = Arc::<Mutex<Listeners>>::default();
        let died = shared.closed.clone();
        let listening = listen(shared, connection, listeners.clone(), received);
        tokio::spawn(supervise::run("redis listen", listening, move || died.cancel()));
        Ok(Arc::new(Self { listeners, commands, next: Mutex::default() }))
    }

    /// Calls `listener` for every message on `channel`, from when this returns.
    pub(super) async fn on(
        self: &Arc<Self>,
        channel: SmolStr,
        listener: impl Fn(&[u8]) + Send + Sync + 'static,
    ) -> Result<Listening> {
        let id = {
            let mut next = lock(&self.next);
            *next += 1;
            *next
        };
        lock(&self.listeners).entry(channel.clone()).or_default().push((id, Arc::new(listener)));
        let listening = Listening { subscriber: self.clone(), channel: channel.clone(), id };
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Listen(channel, answer)).map_err(|_| closed())?;
        answered.await.map_err(|_| closed())??;
        Ok(listening)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut listeners = lock(&self.subscriber.listeners);
        if let Some(those) = listeners.get_mut(&self.channel) {
            those.retain(|(id, _)| *id != self.id);
            if those.is_empty() {
                listeners.remove(&self.channel);
                let _ = self.subscriber.commands.send(Command::Forget(self.channel.clone()));
            }
        }
    }
}

fn notify(listeners: &Mutex<Listeners>, channel: &str, message: &[u8]) {
    let those: Vec<_> = match lock(listeners).get(channel) {
        Some(those) => those.iter().map(|(_, listener)| listener.clone()).collect(),
        None => return,
    };
    those.iter().for_each(|listener| listener(message));
}

async fn listen(
    shared: Arc<Connection>,
    first: PubSub,
    listeners: Arc<Mutex<Listeners>>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let mut connection = Some(first);
    let mut backoff = RETRY;
    loop {
        let heard = match connection.take() {
            Some(connection) => Ok(connection),
            None => resume(&shared, &listeners).await,
        };
        match heard {
            Ok(connection) => {
                backoff = RETRY;
                if on_message(connection, &listeners, &mut commands, &shared.closed).await {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "no connection for channels yet"),
        }
        tokio::select! {
            () = shared.closed.cancelled() => return,
            () = backoff.pause() => {}
        }
    }
}

/// Opens another connection and subscribes it to all channels.
async fn resume(shared: &Connection, listeners: &Mutex<Listeners>) -> Result<PubSub> {
    let mut connection = shared.server.listening().await?;
    let channels: Vec<SmolStr> = lock(listeners).keys().cloned().collect();
    for channel in &channels {
        within(connection.subscribe(channel.as_str())).await?;
    }
    for channel in &channels {
        notify(listeners, channel, b"");
    }
    Ok(connection)
}

async fn within(subscribing: impl Future<Output = redis::RedisResult<()>>) -> Result<()> {
    match tokio::time::timeout(Duration::from_secs(10), subscribing).await {
        Ok(result) => result.map_err(|error| explain(&error)),
        Err(_) => Err(Error::new(ErrorKind::Timeout, "the server did not answer in time")),
    }
}

/// Receives messages until the connection breaks; `true` when the bus is closed.
async fn on_message(
    connection: PubSub,
    listeners: &Mutex<Listeners>,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    closed: &CancellationToken,
) -> bool {
    let (mut sink, mut stream) = connection.split();
    let mut probe = tokio::time::interval(Duration::from_secs(10));
    loop {
        tokio::select! {
            () = closed.cancelled() => return true,
            message = stream.next() => match message {
                Some(message) => notify(listeners, message.get_channel_name(), message.get_payload_bytes()),
                None => return false,
            },
            command = commands.recv() => match command {
                None => return true,
                Some(Command::Listen(channel, answer)) => {
                    let result = within(sink.subscribe(channel.as_str())).await;
                    let broken = result.as_ref().is_err_and(|error| error.kind() != ErrorKind::Denied);
                    let _ = answer.send(result);
                    if broken {
                        return false;
                    }
                }
                Some(Command::Forget(channel)) => {
                    let wanted = lock(listeners).contains_key(&channel);
                    if !wanted && within(sink.unsubscribe(channel.as_str())).await.is_err() {
                        return false;
                    }
                }
            },
            _ = probe.tick() => {
                let ping = sink.ping::<redis::Value>();
                if !matches!(tokio::time::timeout(Duration::from_secs(5), ping).await, Ok(Ok(_))) {
                    return false;
                }
            }
        }
    }
}
