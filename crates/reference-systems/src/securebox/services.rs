//! Implements the encryption and storage services, and an audit service that records their events.

use event_client::Bus;
use event_client::service::{Attempt, Dynamic, Emitter, Handler, Msg, Service, State};
use event_schemas::files::{FileEncrypted, FileStored, FileUploaded};

use super::tasks::process_large_file;
use super::vault::{Vault, VaultError};
use crate::Error;

/// Files of this size or more are processed by the worker.
pub(super) const LARGE: u64 = 64 * 1024;

/// Returns the three services on `bus`, ready to start.
pub fn services(bus: &Bus, vault: &Vault) -> Vec<Service> {
    let encryption = Service::new("securebox-encryption").bus(bus.clone()).on(encrypt.concurrency(8).keyed());
    let storage = Service::new("securebox-storage").bus(bus.clone()).on(store.concurrency(8).keyed());
    let audit = Service::new("securebox-audit")
        .bus(bus.clone())
        .on_subject("files.>", audit.group("securebox-audit"));
    vec![encryption.with_state(vault.clone()), storage.with_state(vault.clone()), audit.with_state(())]
}

/// Encrypts an upload. Some uploads fail at first, as with a key service that sometimes does not answer.
async fn encrypt(
    State(vault): State<Vault>,
    attempt: Attempt,
    out: Emitter,
    Msg(upload): Msg<FileUploaded>,
) -> Result<(), Error> {
    if upload.name.contains("slow-key") && attempt.number() == 1 {
        return Err("the key service did not answer".into());
    }
    let size = vault.encrypt(upload.file_id).await?;
    tracing::info!(file_id = %upload.file_id, size, "file encrypted");
    out.emit(FileEncrypted { file_id: upload.file_id, algorithm: "aes-256-gcm".into() }).await?;
    Ok(())
}

/// Marks an encrypted file as stored, and starts a task for each large one.
async fn store(State(vault): State<Vault>, out: Emitter, Msg(file): Msg<FileEncrypted>) -> Result<(), Error> {
    // The file is encrypted already: this call only returns its size.
    let size_bytes = vault.encrypt(file.file_id).await?;
    vault.seal(file.file_id).await?;
    if size_bytes > LARGE {
        // A second attempt after a crash uses the same unique key and adds no task.
        process_large_file
            .delay(file.file_id, size_bytes)
            .unique(format!("process:{}", file.file_id))
            .await?;
    }
    out.emit(FileStored { file_id: file.file_id, bucket: "securebox-files".into(), size_bytes }).await?;
    tracing::info!(file_id = %file.file_id, size_bytes, "file stored");
    Ok(())
}

async fn audit(event: Dynamic) -> Result<(), VaultError> {
    tracing::debug!(kind = %event.kind, file_id = event.data["file_id"].as_str(), "audit");
    Ok(())
}
