//! One server's folder: its data, its configuration and its log; removed with the server, or by a later
//! process after a crash.

use crate::{Error, ErrorKind, Result};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// How long the folder of a test that panicked is kept.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// The name of the file that marks such a folder.
const KEEP: &str = "keep";

/// A folder of this process under the system's folder for temporary files. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    mounted: bool,
    kept: AtomicBool,
    _lock: File,
}

impl Folder {
    /// Creates a folder with an empty `data` in it; `limit` puts `data` on a separate file system of that
    /// many MiB.
    pub(crate) fn new(server: &str, limit: Option<u32>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // A short path, because it contains sockets, whose paths are limited to 108 bytes.
        let path = root()?.join(format!("{server}-{}-{number}", std::process::id()));
        let data = path.join("data");
        fs::create_dir_all(&data)
            .map_err(|e| Error::system(format!("cannot create {}", data.display()), e))?;
        let lock = path.join("lock");
        let lock = File::create(&lock)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|e| Error::system(format!("cannot lock {}", lock.display()), e))?;
        if let Some(mib) = limit {
            mount(&data, mib)?;
        }
        Ok(Self { path, mounted: limit.is_some(), kept: AtomicBool::new(false), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the folder for a day, so that a failure can be investigated.
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
        let _ = fs::write(self.path.join(KEEP), "");
    }

    /// The folder for the server's data, which is kept over restarts.
    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Writes a file beside the data and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, text).map_err(|e| Error::system(format!("cannot write {}", path.display()), e))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep();
            eprintln!("test-servers: the log is kept for a day: {}", self.path.join("log").display());
        } else if !self.kept.load(Ordering::Relaxed) && std::env::var_os("BACKBONE_KEEP_SERVERS").is_none() {
            remove(&self.path, self.mounted);
        }
    }
}

/// Returns the common folder for the servers of all processes of this user.
pub(crate) fn root() -> Result<PathBuf> {
    let root = std::env::temp_dir().join(format!("backbone-servers-{}", rustix::process::getuid().as_raw()));
    fs::create_dir_all(root.join("ports"))
        .map_err(|e| Error::system(format!("cannot create {}", root.display()), e))?;
    Ok(root)
}

/// Removes the folders of processes that were killed: the locks in them are free.
fn sweep() {
    let entries = root().ok().and_then(|root| fs::read_dir(root).ok());
    for entry in entries.into_iter().flatten().flatten() {
        let path = entry.path();
        // A folder without a lock is still being created.
        let Ok(lock) = File::open(path.join("lock")) else { continue };
        let kept = fs::metadata(path.join(KEEP)).and_then(|meta| meta.modified()).ok();
        let kept = kept.is_some_and(|at| at.elapsed().is_ok_and(|age| age < KEPT));
        if !kept && lock.try_lock().is_ok() {
            remove(&path, true);
        }
    }
}

fn remove(path: &Path, mounted: bool) {
    if mounted && is_mount(&path.join("data")) {
        let _ = Command::new("umount").arg("--lazy").arg(path.join("data")).status();
    }
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("test-servers: {} is left behind: {error}", path.display());
    }
}

fn is_mount(path: &Path) -> bool {
    fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| {
        mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == path))
    })
}

fn mount(data: &Path, mib: u32) -> Result<()> {
    let output = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0777"), "backbone-servers"])
        .arg(data)
        .output()
        .map_err(|e| Error::system("cannot run mount", e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("a data folder with a size limit needs root and the right to mount: {}", said.trim()),
    ))
}
