//! Generates SecureBox's traffic: uploads of several kinds, and some downloads.

use std::time::Duration;

use event_client::{Bus, Event};
use event_schemas::files::{
    FileCleaned, FileDownloaded, FileEncrypted, FileExpired, FileStored, FileUploaded,
};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::services::LARGE;
use super::vault::Vault;
use crate::{Error, Expected};

/// The amount of traffic.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Valid uploads.
    pub uploads: u32,
    /// Uploads of empty files, which are rejected permanently.
    pub empty: u32,
    /// Downloads, each of a different file.
    pub downloads: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self { uploads: 60, empty: 3, downloads: 10 }
    }
}

/// Uploads a file as the gateway does: the bytes to the vault, then the event; returns the file's id.
///
/// # Errors
/// When the disk or the bus fails; then the upload is refused.
pub async fn upload(
    bus: &Bus,
    vault: &Vault,
    name: &str,
    bytes: &[u8],
    keep: SignedDuration,
) -> Result<Uuid, Error> {
    let (file_id, expires_at) = (Uuid::now_v7(), Timestamp::now().checked_add(keep)?);
    vault.receive(file_id, bytes, expires_at).await?;
    let size_bytes = bytes.len() as u64;
    bus.publish(FileUploaded { file_id, name: name.to_owned(), size_bytes, expires_at }).await?;
    Ok(file_id)
}

/// Downloads a file as the gateway does.
///
/// # Errors
/// When the file does not exist, or the bus fails.
pub async fn download(bus: &Bus, vault: &Vault, file_id: Uuid) -> Result<Vec<u8>, Error> {
    let bytes = vault.download(file_id).await?;
    bus.publish(FileDownloaded { file_id }).await?;
    Ok(bytes)
}

/// Sends the traffic; returns the expected counts. Expired and downloaded files are deleted once the
/// schedules have run.
///
/// # Errors
/// When an upload or download fails.
pub async fn traffic(bus: &Bus, vault: &Vault, load: Load) -> Result<Expected, Error> {
    let day = SignedDuration::from_hours(24);
    let (mut slow, mut large, mut expiring) = (0, 0, 0);
    let mut kept = Vec::new();
    for number in 0..load.uploads {
        let is_large = number % 8 == 7;
        let is_slow = number % 10 == 9;
        let expires = !is_large && number % 5 == 0;
        let size = if is_large { LARGE as usize + 1024 } else { 2048 };
        let name = format!("{}-{number}.bin", if is_slow { "slow-key" } else { "report" });
        // Short-lived files have expired already, so that the next clean-up deletes them.
        let keep = if expires { SignedDuration::ZERO } else { day };
        let bytes: Vec<u8> = (0..size).map(|at| (at as u32).wrapping_mul(number + 1) as u8).collect();
        let file = upload(bus, vault, &name, &bytes, keep).await?;
        slow += u64::from(is_slow);
        large += u64::from(is_large);
        expiring += u64::from(expires);
        if !expires && !is_large {
            kept.push((file, bytes));
        }
    }
    for number in 0..load.empty {
        upload(bus, vault, &format!("empty-{number}.bin"), b"", day).await?;
    }
    let downloads: Vec<_> = kept.into_iter().take(load.downloads as usize).collect();
    for (file, bytes) in &downloads {
        stored(vault, *file).await?;
        if download(bus, vault, *file).await? != *bytes {
            return Err(format!("file {file} came back changed").into());
        }
    }
    let (uploads, empty, downloads) =
        (u64::from(load.uploads), u64::from(load.empty), downloads.len() as u64);
    let mut expected = Expected::default();
    for (subject, count) in [
        (FileUploaded::SUBJECT, uploads + empty),
        (FileEncrypted::SUBJECT, uploads),
        (FileStored::SUBJECT, uploads),
        (FileDownloaded::SUBJECT, downloads),
        (FileExpired::SUBJECT, expiring),
        (FileCleaned::SUBJECT, expiring + downloads),
    ] {
        Expected::add(&mut expected.published, subject, count);
    }
    let all = expected.published.values().sum();
    Expected::add(&mut expected.handled, "securebox-encryption.files.uploaded", uploads);
    Expected::add(&mut expected.handled, "securebox-storage.files.encrypted", uploads);
    Expected::add(&mut expected.handled, "securebox-audit", all);
    Expected::add(&mut expected.retried, "securebox-encryption.files.uploaded", slow);
    Expected::add(&mut expected.dead, "securebox-encryption.files.uploaded", empty);
    Expected::add(&mut expected.tasks, "background_worker.process_large_file", large);
    Expected::add(&mut expected.tasks, "background_worker.send_notification", large);
    Ok(expected)
}

/// Waits until a file is stored.
async fn stored(vault: &Vault, file: Uuid) -> Result<(), Error> {
    let wait = async {
        while !vault.is_stored(file) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .map_err(|_| format!("file {file} was not stored within 30 s").into())
}
