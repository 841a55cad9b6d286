//! SecureBox: a gateway accepts files, one service encrypts them, one stores them, and tasks delete old
//! files.
//!
//! ```text
//! upload -> files.uploaded -> encryption -> files.encrypted -> storage -> files.stored -> worker: process_large_file
//!                                                                     beat: expired, downloaded, statistics
//! ```
//! The original calls its services over HTTP and its tasks through Celery; here an upload is an event, and the
//! three beat schedules run on the task queue under their own names.

mod services;
mod tasks;
mod traffic;
mod vault;

pub use services::services;
pub use tasks::{schedules, worker};
pub use traffic::{Load, download, traffic, upload};
pub use vault::{Vault, VaultError};
