//! Checks that the repository contains only the project: no traces of the machine or the tools it was written
//! with.

use super::{assert_none, files};

/// Text that must not occur, in lower case. Each is split in two, so that this file does not match itself.
const TRACES: &[(&str, &str)] = &[
    // folders of one developer's machine
    ("/wo", "rk/"),
    ("/ro", "ot/"),
    ("/ho", "me/"),
    ("/us", "ers/ma"),
    ("sha", "red/research"),
    ("sha", "red/roadmap"),
    ("sha", "red/design"),
    // writing tools and their typical phrases
    ("cl", "aude"),
    ("anth", "ropic"),
    ("chat", "gpt"),
    ("co-auth", "ored-by"),
    ("as an ", "ai "),
    ("language", " model"),
    ("brief", ".md"),
    ("issue", "2"),
];

/// Places where such text is data and must stay unchanged: (path prefix, text, reason is the comment).
const EXCEPTIONS: &[(&str, &str)] = &[];

#[test]
fn the_repository_speaks_of_the_project_alone() {
    let traces: Vec<String> = TRACES.iter().map(|(head, tail)| format!("{head}{tail}")).collect();
    let mut findings = Vec::new();
    for file in files() {
        for (number, line) in file.text.lines().enumerate() {
            let line = line.to_lowercase();
            for trace in &traces {
                let allowed =
                    EXCEPTIONS.iter().any(|(path, text)| file.path.starts_with(path) && text == trace);
                if line.contains(trace.as_str()) && !allowed {
                    findings.push(format!("{}:{}: {trace:?}", file.path, number + 1));
                }
            }
        }
    }
    assert_none("traces of the machine or the tools it was written with:", findings);
}
