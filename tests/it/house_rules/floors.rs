//! Checks that a crate depends only on floors below its own, according to `cargo metadata`, which is also the
//! compiler's input.

use super::assert_none;
use cargo_metadata::{DependencyKind, MetadataCommand};

/// The floors of the crates. Add a new crate here first.
const FLOORS: &[(&str, u8)] = &[
    ("event-macros", 0),  // a part of event-client: derives must be in a separate crate
    ("test-servers", 0),  // the lowest floor: every crate's tests may start servers
    ("private-files", 0), // every store keeps its files from other users the same way
    ("terminal", 0),      // every program prints the same way
    ("sqlite-kit", 0),    // every store in a file detects that the file was removed
    ("settings", 0),      // service-kit and task-queue read settings and durations the same way
    ("event-transport", 1),
    ("service-kit", 1),
    ("transport-sqlite", 2),
    ("transport-nats", 2),
    ("transport-redis", 2),
    ("transport-rabbitmq", 2),
    ("event-client", 3),
    ("event-conformance", 4),
    ("event-schemas", 4),
    ("task-queue", 4),
    ("log-aggregator", 5),
    ("console", 6), // the pages stand over every API that they read
    ("reference-systems", 6),
    ("backbone", 7),
    ("backbone-tests", 7),
];

/// Dev-dependencies on a higher floor, each with the reason that no lower place is possible: (user, used).
const DEV_EXCEPTIONS: &[(&str, &str)] = &[
    // The output of a derive names event-client, so it can only be compiled with that crate.
    ("event-macros", "event-client"),
];

#[test]
fn a_crate_uses_only_floors_below_its_own() {
    let metadata = MetadataCommand::new()
        .manifest_path(backbone_tests::workspace_root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata runs");
    let floor = |name: &str| FLOORS.iter().find(|(known, _)| *known == name).map(|(_, floor)| *floor);

    let mut findings = Vec::new();
    for package in metadata.workspace_packages() {
        let user = package.name.as_str();
        let Some(own) = floor(user) else {
            findings.push(format!("{user} has no floor yet: place it in FLOORS"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            let used = dependency.name.as_str();
            let dev = dependency.kind == DependencyKind::Development;
            // A crate may depend on itself for its tests, in order to enable one of its features.
            if dev && (user == used || DEV_EXCEPTIONS.contains(&(user, used))) {
                continue;
            }
            match floor(used) {
                Some(below) if below < own => {}
                Some(below) => findings.push(format!("{user} (floor {own}) uses {used} (floor {below})")),
                None => findings.push(format!("{user} uses {used}, which has no floor")),
            }
        }
    }
    for (name, _) in FLOORS {
        if !metadata.workspace_packages().iter().any(|package| package.name.as_str() == *name) {
            findings.push(format!("{name} is in FLOORS and not in the workspace"));
        }
    }
    assert_none("a crate may use any floor below its own, never its own or one above:", findings);
}
