//! SecureBox's file storage: a folder for received files, one for encrypted files, and an index.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use aes_gcm::aead::{Aead, AeadCore, KeyInit, OsRng};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use event_client::service::Permanent;
use jiff::Timestamp;
use uuid::Uuid;

/// The files on disk and their index; clones share them.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    cipher: Aes256Gcm,
    files: Mutex<BTreeMap<Uuid, File>>,
}

struct File {
    expires_at: Timestamp,
    stored: bool,
    downloaded: bool,
}

/// The errors of the vault.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// A disk operation failed.
    #[error("the vault's disk failed")]
    Disk(#[from] std::io::Error),
    /// The file is invalid: no later attempt can succeed.
    #[error("the file is not acceptable")]
    Refused(#[source] Permanent),
    /// The file does not exist.
    #[error("no such file: {0}")]
    Missing(Uuid),
}

const NONCE: usize = 12;

impl Vault {
    /// Opens a vault in `folder` with a new key.
    ///
    /// # Errors
    /// When the folders cannot be created.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, VaultError> {
        let folder = folder.into();
        std::fs::create_dir_all(folder.join("incoming"))?;
        std::fs::create_dir_all(folder.join("stored"))?;
        let key: Key<Aes256Gcm> = Aes256Gcm::generate_key(OsRng);
        Ok(Self(Arc::new(Inner { folder, cipher: Aes256Gcm::new(&key), files: Mutex::default() })))
    }

    /// Stores a received file unencrypted.
    ///
    /// # Errors
    /// [`VaultError::Disk`].
    pub async fn receive(&self, file: Uuid, bytes: &[u8], expires_at: Timestamp) -> Result<(), VaultError> {
        tokio::fs::write(self.incoming(file), bytes).await?;
        self.files().insert(file, File { expires_at, stored: false, downloaded: false });
        Ok(())
    }

    /// Encrypts a received file; returns its size as stored. Repeating the call is harmless.
    ///
    /// # Errors
    /// [`VaultError::Refused`] for an empty file, which SecureBox does not accept.
    pub async fn encrypt(&self, file: Uuid) -> Result<u64, VaultError> {
        if let Ok(done) = tokio::fs::metadata(self.stored(file)).await {
            return Ok(done.len());
        }
        let plain = tokio::fs::read(self.incoming(file)).await?;
        if plain.is_empty() {
            return Err(VaultError::Refused(Permanent::new("it is empty")));
        }
        let nonce = Aes256Gcm::generate_nonce(&mut OsRng);
        let sealed = self
            .0
            .cipher
            .encrypt(&nonce, plain.as_slice())
            .map_err(|error| VaultError::Refused(Permanent::new(error.to_string())))?;
        let bytes = [nonce.as_slice(), &sealed].concat();
        let half_done = self.stored(file).with_extension("part");
        tokio::fs::write(&half_done, &bytes).await?;
        tokio::fs::rename(&half_done, self.stored(file)).await?;
        Ok(bytes.len() as u64)
    }

    /// Marks a file as stored and deletes its unencrypted original.
    ///
    /// # Errors
    /// [`VaultError::Disk`].
    pub async fn seal(&self, file: Uuid) -> Result<(), VaultError> {
        remove(self.incoming(file)).await?;
        if let Some(file) = self.files().get_mut(&file) {
            file.stored = true;
        }
        Ok(())
    }

    /// Returns whether a file is stored.
    pub fn is_stored(&self, file: Uuid) -> bool {
        self.files().get(&file).is_some_and(|file| file.stored)
    }

    /// Reads a stored file and records that it was downloaded.
    ///
    /// # Errors
    /// As [`Vault::read`].
    pub async fn download(&self, file: Uuid) -> Result<Vec<u8>, VaultError> {
        let plain = self.read(file).await?;
        if let Some(file) = self.files().get_mut(&file) {
            file.downloaded = true;
        }
        Ok(plain)
    }

    /// Reads a stored file.
    ///
    /// # Errors
    /// [`VaultError::Missing`], or [`VaultError::Refused`] when the file was changed on disk.
    pub async fn read(&self, file: Uuid) -> Result<Vec<u8>, VaultError> {
        let bytes = tokio::fs::read(self.stored(file)).await.map_err(|_| VaultError::Missing(file))?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE).ok_or(VaultError::Missing(file))?;
        let plain = self.0.cipher.decrypt(Nonce::from_slice(nonce), sealed);
        plain.map_err(|error| VaultError::Refused(Permanent::new(error.to_string())))
    }

    /// Deletes every stored file for which `unwanted` returns true, given its expiry and whether it was
    /// downloaded; returns the deleted ids.
    ///
    /// # Errors
    /// [`VaultError::Disk`].
    pub async fn clean(&self, unwanted: impl Fn(Timestamp, bool) -> bool) -> Result<Vec<Uuid>, VaultError> {
        let chosen: Vec<_> = self
            .files()
            .iter()
            .filter(|(_, file)| file.stored && unwanted(file.expires_at, file.downloaded))
            .map(|(id, _)| *id)
            .collect();
        let mut cleaned = Vec::new();
        for file in chosen {
            remove(self.stored(file)).await?;
            // Another run may have removed the file meanwhile; only one of them reports it.
            if self.files().remove(&file).is_some() {
                cleaned.push(file);
            }
        }
        Ok(cleaned)
    }

    /// Returns the number of files.
    pub fn count(&self) -> usize {
        self.files().len()
    }

    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<Uuid, File>> {
        self.0.files.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn incoming(&self, file: Uuid) -> PathBuf {
        self.0.folder.join("incoming").join(file.to_string())
    }

    fn stored(&self, file: Uuid) -> PathBuf {
        self.0.folder.join("stored").join(file.to_string())
    }
}

/// Deletes a file; a file that does not exist is no error.
async fn remove(path: PathBuf) -> std::io::Result<()> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("folder", &self.0.folder).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_comes_back_as_it_was_and_is_not_readable_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        let file = Uuid::from_u128(1);
        vault.receive(file, b"a secret", Timestamp::MAX).await.unwrap();
        vault.encrypt(file).await.unwrap();
        vault.seal(file).await.unwrap();
        let on_disk = std::fs::read(folder.path().join("stored").join(file.to_string())).unwrap();
        assert!(!on_disk.windows(6).any(|window| window == b"secret"));
        assert_eq!(vault.download(file).await.unwrap(), b"a secret");
        assert_eq!(vault.clean(|_, downloaded| downloaded).await.unwrap(), [file]);
        assert!(matches!(vault.download(file).await, Err(VaultError::Missing(_))));
    }

    #[tokio::test]
    async fn an_empty_file_is_refused_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        vault.receive(Uuid::nil(), b"", Timestamp::MAX).await.unwrap();
        assert!(matches!(vault.encrypt(Uuid::nil()).await, Err(VaultError::Refused(_))));
    }
}
