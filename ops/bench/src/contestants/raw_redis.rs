//! Runs redis-rs in two ways: plain commands on one multiplexed connection, and pipelines of the waiting
//! commands.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisResult, Value, cmd, pipe};

use crate::contestant::{CONTENT_TYPE, Consumer, Contestant, PREFETCH, Place, Publisher, id, in_tasks};

/// Pipelines in flight at a time; each holds its share of the window.
const PIPELINES: usize = 4;

/// With `PIPELINED` a window is sent as pipelines instead of one command per task.
pub struct RawRedis<const PIPELINED: bool> {
    place: Place,
    client: Client,
    connection: MultiplexedConnection,
}

/// Creates the stream and its group, for contestants that do not create them.
pub async fn prepare(place: &Place) -> Result<(Client, MultiplexedConnection)> {
    let client = Client::open(place.url.as_str())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let made: redis::RedisResult<Value> = cmd("XGROUP")
        .arg("CREATE")
        .arg(&place.name)
        .arg(place.group())
        .arg("0")
        .arg("MKSTREAM")
        .query_async(&mut connection)
        .await;
    match made {
        Err(error) if error.code() != Some("BUSYGROUP") => Err(error.into()),
        _ => Ok((client, connection)),
    }
}

/// Returns the number of entries that the group has received and not acknowledged, and of those that it has
/// not received.
pub async fn left(place: &Place) -> Result<u64> {
    let (_, mut connection) = prepare(place).await?;
    let groups: Vec<std::collections::HashMap<String, Value>> =
        cmd("XINFO").arg("GROUPS").arg(&place.name).query_async(&mut connection).await?;
    let group = groups.first().context("no group")?;
    let number = |name: &str| match group.get(name) {
        Some(Value::Int(number)) => Ok(*number as u64),
        // The lag is unknown where entries were deleted out of order.
        Some(Value::Nil) => Ok(0),
        other => bail!("{name} is {other:?}"),
    };
    Ok(number("pending")? + number("lag")?)
}

impl<const PIPELINED: bool> Contestant for RawRedis<PIPELINED> {
    type Publisher = RawPublisher<PIPELINED>;
    type Consumer = RawConsumer;

    async fn open(place: &Place) -> Result<Self> {
        let (client, connection) = prepare(place).await?;
        Ok(Self { place: place.clone(), client, connection })
    }

    async fn publisher(&self) -> Result<RawPublisher<PIPELINED>> {
        Ok(RawPublisher { place: self.place.clone(), connection: self.connection.clone() })
    }

    async fn consumer(&self) -> Result<RawConsumer> {
        // A separate connection: a blocking read would delay all other commands, and must not time out.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let reader = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(RawConsumer { place: self.place.clone(), reader, acks: self.connection.clone() })
    }

    async fn unsettled(&self) -> Result<u64> {
        left(&self.place).await
    }
}

#[derive(Clone)]
pub struct RawPublisher<const PIPELINED: bool> {
    place: Place,
    connection: MultiplexedConnection,
}

/// Returns the `XADD` with the fields that our transport writes.
fn add(place: &Place, subject: &str, payload: &Bytes) -> Cmd {
    let mut command = cmd("XADD");
    command.arg(&place.name).arg("*").arg("bus-subject").arg(subject).arg("content-type").arg(CONTENT_TYPE);
    command.arg("ce-id").arg(id()).arg("data").arg(&payload[..]);
    command
}

