//! Integration tests of the aggregator with real HTTP, files, processes and a real browser.

mod bad_input;
mod bodies;
mod bounds;
mod browser;
mod bus;
mod contract;
mod crash;
mod exam;
mod faults;
mod layout;
mod loggers;
mod origin;
mod replay;
mod support;
mod viewers;
