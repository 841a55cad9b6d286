//! The aggregator over real HTTP, real files, real processes and a real browser.

mod bad_input;
mod browser;
mod bus;
mod contract;
mod crash;
mod exam;
mod faults;
mod origin;
mod replay;
mod support;
mod viewers;
