//! Tests tasks from definition to result, on real stores and real processes.

mod bad_input;
mod behaviour;
mod child;
mod earlier;
mod exam;
mod faults;
mod kinds;
mod metric;
mod numbers;
mod path;
mod process;
mod refused;
mod runs;
mod scheduling;
mod support;
