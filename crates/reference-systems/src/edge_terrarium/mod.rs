//! Edge-Terrarium: a custom client that has files created, the file storage that creates them, a sink that takes
//! every other request, and an audit log of all that was served. Their logs go to Logthon's API over HTTP, as
//! the original programs send them.

mod logs;
mod services;
mod traffic;

pub use logs::{Post, recorded};
pub use services::{CreateFile, FileMade, Terrarium, services};
pub use traffic::{Load, traffic};
