//! Real servers as children of a test: started on free loopback ports with their own data folder, and removed
//! with the test.
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
//! Each of [`Nats`], [`Redis`], [`Rabbit`] and [`Postgres`] derefs to its [`Process`] and adds the client's
//! settings: URLs, certificates, credentials. A server is ready when it has answered in its own protocol.
//!
//! Nothing outlives the test: a server ends with the process that started it, even when that process is
//! killed with SIGKILL; the next process removes the folders that it leaves. `BACKBONE_KEEP_SERVERS=1` keeps
//! folders, and the logs in them; the folder of a test that panics is kept for a day and named on standard
//! error.
//!
//! Ports are below the range that the system uses for outgoing connections: otherwise a client that retries
//! while its server is down could connect to itself, and the server would find its port in use.

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

/// The result of every operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;