impl<const PIPELINED: bool> Publisher for RawPublisher<PIPELINED> {
    async fn publish(&mut self, payload: &Bytes, total: usize, window: usize) -> Result<()> {
        let (this, payload, subject) = (self.clone(), payload.clone(), self.place.subject());
        if window == 1 || !PIPELINED {
            return in_tasks(total, window, move || {
                let (mut connection, command) =
                    (this.connection.clone(), add(&this.place, &subject, &payload));
                async move { Ok(command.exec_async(&mut connection).await?) }
            })
            .await;
        }
        let size = window / PIPELINES;
        let whole = total / size;
        let send = move |size: usize| {
            let (mut connection, mut pipeline) = (this.connection.clone(), Pipeline::with_capacity(size));
            for _ in 0..size {
                pipeline.add_command(add(&this.place, &subject, &payload)).ignore();
            }
            async move { Ok(pipeline.exec_async(&mut connection).await?) }
        };
        let one = send.clone();
        in_tasks(whole, PIPELINES, move || one(size)).await?;
        match total % size {
            0 => Ok(()),
            rest => send(rest).await,
        }
    }
}

pub struct RawConsumer {
    place: Place,
    reader: MultiplexedConnection,
    acks: MultiplexedConnection,
}

impl RawConsumer {
    fn read(&self, count: usize) -> Cmd {
        let mut command = cmd("XREADGROUP");
        command.arg("GROUP").arg(self.place.group()).arg("one").arg("COUNT").arg(count);
        command.arg("BLOCK").arg(0).arg("STREAMS").arg(&self.place.name).arg(">");
        command
    }

    fn ack(&self, ids: &[Vec<u8>]) -> Cmd {
        let mut command = cmd("XACK");
        command.arg(&self.place.name).arg(self.place.group()).arg(ids);
        command
    }

    /// Acknowledges the handled entries and reads more, if wanted, in one round trip.
    async fn trip(&self, ids: &[Vec<u8>], count: usize) -> RedisResult<Vec<Value>> {
        let (mut pipeline, mut reader) = (pipe(), self.reader.clone());
        if !ids.is_empty() {
            pipeline.add_command(self.ack(ids)).ignore();
        }
        if count > 0 {
            pipeline.add_command(self.read(count));
        }
        pipeline.query_async(&mut reader).await
    }

    async fn one_at_a_time(&self, total: usize, mut arrived: impl FnMut(&[u8]) + Send) -> Result<()> {
        let mut taken = 0;
        while taken < total {
            for (id, payload) in entries(self.trip(&[], PREFETCH).await?)? {
                arrived(&payload);
                taken += 1;
                self.ack(&[id]).exec_async(&mut self.acks.clone()).await?;
            }
        }
        Ok(())
    }
}

impl Consumer for RawConsumer {
    async fn consume(
        &mut self,
        total: usize,
        at_once: usize,
        mut arrived: impl FnMut(&[u8]) + Send,
    ) -> Result<()> {
        if at_once == 1 {
            return self.one_at_a_time(total, arrived).await;
        }
        // Two halves, one in flight while the other is handled, are slower: they need twice the round trips.
        let (mut taken, mut ids) = (0, Vec::new());
        while taken < total {
            let batch = entries(self.trip(&ids, at_once).await?)?;
            taken += batch.len();
            ids.clear();
            for (id, payload) in batch {
                arrived(&payload);
                ids.push(id);
            }
        }
        self.trip(&ids, 0).await?;
        Ok(())
    }

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

/// Decodes `[[key, [[id, [name, value, …]], …]]]`, the last reply of a round trip, into ids and bodies.
fn entries(mut answer: Vec<Value>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let array = |value| match value {
        Value::Array(values) => Ok(values),
        other => bail!("expected an array, not {other:?}"),
    };
    let bytes = |value| match value {
        Some(Value::BulkString(bytes)) => Ok(bytes),
        other => bail!("expected bytes, not {other:?}"),
    };
    let stream = array(answer.pop().context("no answer")?)?.pop().context("no stream")?;
    let list = array(array(stream)?.pop().context("no entries")?)?;
    let mut out = Vec::with_capacity(list.len());
    for entry in list {
        let mut entry = array(entry)?;
        let body = array(entry.pop().context("no fields")?)?.pop();
        out.push((bytes(entry.pop())?, bytes(body)?));
    }
    Ok(out)
}
