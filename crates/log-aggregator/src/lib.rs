//! Collects structured logs from the bus and over HTTP, stores and shows them
