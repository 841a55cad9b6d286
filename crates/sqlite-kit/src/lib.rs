//! Detects that the files of an open SQLite database were removed, moved or replaced.
//!
//! A process that has a file open continues to write into it after the file was removed, moved or replaced: SQLite
//! commits, `fsync` succeeds, and no other process ever sees the data. Each store in an SQLite file therefore calls
//! [`Identity::check`] between its commit and its confirmation.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// The coarsest file systems store a folder's change time in steps of 2 seconds: a second change within this time
/// may leave the stored time unchanged.
const COARSE: Duration = Duration::from_secs(2);

/// The identity (device and inode) of the files of a database: the database itself, its write-ahead log (`-wal`)
/// and the index of that log (`-shm`).
#[derive(Debug)]
pub struct Identity {
    parts: Vec<(PathBuf, Id)>,
    /// The folder of all these files; `None` when the path is a link, because then they are not all in one folder.
    folder: Option<PathBuf>,
    /// The folder's state at the last check of the files, stored only when the folder had not changed for a while:
    /// while this state is the same, no file in the folder has been removed, moved or replaced.
    calm: Mutex<Option<(Id, SystemTime)>>,
}

impl Identity {
    /// Records which of the three files exist. In WAL mode all three exist from the first read of an open
    /// connection until the last connection closes.
    ///
    /// # Errors
    /// Fails when the database file does not exist or its metadata cannot be read.
    pub fn of(database: &Path) -> io::Result<Self> {
        let mut identity = Self::of_file(database)?;
        // If the path is a link, `-wal` and `-shm` are beside the link's target.
        let database = database.canonicalize()?;
        for suffix in ["-wal", "-shm"] {
            let mut name = database.as_os_str().to_owned();
            name.push(suffix);
            let path = PathBuf::from(name);
            match Id::of(&path) {
                Ok(id) => identity.parts.push((path, id)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(identity)
    }

    /// Records the database file alone, for a database that is closed from time to time.
    ///
    /// # Errors
    /// Fails when the file does not exist or its metadata cannot be read.
    pub fn of_file(database: &Path) -> io::Result<Self> {
        let path = std::path::absolute(database)?;
        let id = Id::of(&path)?;
        let folder = path.parent().filter(|_| !path.is_symlink()).map(Path::to_owned);
        Ok(Self { parts: vec![(path, id)], folder, calm: Mutex::new(None) })
    }

    /// Checks that the same files still exist at their paths. Costs one `stat` while nothing changes in their
    /// folder, else one more for each file.
    ///
    /// # Errors
    /// [`Lost`] names the file that is missing or replaced, and the reason.
    pub fn check(&self) -> Result<(), Lost> {
        // The folder is read before the files, so that the next check notices a change that happens between the two
        // reads.
        let folder = self.folder.as_deref().and_then(changed);
        let mut calm = self.calm.lock().unwrap_or_else(PoisonError::into_inner);
        if folder.is_some() && *calm == folder {
            return Ok(());
        }
        *calm = None;
        for (path, was) in &self.parts {
            let fate = match Id::of(path) {
                Ok(is) if is == *was => continue,
                Ok(_) => Fate::Replaced,
                Err(error) => Fate::Gone(error),
            };
            return Err(Lost { path: path.clone(), fate });
        }
        *calm = folder.filter(|(_, at)| at.elapsed().is_ok_and(|age| age > COARSE));
        Ok(())
    }

    /// Whether every one of the files was removed, moved or replaced. While one of them still exists at its path,
    /// the same process must not open another database there: SQLite would use the old database's log for the new
    /// one.
    pub fn is_gone(&self) -> bool {
        self.parts.iter().all(|(path, was)| Id::of(path).ok() != Some(*was))
    }
}

/// The error of [`Identity::check`]: a file is no longer at the path where it was opened.
#[derive(Debug)]
pub struct Lost {
    path: PathBuf,
    fate: Fate,
}

#[derive(Debug)]
enum Fate {
    Replaced,
    Gone(io::Error),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.fate {
            Fate::Replaced => write!(f, "{path} was replaced by another file while it was open"),
            Fate::Gone(error) if error.kind() == io::ErrorKind::NotFound => {
                write!(f, "{path} was removed or moved while it was open")
            }
            Fate::Gone(_) => write!(f, "{path} cannot be found any more"),
        }
    }
}

impl std::error::Error for Lost {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.fate {
            Fate::Replaced => None,
            Fate::Gone(error) => Some(error),
        }
    }
}

/// The identity of a file. The file system does not reuse an inode number while a process has the file open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    device: u64,
    inode: u64,
}

