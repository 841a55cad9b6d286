//! Implements the worker's tasks and the three beat schedules, under the names of the original.

use std::time::Duration;

use event_client::Bus;
use event_schemas::files::{CleanReason, FileCleaned, FileExpired};
use jiff::Timestamp;
use task_queue::{Schedule, State, TaskError, Worker, task};
use uuid::Uuid;

use super::vault::Vault;

/// Returns the original's `beat_schedule`, with its intervals divided by `speed`.
///
/// # Errors
/// When an interval becomes too short for the scheduler.
pub fn schedules(speed: u32) -> task_queue::Result<Vec<Schedule>> {
    let every = |seconds| Duration::from_secs(seconds) / speed.max(1);
    Ok(vec![
        Schedule::every("cleanup-expired-files", every(300))?.call(cleanup_expired_files.delay())?,
        Schedule::every("cleanup-downloaded-files", every(3600))?.call(cleanup_downloaded_files.delay())?,
        Schedule::every("generate-usage-stats", every(1800))?.call(generate_usage_stats.delay())?,
    ])
}

/// Registers every task of SecureBox with the worker; the original runs it with four slots.
pub fn worker(worker: Worker, vault: &Vault, bus: &Bus) -> Worker {
    worker
        .register(cleanup_expired_files)
        .register(cleanup_downloaded_files)
        .register(generate_usage_stats)
        .register(process_large_file)
        .register(send_notification)
        .with_state(vault.clone())
        .with_state(bus.clone())
        .concurrency(4)
}

/// Deletes files that have expired.
#[task(name = "background_worker.cleanup_expired_files", retries = 3, backoff = "60s")]
async fn cleanup_expired_files(State(vault): State<Vault>, State(bus): State<Bus>) -> Result<u64, TaskError> {
    let now = Timestamp::now();
    let cleaned = vault.clean(|expires_at, _| expires_at <= now).await?;
    for file_id in &cleaned {
        bus.publish(FileExpired { file_id: *file_id, expired_at: now }).await?;
        bus.publish(FileCleaned { file_id: *file_id, reason: CleanReason::Expired }).await?;
    }
    tracing::info!(files = cleaned.len(), "expired files cleaned");
    Ok(cleaned.len() as u64)
}

/// Deletes files that have been downloaded.
#[task(name = "background_worker.cleanup_downloaded_files", retries = 3, backoff = "60s")]
async fn cleanup_downloaded_files(
    State(vault): State<Vault>,
    State(bus): State<Bus>,
) -> Result<u64, TaskError> {
    let cleaned = vault.clean(|_, downloaded| downloaded).await?;
    for file_id in &cleaned {
        bus.publish(FileCleaned { file_id: *file_id, reason: CleanReason::Downloaded }).await?;
    }
    tracing::info!(files = cleaned.len(), "downloaded files cleaned");
    Ok(cleaned.len() as u64)
}

/// Counts the files.
#[task(name = "background_worker.generate_usage_stats", retries = 3, backoff = "60s")]
async fn generate_usage_stats(State(vault): State<Vault>) -> Result<u64, TaskError> {
    let files = vault.count() as u64;
    tracing::info!(files, "usage statistics");
    Ok(files)
}

/// Verifies a large file by reading all of it.
#[task(name = "background_worker.process_large_file", retries = 2, backoff = "120s")]
pub(super) async fn process_large_file(
    State(vault): State<Vault>,
    file_id: Uuid,
    size_bytes: u64,
) -> Result<u64, TaskError> {
    let read = vault.read(file_id).await?.len() as u64;
    tracing::info!(%file_id, size_bytes, read, "large file processed");
    send_notification.delay("file_processed".into(), file_id.to_string()).await?;
    Ok(read)
}

/// Sends a notification (writes a log line).
#[task(name = "background_worker.send_notification")]
async fn send_notification(kind: String, about: String) -> Result<(), TaskError> {
    tracing::info!(kind, about, "notification sent");
    Ok(())
}
