//! Starts the server that all contestants of a broker share, and empties it between runs.

use anyhow::{Result, bail};
use futures_util::TryStreamExt;
use test_servers::{Generation, Nats, Rabbit, Redis};

use crate::contestant::Durability;
use crate::plan::Broker;

pub enum Server {
    Nats(Nats),
    Redis(Redis),
    Rabbit(Rabbit),
}

impl Server {
    /// Starts the server with the given durability. For RabbitMQ the durability is a property of its queues.
    pub async fn start(broker: Broker, generation: Generation, durability: Durability) -> Result<Self> {
        let fsync = durability == Durability::Fsync;
        Ok(match broker {
            Broker::Nats => {
                let options = Nats::options().generation(generation);
                Self::Nats(if fsync { options.fsync() } else { options }.start().await?)
            }
            Broker::Redis => {
                let options = Redis::options().generation(generation);
                Self::Redis(if fsync { options.fsync() } else { options }.start().await?)
            }
            Broker::Rabbitmq => Self::Rabbit(Rabbit::options().generation(generation).start().await?),
        })
    }

    pub fn process(&self) -> Result<u32> {
        let id = match self {
            Self::Nats(server) => server.id(),
            Self::Redis(server) => server.id(),
            Self::Rabbit(server) => server.id(),
        };
        match id {
            Some(id) => Ok(id),
            None => bail!("the server has ended"),
        }
    }

    /// Returns the URL for run `name`.
    pub async fn url(&self, name: &str) -> Result<String> {
        Ok(match self {
            Self::Nats(server) => server.url(),
            Self::Redis(server) => server.url(),
            Self::Rabbit(server) => server.vhost(name).await?,
        })
    }

    /// Removes everything that run `name` left.
    pub async fn clear(&self, name: &str) -> Result<()> {
        match self {
            Self::Nats(server) => {
                let context = async_nats::jetstream::new(async_nats::connect(server.url()).await?);
                let names: Vec<String> = context.stream_names().try_collect().await?;
                for name in names {
                    context.delete_stream(name).await?;
                }
            }
            Self::Redis(server) => {
                let client = redis::Client::open(server.url())?;
                let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
                let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
                redis::cmd("FLUSHALL").arg("SYNC").exec_async(&mut connection).await?;
            }
            Self::Rabbit(server) => server.delete_vhost(name).await?,
        }
        Ok(())
    }
}
