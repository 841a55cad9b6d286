//! Example systems as small programs on the backbone, which run on any bus.
//!
//! Each system is a folder: its services and tasks, and `traffic`, which uses the system as its users do and
//! returns the expected results, so that a demonstration or a test can compare them.

pub mod edge_terrarium;
pub mod securebox;

mod expected;

pub use expected::Expected;

/// The error of set-up and traffic, with any cause.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
