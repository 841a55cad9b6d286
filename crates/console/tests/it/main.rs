//! Integration tests of the pages in a real browser, and of the program that runs the log aggregator alone.

mod browser;
mod crash;
mod memory;
mod page;
mod program;
mod support;
