//! Tasks from definition to result, on real stores and real processes.

mod bad_input;
mod behaviour;
mod child;
mod exam;
mod path;
mod process;
mod support;
