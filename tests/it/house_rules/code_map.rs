//! Checks that the code map, `crates/README.md`, names files and functions that exist.

use super::{SourceFile, assert_none, files};

const MAP: &str = "crates/README.md";
/// Headings of the sections that describe a path through the code begin with these words.
const WALKTHROUGH: &str = "## The path of one ";
/// File types that the map names.
const ENDS: [&str; 3] = [".rs", ".ts", ".md"];

#[test]
fn the_code_map_names_files_and_functions_that_exist() {
    let files = files();
    let map = &files.iter().find(|file| file.path == MAP).expect("the code map exists").text;
    let mut findings = Vec::new();
    let mut paths = 0;
    let mut in_path = false;
    let mut current: Option<&SourceFile> = None;
    for (number, line) in map.lines().enumerate() {
        if line.starts_with("## ") {
            in_path = line.starts_with(WALKTHROUGH);
            paths += usize::from(in_path);
            current = None;
        }
        for word in line.split('`').skip(1).step_by(2) {
            if let Some(name) = word.strip_suffix("()").filter(|_| in_path) {
                let known = current.is_some_and(|file| defines(file, name));
                if !known {
                    let at = current.map_or("no file", |file| &file.path);
                    findings.push(format!("{MAP}:{}: {name} is not a function of {at}", number + 1));
                }
            } else if is_path(word) {
                let found = files.iter().find(|file| fits(&file.path, word, in_path));
                if found.is_none() {
                    findings.push(format!("{MAP}:{}: there is no file {word}", number + 1));
                }
                current = found;
            }
        }
    }
    assert_eq!(paths, 3, "the map describes the paths of an event, a task and a log record");
    assert_none("the code map must name files and functions that exist:", findings);
}

fn is_path(word: &str) -> bool {
    ENDS.iter().any(|end| word.ends_with(end)) && !word.contains([' ', '{', '*'])
}

/// Whether the word means this file. A path through the code names files from the folder `crates`; elsewhere the end
/// of a path is enough.
fn fits(path: &str, word: &str, whole: bool) -> bool {
    let Some(below) = path.strip_prefix("crates/") else { return !whole && path.ends_with(word) };
    below == word || !whole && below.strip_suffix(word).is_some_and(|folder| folder.ends_with('/'))
}

fn defines(file: &SourceFile, name: &str) -> bool {
    let starts = match file.path.ends_with(".ts") {
        true => [format!("function {name}("), format!("\n  {name}(")],
        false => [format!("fn {name}("), format!("fn {name}<")],
    };
    starts.iter().any(|start| file.text.contains(start))
}

#[test]
fn a_word_is_a_file_or_a_function() {
    assert!(is_path("bus/env.rs") && !is_path("event-client") && !is_path("http/{a,b}.rs"));
    assert!(fits("crates/a/src/bus/env.rs", "bus/env.rs", false));
    assert!(!fits("crates/a/src/bus/env.rs", "bus/env.rs", true));
    assert!(!fits("crates/a/src/my_bus/env.rs", "bus/env.rs", false));
    let file = SourceFile { path: "a.rs".into(), text: "fn send<T>() {}".into() };
    assert!(defines(&file, "send") && !defines(&file, "sen"));
}