impl Id {
    #[cfg(unix)]
    fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|found| Self::read(&found))
    }

    #[cfg(unix)]
    fn read(found: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self { device: found.dev(), inode: found.ino() }
    }

    /// Other systems do not allow a process to remove an open database.
    #[cfg(not(unix))]
    fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|_| Self { device: 0, inode: 0 })
    }
}

/// A folder and the time when an entry of it was last added, removed or renamed: its `ctime`, which no program can
/// set.
#[cfg(unix)]
fn changed(folder: &Path) -> Option<(Id, SystemTime)> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(folder).ok()?;
    let since = Duration::new(found.ctime().try_into().ok()?, found.ctime_nsec().try_into().ok()?);
    Some((Id::read(&found), SystemTime::UNIX_EPOCH + since))
}

#[cfg(not(unix))]
fn changed(_: &Path) -> Option<(Id, SystemTime)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the three files; each stays open, as under SQLite.
    fn database() -> (tempfile::TempDir, PathBuf, Vec<std::fs::File>) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bus.db");
        let names = ["bus.db", "bus.db-wal", "bus.db-shm"];
        let open = names.map(|name| std::fs::File::create(folder.path().join(name)).expect("a file"));
        (folder, path, open.into())
    }

    #[test]
    fn each_of_the_three_files_is_missed() {
        for name in ["bus.db", "bus.db-wal", "bus.db-shm"] {
            let (folder, path, _open) = database();
            let identity = Identity::of(&path).expect("it stands there");
            identity.check().expect("nothing has changed");
            let file = folder.path().join(name);
            let aside = folder.path().join("aside");
            std::fs::rename(&file, &aside).expect("moved");
            let lost = identity.check().expect_err("it is gone").to_string();
            assert!(lost.contains(name) && lost.contains("removed or moved"), "{lost}");
            std::fs::write(&file, "").expect("another one");
            let lost = identity.check().expect_err("it is another").to_string();
            assert!(lost.contains(name) && lost.contains("replaced"), "{lost}");
            assert!(!identity.is_gone(), "two of them are there");
            std::fs::rename(&aside, &file).expect("put back");
            identity.check().expect("it is the same again");
        }
    }

    /// While the folder does not change, `check` reads only the folder; a change in the folder makes it read the
    /// files.
    #[tokio::test]
    async fn a_change_in_a_calm_folder_is_noticed() {
        let (folder, path, _open) = database();
        let identity = Identity::of(&path).expect("it stands there");
        while identity.calm.lock().expect("not poisoned").is_none() {
            identity.check().expect("nothing has changed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        identity.check().expect("nothing has changed");
        std::fs::rename(folder.path().join("bus.db-shm"), folder.path().join("aside")).expect("moved");
        assert!(identity.check().is_err());
        assert!(identity.check().is_err(), "and stays so");
        std::fs::rename(folder.path().join("aside"), folder.path().join("bus.db-shm")).expect("back");
        identity.check().expect("it is the same again");
        let elsewhere = folder.path().with_extension("elsewhere");
        std::fs::rename(folder.path(), &elsewhere).expect("the folder itself is moved");
        assert!(identity.check().is_err());
        std::fs::rename(&elsewhere, folder.path()).expect("back");
        identity.check().expect("it is the same again");
    }

    #[test]
    fn a_file_alone_does_not_miss_its_companions() {
        let (folder, path, _open) = database();
        let identity = Identity::of_file(&path).expect("it stands there");
        std::fs::remove_file(folder.path().join("bus.db-wal")).expect("removed");
        identity.check().expect("the database itself is there");
        std::fs::remove_dir_all(folder.path()).expect("removed with its folder");
        assert!(identity.check().is_err() && identity.is_gone());
        assert!(Identity::of(&path).is_err(), "a file that does not exist has no identity");
    }
}
