//! Checks the shape of source files: each begins with a comment on its purpose, and has a limited length.

use super::{assert_none, rust_files};

/// The maximum number of lines of a Rust file, its tests included.
const LONGEST: usize = 400;

/// Files that may be longer, each with its own limit and the reason beside it.
const LONG_FILES: &[(&str, usize)] = &[];

#[test]
fn every_file_opens_by_saying_what_it_is_for() {
    let silent = rust_files().into_iter().filter(|file| !file.text.starts_with("//! "));
    assert_none("first line is not a `//! ` sentence:", silent.map(|file| file.path).collect());
}

#[test]
fn files_stay_short() {
    let limit =
        |path: &str| LONG_FILES.iter().find(|(long, _)| *long == path).map_or(LONGEST, |(_, limit)| *limit);
    let long = rust_files()
        .into_iter()
        .map(|file| (file.text.lines().count(), file.path))
        .filter(|(lines, path)| *lines > limit(path))
        .map(|(lines, path)| format!("{path}: {lines} lines, {} allowed", limit(&path)));
    assert_none("too long: split by concept, or name it in LONG_FILES with the reason:", long.collect());
}
