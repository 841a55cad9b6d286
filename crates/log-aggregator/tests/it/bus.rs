//! Batches from the bus.
