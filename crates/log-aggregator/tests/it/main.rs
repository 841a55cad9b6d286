//! Integration tests of the aggregator with real HTTP and files. The tests that need its program, with the page, are in
//! the crate `console`.

mod bad_input;
mod bodies;
mod bounds;
mod bus;
mod contract;
mod exam;
mod faults;
mod layout;
mod loggers;
mod origin;
mod replay;
mod support;
mod viewers;
