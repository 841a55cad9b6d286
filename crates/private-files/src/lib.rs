//! Creates and opens files and folders that only their owner can read.
//!
//! Events, tasks and logs contain personal data of users and secrets that programs print by mistake. Every file
//! that this crate creates has mode 0600 and every folder 0700, whatever the umask; a file that an earlier version
//! created with wider rights gets the narrower mode when it is opened. [`open`] refuses a path whose last
//! component is a symbolic link, and files of another user: in a folder that others can write (`/tmp`) they could
//! redirect a write to any file.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Suffixes of the files that SQLite keeps beside a database. SQLite gives these files the mode of the database
/// when it creates them.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The mode bits that give rights to users other than the owner.
const OTHERS: u32 = 0o077;

/// Creates a folder, and its missing parent folders, with mode 0700. A folder that exists is left as it is, because
/// it may contain files of other programs. [`narrow_folder`] narrows a folder of this program.
///
/// # Errors
/// Fails when the folder cannot be created, or when a file of this name exists.
pub fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes the rights of other users from a folder of this user in which every entry satisfies `is_ours`; leaves
/// any other folder as it is.
///
/// # Errors
/// Fails when the folder cannot be read or its mode cannot be changed.
pub fn narrow_folder(path: &Path, is_ours: impl Fn(&str) -> bool) -> io::Result<()> {
    let found = path.symlink_metadata()?;
    if !found.is_dir() || found.uid() != own_user() || found.mode() & OTHERS == 0 {
        return Ok(());
    }
    for entry in path.read_dir()? {
        if !entry?.file_name().to_str().is_some_and(&is_ours) {
            return Ok(());
        }
    }
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// Creates a folder with mode 0700 for files that processes of one user share. Accepts an existing folder when it
/// can be trusted: it is no symbolic link, no other user can write into it, and it belongs to this user or to the
/// owner of `beside`.
///
/// # Errors
/// [`ErrorKind::PermissionDenied`] with the reason for a folder that cannot be trusted.
pub fn shared_folder(path: &Path, beside: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        done => return done,
    }
    let found = path.symlink_metadata()?;
    let refuse = |why: String| Err(denied(path, &format!("{why}; remove it")));
    if !found.is_dir() {
        return refuse("is not a folder".to_owned());
    }
    let owner = found.uid();
    if owner != own_user() && beside.metadata().map(|file| file.uid()).ok() != Some(owner) {
        return refuse(format!("belongs to another user (uid {owner})"));
    }
    if found.mode() & 0o022 != 0 {
        return refuse("can be written by other users".to_owned());
    }
    Ok(())
}

/// Opens a file for reading and writing; creates it with mode 0600 when it is missing.
///
/// # Errors
/// [`ErrorKind::PermissionDenied`] when the path is a link, no regular file, or belongs to another user.
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.custom_flags(no_follow()).open(path).map_err(|error| explain(path, error))?;
    narrow(path, &file)?;
    Ok(file)
}

/// Opens an existing file for writing; never follows a link.
///
/// # Errors
/// Fails when the file is missing, a link, or no regular file.
pub fn open_existing(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).custom_flags(no_follow()).open(path);
    let file = file.map_err(|error| explain(path, error))?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(denied(path, "is not a regular file")) }
}

