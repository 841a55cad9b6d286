//! Tests variables that only the environment of a real process can contain.

use crate::child::{ROLE, role};
use service_kit::config::{ErrorKind, Loader};
use service_kit::http::Settings;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Program {
    http: Settings,
}

#[test]
fn a_variable_that_is_not_utf_8_is_named_when_it_is_ours() {
    if role().is_some() {
        let theirs = Loader::new("other").load::<Program>().unwrap();
        assert_eq!(theirs.settings.http, Settings::default());
        let error = Loader::new("kit").load::<Program>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidValue);
        assert_eq!(error.to_string(), "the variable KIT__HTTP__HOST is not UTF-8");
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "config::a_variable_that_is_not_utf_8_is_named_when_it_is_ours"])
        .env(ROLE, "child")
        .env("KIT__HTTP__HOST", OsStr::from_bytes(b"local\xff"))
        .env_remove("PORT")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && told.contains("1 passed"), "{told}");
}
