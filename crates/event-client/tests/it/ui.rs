//! Tests the compiler's messages for common mistakes: the library's own texts must be in them.
//!
//! Each file of `tests/ui` must fail to compile, with every text that its `//~` lines contain. Only the
//! library's own texts are compared, so that a new compiler or a new implementor changes nothing; and the
//! crate as built for these tests is linked, so that a file takes a second and needs no second build of all
//! dependencies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn mistakes_are_explained() {
    let library = library();
    let mut files: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        let expected: Vec<_> = source.lines().filter_map(|line| line.strip_prefix("//~ ")).collect();
        assert!(!expected.is_empty(), "{} expects nothing", file.display());
        let (compiled, said) = compile(&file, &library);
        assert!(!compiled, "{} compiles", file.display());
        for text in expected {
            assert!(said.contains(text), "{}: the compiler's output lacks {text:?}:\n{said}", file.display());
        }
    }
}

/// Verifies the check itself: code without a mistake compiles against the same library.
#[test]
fn code_without_mistakes_compiles() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fine.rs");
    let source = "use event_client::service::{Raw, Service};\n\
                  async fn log(_: Raw) {}\n\
                  fn main() { let _ = Service::<()>::new(\"audit\").on_subject(\"orders.>\", log); }\n";
    fs::write(&file, source).unwrap();
    let (compiled, said) = compile(&file, &library());
    assert!(compiled, "{said}");
}

/// Returns the crate as it was last built for this test.
fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let built = fs::read_dir(deps).unwrap().map(|entry| entry.unwrap()).filter(|entry| {
        let name = entry.file_name().into_string().unwrap_or_default();
        name.starts_with("libevent_client-") && name.ends_with(".rlib")
    });
    let newest = built.max_by_key(|entry| entry.metadata().and_then(|data| data.modified()).unwrap());
    newest.expect("the library lies beside its test").path()
}

/// Compiles a file; returns whether it compiles, and the compiler's output.
fn compile(file: &Path, library: &Path) -> (bool, String) {
    let rustc = std::env::var_os("CARGO").map(|cargo| Path::new(&cargo).with_file_name("rustc"));
    let rustc = rustc.filter(|rustc| rustc.exists()).unwrap_or_else(|| "rustc".into());
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(rustc)
        .args(["--edition=2024", "--emit=metadata", "--color=never", "--crate-name=ui", "--out-dir"])
        .arg(folder.path())
        .arg("--extern")
        .arg(format!("event_client={}", library.display()))
        .arg("-L")
        .arg(format!("dependency={}", library.parent().unwrap().display()))
        .arg(file)
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}