/// Prepares a SQLite database: creates an empty file with mode 0600 when there is none, so that SQLite gives its
/// companion files the same mode, and removes the rights of other users that an earlier version left on these
/// files. Leaves a database of another user as it is: SQLite reports the error when it opens the file.
///
/// # Errors
/// [`ErrorKind::IsADirectory`] when the path is a folder, [`ErrorKind::PermissionDenied`] when it is neither a
/// folder nor a regular file. A link to an existing database is followed, because the user has named it.
pub fn prepare_database(path: &Path) -> io::Result<()> {
    match path.metadata() {
        Ok(found) if found.is_dir() => {
            return Err(Error::new(ErrorKind::IsADirectory, format!("{} is a folder", path.display())));
        }
        Ok(found) if !found.is_file() => return Err(denied(path, "is not a regular file")),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // Another process may create the file first: it then does so with the same mode.
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600).custom_flags(no_follow());
            options.open(path)?;
        }
        Err(error) => return Err(error),
    }
    narrow_file(path)?;
    for suffix in COMPANIONS {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match narrow_file(&PathBuf::from(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

/// Removes the rights of other users from a file of this user; leaves a file of another user as it is.
///
/// # Errors
/// Fails when the file's metadata cannot be read or its mode cannot be changed.
pub fn narrow_file(path: &Path) -> io::Result<()> {
    let found = path.metadata()?;
    if found.is_file() && found.uid() == own_user() && found.mode() & OTHERS != 0 {
        std::fs::set_permissions(path, narrowed(&found))?;
    }
    Ok(())
}

fn narrow(path: &Path, file: &File) -> io::Result<()> {
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(denied(path, "is not a regular file"));
    }
    if found.uid() != own_user() {
        return Err(denied(path, &format!("belongs to another user (uid {})", found.uid())));
    }
    if found.mode() & OTHERS != 0 {
        file.set_permissions(narrowed(&found))?;
    }
    Ok(())
}

fn narrowed(found: &Metadata) -> Permissions {
    Permissions::from_mode(found.mode() & 0o7777 & !OTHERS)
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn no_follow() -> i32 {
    (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC).bits().cast_signed()
}

/// Replaces the system's misleading text for a symbolic link ("too many levels of symbolic links").
fn explain(path: &Path, error: Error) -> Error {
    if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
        return denied(path, "is a symbolic link");
    }
    error
}

fn denied(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, format!("{} {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn folders_are_made_private_and_foreign_ones_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        create_folder(&path).unwrap();
        assert_eq!((mode(&path), mode(&home.path().join("a"))), (0o700, 0o700));
        set_mode(&path, 0o755);
        std::fs::write(path.join("bus.db"), "").unwrap();
        std::fs::write(path.join("holiday.jpg"), "").unwrap();
        let ours = |name: &str| name.starts_with("bus");
        narrow_folder(&path, ours).unwrap();
        assert_eq!(mode(&path), 0o755, "it contains a file of another program");
        std::fs::remove_file(path.join("holiday.jpg")).unwrap();
        narrow_folder(&path, ours).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_database_and_its_companions_lose_the_rights_of_others() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("tasks.db");
        prepare_database(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        let wal = home.path().join("tasks.db-wal");
        std::fs::write(&wal, "").unwrap();
        set_mode(&wal, 0o644);
        set_mode(&path, 0o644);
        prepare_database(&path).unwrap();
        assert_eq!((mode(&path), mode(&wal)), (0o600, 0o600));
    }

    #[test]
    fn links_and_strange_folders_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let (target, link) = (home.path().join("target"), home.path().join("link"));
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        for refused in [
            open(&link).map(drop),
            open_existing(&link).map(drop),
            prepare_database(home.path()),
            shared_folder(&link, &target),
            shared_folder(&target, &target),
            open(home.path()).map(drop),
        ] {
            assert!(refused.is_err(), "{refused:?}");
        }
        assert!(open(&link).unwrap_err().to_string().contains("symbolic link"));
        assert_eq!(prepare_database(home.path()).unwrap_err().kind(), ErrorKind::IsADirectory);
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");

        let open_to_all = home.path().join("peers");
        std::fs::create_dir(&open_to_all).unwrap();
        set_mode(&open_to_all, 0o777);
        let error = shared_folder(&open_to_all, &target).unwrap_err();
        assert!(error.to_string().contains("other users"), "{error}");
        set_mode(&open_to_all, 0o700);
        shared_folder(&open_to_all, &target).unwrap();
    }
}
