//! Integration tests of the library: one binary, one module a subject.

mod batch;
mod events;
mod service;
mod sqlite;
mod requests;
mod testbus;
mod versions;
