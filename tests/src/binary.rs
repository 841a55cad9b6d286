//! Builds our programs on first use and returns their paths, because cargo gives a package only its own
//! binaries.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;

static BUILT: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);

/// The folder of programs that are already built and up to date: `ops/test` sets it for its whole run.
const PREBUILT: &str = "BACKBONE_PROGRAMS";

/// Returns the path of the program `name` of the workspace package `package`, built in the profile of this
/// test.
///
/// The first call for a package runs `cargo build`; later calls of the same process return at once. The path
/// comes from cargo's own report, so `CARGO_TARGET_DIR` is respected. Where `BACKBONE_PROGRAMS` names a
/// folder, the program is taken from there and nothing is built.
///
/// # Panics
/// When the build fails or the package has no such program; the compiler's messages are on standard error.
pub fn binary(package: &str, name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os(PREBUILT).filter(|folder| !folder.is_empty()) {
        let path = PathBuf::from(folder).join(name);
        assert!(
            path.is_file(),
            "package {package} has no program named {name} in {PREBUILT}: {}",
            path.display()
        );
        return path;
    }
    let key = format!("{package}/{name}");
    // A build that panicked leaves no partial entry, so a poisoned lock is no reason to fail other tests.
    let mut built = BUILT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let built = built.get_or_insert_default();
    if let Some(path) = built.get(&key) {
        return path.clone();
    }
    for (program, path) in build(package) {
        built.insert(format!("{package}/{program}"), path);
    }
    built.get(&key).cloned().unwrap_or_else(|| panic!("package {package} has no program named {name}"))
}

/// Builds every program of `package` and returns (name, path) as cargo reports them.
fn build(package: &str) -> Vec<(String, PathBuf)> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--bins", "--message-format=json", "-p", package]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo
        .current_dir(crate::workspace_root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo build -p {package} failed: {}", output.status);
    output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter_map(|message| {
            let path = message["executable"].as_str()?;
            Some((message["target"]["name"].as_str()?.to_owned(), PathBuf::from(path)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_what_the_workspace_ships() {
        let path = binary("backbone", "backbone");
        assert!(path.is_file(), "{}", path.display());
        assert_eq!(path, binary("backbone", "backbone"));
    }

    #[test]
    #[should_panic(expected = "package backbone has no program named spine")]
    fn a_program_that_is_not_there_is_named() {
        binary("backbone", "spine");
    }
}
