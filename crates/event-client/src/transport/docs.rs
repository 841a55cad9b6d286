//! One page for each transport: URL forms, options, promises, limits, names on the server and required versions.
//!
//! | page | URLs |
//! |---|---|
//! | [`memory`] | `memory:`, `memory:NAME` |
//! | [`sqlite`] | `sqlite:PATH` |
//! | [`nats`] | `nats://HOST`, `tls://HOST` |
//! | [`redis`] | `redis://HOST`, `rediss://HOST` |
//! | [`rabbitmq`] | `amqp://HOST`, `amqps://HOST` |
//!
//! The pages of the brokers exist when their feature is enabled. The modules contain no code: each transport's crate has
//! its page.

#[doc(inline)]
pub use event_transport::memory_docs as memory;
#[cfg(feature = "nats")]
#[doc(inline)]
pub use transport_nats::docs as nats;
#[cfg(feature = "rabbitmq")]
#[doc(inline)]
pub use transport_rabbitmq::docs as rabbitmq;
#[cfg(feature = "redis")]
#[doc(inline)]
pub use transport_redis::docs as redis;
#[doc(inline)]
pub use transport_sqlite::docs as sqlite;
