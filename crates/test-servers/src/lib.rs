//! Real servers as children of a test: started on free loopback ports with their own data folder, gone with the test.
//!
//! ```no_run
//! # async fn example() -> Result<(), test_servers::Error> {
//! use test_servers::{Generation, Nats};
//!
//! let nats = Nats::shared(Generation::Old).await;        // one per process and generation
//! println!("{}", nats.url());                            // nats://127.0.0.1:PORT
//!
//! let own = Nats::options().generation(Generation::New).fsync().start().await?;
//! own.kill().await?;                                     // SIGKILL
//! own.start().await?;                                    // same port, same data
//! own.pause()?;                                          // SIGSTOP ...
//! own.resume()?;                                         // ... SIGCONT
//! # Ok(())
//! # }
//! ```
//!
//! Each of [`Nats`], [`Redis`], [`Rabbit`] and [`Postgres`] is its [`Process`] (by deref) and what a client needs to
//! reach it: URLs, certificates, credentials. A server is ready when it has answered in its own protocol.
//!
//! Nothing survives the test: a server dies with the process that started it, even when that is killed with SIGKILL;
//! folders that such a process leaves are removed by the next one. `BACKBONE_KEEP_SERVERS=1` keeps folders, and the
//! logs in them; the folder of a test that panics is kept for a day and named on standard error.
//!
//! Ports come from below the range that the system uses for outgoing connections: a client that retries while its
//! server is down could otherwise connect to itself, and the server would find its port taken.

mod error;
mod folder;
mod nats;
mod nats_jwt;
mod port;
mod postgres;
mod process;
mod program;
mod proxy;
mod rabbit;
mod rabbit_node;
mod redis;
mod sentinel;
mod spawner;
mod tls;

pub use error::{Error, ErrorKind};
pub use nats::{Nats, NatsOptions};
pub use postgres::{Postgres, PostgresOptions};
pub use process::Process;
pub use program::Generation;
pub use proxy::{Direction, Proxy};
pub use rabbit::{Rabbit, RabbitOptions};
pub use redis::{Redis, RedisOptions};
pub use sentinel::Sentinel;
pub use tls::{Certificates, Tls};

/// What every operation here returns.
pub type Result<T> = std::result::Result<T, Error>;
