//! The project's rules as tests, so that no reviewer has to check them.

mod broker_types;
mod code;
mod code_map;
mod cycles;
mod english;
mod fields;
mod floors;
mod graph;
mod source;
mod tokens;
mod words;

use std::path::{Path, PathBuf};

/// A file of the repository, with its path relative to the root.
struct SourceFile {
    path: String,
    text: String,
}

/// Returns every text file of the repository in the order of their paths, without build output.
fn files() -> Vec<SourceFile> {
    let root = backbone_tests::workspace_root();
    let mut files = Vec::new();
    collect(&root, &root, &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// Returns the Rust files among [`files`].
fn rust_files() -> Vec<SourceFile> {
    let files: Vec<_> = files().into_iter().filter(|file| file.path.ends_with(".rs")).collect();
    assert!(files.len() > 20, "only {} Rust files found: the walk is broken", files.len());
    files
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<SourceFile>) {
    let entries = folder.read_dir().unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for path in entries.map(|entry| entry.expect("a folder entry can be read").path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_symlink() || ["target", "node_modules", "dist", ".git"].contains(&&*name) {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, files);
        } else if let Some(text) = text(&path) {
            let path = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            files.push(SourceFile { path, text });
        }
    }
}

/// Returns the content of a text file; none for pictures, samples in binary formats, and files that were
/// removed meanwhile.
fn text(path: &PathBuf) -> Option<String> {
    String::from_utf8(std::fs::read(path).ok()?).ok()
}

/// Fails with one line per finding.
#[track_caller]
fn assert_none(rule: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{rule}\n  {}", findings.join("\n  "));
}
