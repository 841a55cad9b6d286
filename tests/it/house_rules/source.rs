//! The shape of source files: each says what it is for, and stays short enough to be read at one sitting.

use super::{assert_none, rust_files};

/// The most lines a Rust file may have, its tests included.
const LONGEST: usize = 400;

/// Files that may be longer, with the reason beside each.
const LONG_FILES: &[&str] = &[];

#[test]
fn every_file_opens_by_saying_what_it_is_for() {
    let silent = rust_files().into_iter().filter(|file| !file.text.starts_with("//! "));
    assert_none("first line is not a `//! ` sentence:", silent.map(|file| file.path).collect());
}

#[test]
fn files_stay_short() {
    let long = rust_files()
        .into_iter()
        .filter(|file| !LONG_FILES.contains(&file.path.as_str()))
        .map(|file| (file.text.lines().count(), file.path))
        .filter(|(lines, _)| *lines > LONGEST)
        .map(|(lines, path)| format!("{path}: {lines} lines"));
    assert_none(
        "longer than 400 lines: split by concept, or name it in LONG_FILES with the reason:",
        long.collect(),
    );
}

#[test]
fn exceptions_are_still_needed() {
    let files = rust_files();
    let stale = LONG_FILES
        .iter()
        .filter(|path| !files.iter().any(|file| file.path == **path && file.text.lines().count() > LONGEST));
    assert_none("in LONG_FILES without need:", stale.map(|path| path.to_string()).collect());
}
