//! Integration tests of the library: one binary, one module a subject.

mod events;
mod testbus;
