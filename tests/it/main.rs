//! The tests of the whole workspace in one binary: house rules and end-to-end tests.

mod brokers;
mod cli;
mod compose;
mod dead_letter_origins;
mod dead_letters;
mod demo;
mod examples;
mod house_rules;
mod outbox;
mod private_files;
mod readme;
mod stored_data;
mod streams;
mod terminals;
mod torture;
mod up;
