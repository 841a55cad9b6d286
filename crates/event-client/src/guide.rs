//! User's guide: how to use this crate, one page per subject.
//!
//! Read [`install`], [`events`], [`handlers`] and [`testing`] first. Read the other pages when you need them.
//!
//! | page | contents |
//! |---|---|
//! | [`install`] | Cargo lines, features, versions that must match, small builds |
//! | [`events`] | define an event, publish it, change it in a new version, its form on the wire |
//! | [`handlers`] | services, groups, retries, dead letters, order per key, batches, layers |
//! | [`testing`] | tests with `TestBus` and a paused clock, tests against a real bus |
//! | [`requests`] | request and reply, status codes, streamed replies |
//! | [`outbox`] | publish in a database transaction, apply an event's effect once |
//! | [`http_edge`] | trace and request id of an HTTP request, health, readiness, shutdown |
//! | [`logs`] | send `tracing` events over the bus, query and follow them |
//! | [`operating`] | choose a bus, provision it, read its lag and metrics, alert, upgrade |
//! | [`add_a_transport`] | implement a transport for another broker |
//!
//! The Rust code on these pages is compiled and run by `cargo test --doc`, except blocks that say otherwise.
//! Tasks (work that runs later or on a schedule) are a crate of their own, `task-queue`, with its own guide.

#[doc = include_str!("../docs/install.md")]
pub mod install {}

#[doc = include_str!("../docs/events.md")]
pub mod events {}

#[doc = include_str!("../docs/handlers.md")]
pub mod handlers {}

#[doc = include_str!("../docs/testing.md")]
pub mod testing {}

#[doc = include_str!("../docs/requests.md")]
pub mod requests {}

#[doc = include_str!("../docs/outbox.md")]
pub mod outbox {}

#[doc = include_str!("../docs/http_edge.md")]
pub mod http_edge {}

#[doc = include_str!("../docs/logs.md")]
pub mod logs {}

#[doc = include_str!("../docs/operating.md")]
pub mod operating {}

#[doc = include_str!("../docs/add_a_transport.md")]
pub mod add_a_transport {}
