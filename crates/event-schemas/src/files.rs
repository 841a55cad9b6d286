//! The events of SecureBox: a file from its upload to its clean-up.

use event_client::Event;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::sample::Sample;

/// A file has arrived at the gateway.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "files.uploaded", version = 1, key = file_id)]
pub struct FileUploaded {
    /// The file.
    pub file_id: Uuid,
    /// Its name as uploaded.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it is to be deleted.
    pub expires_at: Timestamp,
}

/// The encryption service has encrypted a file.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "files.encrypted", version = 1, key = file_id)]
pub struct FileEncrypted {
    /// The file.
    pub file_id: Uuid,
    /// Cipher and mode, such as `aes-256-gcm`.
    pub algorithm: String,
}

/// The storage service holds a file.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "files.stored", version = 1, key = file_id)]
pub struct FileStored {
    /// The file.
    pub file_id: Uuid,
    /// Bucket of the object store.
    pub bucket: String,
    /// Size as stored, in bytes.
    pub size_bytes: u64,
}

/// A file has been handed out.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "files.downloaded", version = 1, key = file_id)]
pub struct FileDownloaded {
    /// The file.
    pub file_id: Uuid,
}

/// A file's time has passed.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "files.expired", version = 1, key = file_id)]
pub struct FileExpired {
    /// The file.
    pub file_id: Uuid,
    /// When it expired.
    pub expired_at: Timestamp,
}

/// A file has been deleted by a clean-up.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "files.cleaned", version = 1, key = file_id)]
pub struct FileCleaned {
    /// The file.
    pub file_id: Uuid,
    /// Why.
    pub reason: CleanReason,
}

/// Why a file was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CleanReason {
    /// Its time had passed.
    Expired,
    /// It had been downloaded.
    Downloaded,
}

const FILE: Uuid = Uuid::from_u128(0x0193_4f2e_8d10_7c3a_9b5e_2f6a_1c4d_7e80);

impl Sample for FileUploaded {
    fn sample() -> Self {
        let expires_at = Timestamp::constant(1_767_225_600, 0);
        Self { file_id: FILE, name: "übersicht 2026.pdf".into(), size_bytes: 524_288, expires_at }
    }
}

impl Sample for FileEncrypted {
    fn sample() -> Self {
        Self { file_id: FILE, algorithm: "aes-256-gcm".into() }
    }
}

impl Sample for FileStored {
    fn sample() -> Self {
        Self { file_id: FILE, bucket: "securebox-files".into(), size_bytes: 524_316 }
    }
}

impl Sample for FileDownloaded {
    fn sample() -> Self {
        Self { file_id: FILE }
    }
}

impl Sample for FileExpired {
    fn sample() -> Self {
        Self { file_id: FILE, expired_at: Timestamp::constant(1_767_225_600, 0) }
    }
}

impl Sample for FileCleaned {
    fn sample() -> Self {
        Self { file_id: FILE, reason: CleanReason::Expired }
    }
}
