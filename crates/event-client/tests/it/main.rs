//! The library's integration tests: one binary, one module per subject.

mod batch;
mod broker;
mod events;
mod failures;
mod layers;
mod nats;
mod outbox;
mod postgres;
mod rabbitmq;
mod redis;
mod requests;
mod service;
mod sqlite;
mod supervision;
mod telemetry;
mod testbus;
mod ui;
mod versions;
mod window;
