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
//! The pages are the same whatever features of this crate are enabled. The modules contain no code.

#[doc = include_str!("../../../event-transport/src/memory/docs.md")]
pub mod memory {}

#[doc = include_str!("../../../transport-sqlite/src/docs.md")]
pub mod sqlite {}

#[doc = include_str!("../../../transport-nats/src/docs.md")]
pub mod nats {}

#[doc = include_str!("../../../transport-redis/src/docs.md")]
pub mod redis {}

#[doc = include_str!("../../../transport-rabbitmq/src/docs.md")]
pub mod rabbitmq {}
