//! Builds the log viewer's JavaScript with Node.js. If the build fails, the embedded page explains how to get the viewer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The page that is embedded when the viewer could not be built.
const WITHOUT: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Logs</title><link rel="stylesheet" href="ui/app.css"></head>
<body><section id="empty"><h2>The viewer is not in this build</h2>
<p>Install Node 18 or newer with npm and build again; until then, <a href="logs">logs</a> returns the records as JSON.</p>
</section></body></html>
"#;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for path in
        ["build.rs", "ui/shell", "ui/logs", "ui/package.json", "ui/package-lock.json", "ui/tsconfig.json"]
    {
        println!("cargo::rerun-if-changed={path}");
    }
    let files = out.join("ui");
    fs::create_dir_all(&files).expect("OUT_DIR can be written");
    fs::copy("ui/shell/icon.svg", files.join("icon.svg")).expect("the icon can be copied");
    // The shell's rules come first, so that a page's rules override them.
    let styles = ["ui/shell/shell.css", "ui/logs/logs.css"]
        .map(|path| fs::read_to_string(path).expect("a file of styles"));
    fs::write(files.join("app.css"), styles.concat()).expect("OUT_DIR can be written");
    match script(&out.join("ui-build")) {
        Ok(script) => {
            fs::copy("ui/logs/index.html", files.join("index.html")).expect("the page can be copied");
            fs::write(files.join("app.js"), script).expect("OUT_DIR can be written");
        }
        Err(why) => {
            println!("cargo::warning=the log viewer is not built: {why}");
            // This file never exists, so Cargo runs this script in every build until the viewer can be built.
            println!("cargo::rerun-if-changed=ui/not-built-yet");
            fs::write(files.join("index.html"), WITHOUT).expect("OUT_DIR can be written");
            fs::write(files.join("app.js"), "").expect("OUT_DIR can be written");
        }
    }
}

/// Bundles the TypeScript in a copy of the folder, so that the source tree stays as it is.
fn script(work: &Path) -> Result<String, String> {
    let text = |e: std::io::Error| e.to_string();
    fs::create_dir_all(work).map_err(text)?;
    for name in ["package.json", "package-lock.json", "tsconfig.json"] {
        fs::copy(Path::new("ui").join(name), work.join(name)).map_err(text)?;
    }
    for folder in ["shell", "logs"] {
        fs::create_dir_all(work.join(folder)).map_err(text)?;
        for entry in fs::read_dir(Path::new("ui").join(folder)).map_err(text)? {
            let entry = entry.map_err(text)?;
            fs::copy(entry.path(), work.join(folder).join(entry.file_name())).map_err(text)?;
        }
    }
    // Types are not checked here: run `npm run check` after a change to the viewer.
    let quick = [
        "--omit=dev",
        "--no-audit",
        "--no-fund",
        "--fetch-retries=1",
        "--fetch-timeout=20000",
        "--prefer-offline",
    ];
    npm(work, &[&["ci"], &quick[..]].concat())?;
    npm(work, &["run", "build"])?;
    fs::read_to_string(work.join("dist/app.js")).map_err(text)
}

fn npm(work: &Path, arguments: &[&str]) -> Result<(), String> {
    let ran = Command::new("npm").args(arguments).current_dir(work).output();
    let output = ran.map_err(|e| format!("npm cannot be run ({e}); install Node 18 or newer"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Err(format!("npm {} failed: {line}", arguments[0]))
}
