//! One binary for the tests of the whole: house rules now, end-to-end stories beside them.

mod brokers;
mod cli;
mod compose;
mod dead_letter_origins;
mod dead_letters;
mod demo;
mod house_rules;
mod outbox;
mod private_files;
mod readme;
mod streams;
mod terminals;
mod torture;
mod up;
