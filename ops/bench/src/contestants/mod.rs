//! Lists the contestants of each broker, and the guarantees that each of them lacks.

mod omniqueue_rabbit;
mod omniqueue_redis;
mod ours;
mod raw_nats;
mod raw_rabbit;
mod raw_redis;
mod ruststream_core;
mod ruststream_fred;
mod ruststream_lapin;
mod ruststream_nats;
mod sea_streamer;

use std::future::Future;
use std::pin::Pin;

use anyhow::{Result, bail};

use crate::child::{Outcome, Task, run};
use crate::plan::Broker;

/// One contestant in the list.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub name: &'static str,
    /// The fraction of the messages that it gets, so that the slow ones take no more time than the others.
    pub share: f64,
    /// Guarantees of the raw client that this one lacks, on publishing and on consuming; empty when it lacks
    /// none.
    pub publish_lacks: &'static str,
    pub consume_lacks: &'static str,
}

const EVEN: Entry = Entry { name: "", share: 1.0, publish_lacks: "", consume_lacks: "" };

/// Returns the contestants of one broker; the others are compared with the first.
pub fn of(broker: Broker) -> &'static [Entry] {
    match broker {
        Broker::Nats => &[
            Entry { name: "raw", ..EVEN },
            Entry { name: "ours", ..EVEN },
            Entry { name: "ruststream", ..EVEN },
            Entry { name: "raw-sure", ..EVEN },
            Entry { name: "ours-sure", ..EVEN },
        ],
        Broker::Redis => &[
            Entry { name: "raw", ..EVEN },
            Entry { name: "raw-pipelined", ..EVEN },
            Entry { name: "ours", ..EVEN },
            Entry { name: "ruststream", ..EVEN },
            Entry {
                name: "sea-streamer",
                publish_lacks: "no headers, unbounded queue",
                consume_lacks: "acks are sent later, without a confirmation",
                ..EVEN
            },
            Entry {
                name: "omniqueue",
                share: 0.15,
                publish_lacks: "no headers",
                consume_lacks: "ack deletes: one group",
            },
        ],
        Broker::Rabbitmq => &[
            Entry { name: "raw", ..EVEN },
            Entry { name: "ours", ..EVEN },
            Entry { name: "ruststream", publish_lacks: "not mandatory", ..EVEN },
            Entry { name: "omniqueue", publish_lacks: "no confirms, no ids", consume_lacks: "", ..EVEN },
        ],
    }
}

type Run = Pin<Box<dyn Future<Output = Result<Outcome>> + Send>>;

/// Runs `task` with the contestant that it names.
pub fn start(task: Task) -> Result<Run> {
    Ok(match (task.broker, task.contestant.as_str()) {
        (Broker::Nats, "ours") => Box::pin(run::<ours::Ours<false>>(task)),
        (Broker::Nats, "ours-sure") | (_, "ours") => Box::pin(run::<ours::Ours<true>>(task)),
        (Broker::Nats, "raw") => Box::pin(run::<raw_nats::RawNats<false>>(task)),
        (Broker::Nats, "raw-sure") => Box::pin(run::<raw_nats::RawNats<true>>(task)),
        (Broker::Nats, "ruststream") => Box::pin(run::<ruststream_nats::RuststreamNats>(task)),
        (Broker::Redis, "raw") => Box::pin(run::<raw_redis::RawRedis<false>>(task)),
        (Broker::Redis, "raw-pipelined") => Box::pin(run::<raw_redis::RawRedis<true>>(task)),
        (Broker::Redis, "ruststream") => Box::pin(run::<ruststream_fred::RuststreamFred>(task)),
        (Broker::Redis, "sea-streamer") => Box::pin(run::<sea_streamer::SeaStreamer>(task)),
        (Broker::Redis, "omniqueue") => Box::pin(run::<omniqueue_redis::OmniqueueRedis>(task)),
        (Broker::Rabbitmq, "raw") => Box::pin(run::<raw_rabbit::RawRabbit>(task)),
        (Broker::Rabbitmq, "ruststream") => Box::pin(run::<ruststream_lapin::RuststreamLapin>(task)),
        (Broker::Rabbitmq, "omniqueue") => Box::pin(run::<omniqueue_rabbit::OmniqueueRabbit>(task)),
        (broker, name) => bail!("no contestant is called {name} on {broker}"),
    })
}
