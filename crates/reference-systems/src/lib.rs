//! Real systems as small programs on the backbone, on whichever bus they are given.
//!
//! Each system is a folder: its services and tasks, and `traffic` that uses it as its users do and says what must
//! have happened, so that a demonstration or a test can compare.

pub mod edge_terrarium;
pub mod securebox;

mod expected;

pub use expected::Expected;

/// The error of set-up and traffic: whatever went wrong, in words.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
