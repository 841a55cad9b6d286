//! Integration tests of the library: one binary, one module a subject.

mod batch;
mod events;
mod sqlite;
mod testbus;
