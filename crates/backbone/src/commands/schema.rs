//! `backbone schema`: writes JSON Schemas and golden samples from the code, and checks files against it.

use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;

use crate::args::Schema;
use terminal::Output;

pub(crate) fn run(command: Schema, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Schema::Gen { dir } => {
            let files = event_schemas::generate()?;
            for (file, bytes) in &files {
                let path = dir.join(file);
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)
                        .with_context(|| format!("cannot create {}", folder.display()))?;
                }
                std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
            }
            if output.is_json() {
                output.json(&json!({"written": files.len(), "dir": dir}))?;
            } else {
                output.line(&format!("{} files written to {}", files.len(), dir.display()))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Schema::Check { dir } => {
            let drift = event_schemas::check(&dir)?;
            for one in &drift {
                if output.is_json() {
                    output.json(&json!({"drift": one.to_string()}))?;
                } else {
                    output.line(&output.verdict(false, &one.to_string()))?;
                }
            }
            if drift.is_empty() && !output.is_json() {
                output.line(&output.verdict(true, &format!("{} agrees with the code", dir.display())))?;
            }
            Ok(if drift.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
