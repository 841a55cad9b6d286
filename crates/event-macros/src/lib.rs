//! Derive macros: Event, Request and task
