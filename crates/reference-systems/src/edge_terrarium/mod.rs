//! Edge-Terrarium: a custom client that requests new files, the file storage that creates them, a sink that
//! accepts every other request, and an audit log of all served requests. Their logs are sent to Logthon's API
//! over HTTP, as the original programs send them.

mod logs;
mod services;
mod traffic;

pub use logs::{Post, recorded};
pub use services::{CreateFile, FileMade, Terrarium, services};
pub use traffic::{Load, traffic};
