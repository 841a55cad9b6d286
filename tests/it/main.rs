//! One binary for the tests of the whole: house rules now, end-to-end stories beside them.

mod brokers;
mod cli;
mod demo;
mod house_rules;
mod outbox;
mod readme;
mod torture;
mod up;
