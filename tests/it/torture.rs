//! Runs a short torture with a fixed seed. Long runs are started by hand: `torture --help`.

use std::process::Command;

/// Runs the program and returns its output.
fn torture(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_torture")).args(arguments).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "torture {arguments:?}: {}\n{said}\n{problem}", output.status);
    assert!(said.contains("nothing lost"), "{said}");
    said
}

#[test]
fn sqlite() {
    let said = torture(&["--on", "sqlite", "--faults", "6", "--seed", "4"]);
    assert!(said.contains("6 faults"), "{said}");
}

#[test]
fn redis() {
    torture(&["--on", "redis", "--fsync", "--faults", "5", "--seed", "1"]);
}

#[test]
fn nats() {
    torture(&["--on", "nats", "--new", "--faults", "5", "--seed", "5"]);
}

#[test]
fn rabbitmq() {
    torture(&["--on", "rabbitmq", "--new", "--faults", "5", "--seed", "2"]);
}

#[test]
fn a_fault_that_does_not_exist_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_torture")).args(["--only", "earthquake"]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("earthquake") && said.contains("worker-killed"), "{said}");
}
