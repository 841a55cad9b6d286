//! User's guide of tasks.
#![doc = include_str!("../docs/tasks.md")]
