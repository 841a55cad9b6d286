//! Tasks from definition to result, on real stores and real processes.

mod bad_input;
mod behaviour;
mod exam;
mod path;
mod support;
