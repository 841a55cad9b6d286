//! Runs every example of the workspace as a program, and checks its exit status and a line of its output.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use backbone_tests::{Process, workspace_root};

/// The longest time that an example may run.
const DEADLINE: Duration = Duration::from_secs(60);

/// The folder of programs that `ops/test` has built; the examples are in its folder `examples`.
const PREBUILT: &str = "BACKBONE_PROGRAMS";

struct Example {
    package: &'static str,
    name: &'static str,
    arguments: &'static [&'static str],
    /// Text that its output must contain.
    prints: &'static str,
}

const fn example(package: &'static str, name: &'static str, prints: &'static str) -> Example {
    Example { package, name, arguments: &[], prints }
}

const EXAMPLES: &[Example] = &[
    Example {
        arguments: &["--once"],
        ..example("backbone", "order_service", "finished: caller, http, service, worker, relay, bus")
    },
    example("event-client", "custom_transport", "counted 3 publishes"),
    example("event-client", "handle", "order 7 is paid after 2 attempts"),
    example("event-client", "keyed", r#""anna": [1, 2, 3, 4], "ben": [1, 2, 3, 4], "carla": [1, 2, 3, 4]"#),
    example("event-client", "log_shipping", "WARN billing: card refused"),
    example("event-client", "outbox", "delivered twice, booked once: 500 cents"),
    example("event-client", "publish", "published on memory: 3 single events and 100 together"),
    example("event-client", "request", "not sold: gold"),
    example("event-client", "stream", "received [1, 2, 3, 4, 5]"),
    example("task-queue", "schedule", "at-night: cron 0 2 * * mon-fri, next "),
    example("task-queue", "task", "the other task is Cancelled"),
];

#[tokio::test]
async fn every_example_runs_to_its_end() {
    let programs = programs();
    for Example { package, name, arguments, prints } in EXAMPLES {
        let program = programs.get(*name).unwrap_or_else(|| panic!("{package} has no example {name}"));
        let folder = tempfile::tempdir().unwrap();
        let mut command = tokio::process::Command::new(program);
        // No variables of this environment, such as EVENT_BUS_URL, and no files outside of the folder.
        command.args(*arguments).current_dir(folder.path()).env_clear().env("TMPDIR", folder.path());
        // An empty variable counts as unset: a file is no broker, and refuses a namespace.
        command.env("EVENT_BUS_NAMESPACE", "");
        let mut process = Process::start(command);
        let status = process.exit(DEADLINE).await;
        let output = process.output();
        assert!(status.success(), "{package}: {name} ended with {status}; it wrote:\n{output}");
        assert!(output.contains(prints), "{package}: {name} did not write {prints:?}; it wrote:\n{output}");
    }
}

#[test]
fn every_example_is_in_the_list() {
    let listed: BTreeSet<_> =
        EXAMPLES.iter().map(|one| (one.package.to_owned(), one.name.to_owned())).collect();
    let found: BTreeSet<_> = sources().into_iter().map(|(package, name, _)| (package, name)).collect();
    assert_eq!(found, listed);
}

#[test]
fn every_example_states_how_to_run_it() {
    for (package, name, source) in sources() {
        // The package `backbone` is the default of `cargo run`.
        let package = if package == "backbone" { String::new() } else { format!("-p {package} ") };
        let command = format!("//! $ cargo run {package}--example {name}");
        let text = std::fs::read_to_string(&source).unwrap();
        assert!(text.lines().any(|line| line == command), "{} lacks: {command}", source.display());
    }
}

/// Package, name and main file of each example in the source folders.
fn sources() -> Vec<(String, String, PathBuf)> {
    let entries = |folder: &Path| {
        let entries = folder.read_dir().into_iter().flatten();
        entries.map(|entry| entry.expect("a folder entry can be read").path()).collect::<Vec<_>>()
    };
    let text =
        |part: Option<&std::ffi::OsStr>| part.expect("a path has a name").to_string_lossy().into_owned();
    let mut sources = Vec::new();
    for package in
        entries(&workspace_root().join("crates")).into_iter().chain([workspace_root().join("tests")])
    {
        for path in entries(&package.join("examples")) {
            let main = if path.is_dir() { path.join("main.rs") } else { path.clone() };
            if main.extension().is_some_and(|extension| extension == "rs") {
                sources.push((text(package.file_name()), text(path.file_stem()), main));
            }
        }
    }
    sources
}

/// The program of each example, by name. `cargo test --workspace` builds the examples. Without `BACKBONE_PROGRAMS` this
/// function runs cargo, which reports their paths and builds the ones that are missing.
fn programs() -> HashMap<String, PathBuf> {
    if let Some(folder) = std::env::var_os(PREBUILT).filter(|folder| !folder.is_empty()) {
        let path = |name| Path::new(&folder).join("examples").join(name);
        return EXAMPLES
            .iter()
            .map(|one| (one.name.to_owned(), path(one.name)))
            .filter(|(_, path)| path.is_file())
            .collect();
    }
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args(["build", "--workspace", "--examples", "--message-format=json"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    cargo.current_dir(workspace_root()).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = cargo.output().expect("cargo starts");
    assert!(output.status.success(), "cargo build --examples failed: {}", output.status);
    let messages = output.stdout.split(|byte| *byte == b'\n');
    messages
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "example")
        .filter_map(|message| {
            let path = message["executable"].as_str()?;
            Some((message["target"]["name"].as_str()?.to_owned(), PathBuf::from(path)))
        })
        .collect()
}
