//! Comments and documents are plain English: a subject, a verb, an object, and the protocol's own word for the operation.
//!
//! The list holds the openings and phrases of a dialect that this repository once had. It is short on purpose: a
//! reviewer judges the rest.

use super::{SourceFile, assert_none, files};

/// Words that a comment must not begin with: a clause is no noun, and a servant has a name.
const OPENINGS: &[&str] = &["What", "Who", "Whoever", "Whose", "Nobody", "So many", "So long"];

/// Phrases that must not occur in comments and documents, in lower case, with the words to use instead.
const PHRASES: &[(&str, &str)] = &[
    ("whoever", "a caller that, a member that, a process that"),
    ("so many", "the number of, N"),
    ("so long as", "while"),
    ("ill-spelled", "invalid"),
    ("says so", "reports it, returns an error"),
    ("is told", "receives, is notified, gets an error"),
    ("are told", "receive, are notified, get an error"),
    ("lets go of", "releases, drops, closes"),
    ("goes on", "continues"),
    ("looping hot", "in a busy loop"),
    ("in the hand", "in flight"),
    ("who wants", "a caller that needs"),
    ("nobody's", "no one's: name the owner"),
    ("tap on the shoulder", "notification"),
];

/// Files whose words are data, or that name the phrases.
const EXCEPTIONS: &[&str] = &["tests/it/house_rules/", "schemas/", "tests/data/", "LICENSE"];

#[test]
fn comments_and_documents_are_plain_english() {
    let mut findings = Vec::new();
    for file in files() {
        if EXCEPTIONS.iter().any(|prefix| file.path.starts_with(prefix)) {
            continue;
        }
        for (number, text) in prose(&file) {
            let begins = |word: &&&str| {
                text.strip_prefix(**word)
                    .is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric()))
            };
            if let Some(word) = OPENINGS.iter().find(begins) {
                findings.push(format!("{}:{number}: begins with {word:?}: name the subject", file.path));
            }
            let lower = text.to_lowercase();
            for (phrase, instead) in PHRASES.iter().filter(|(phrase, _)| lower.contains(phrase)) {
                findings.push(format!("{}:{number}: {phrase:?}, better: {instead}", file.path));
            }
        }
    }
    assert_none("not plain English:", findings);
}

/// Comment lines of sources and all lines of documents, without their marks, with their numbers.
fn prose(file: &SourceFile) -> Vec<(usize, &str)> {
    let marks: &[&str] = match file.path.rsplit_once('.').map(|(_, ending)| ending) {
        Some("rs" | "ts" | "js") => &["//!", "///", "//"],
        Some("lua") => &["--"],
        Some("sh" | "toml" | "yml" | "yaml") => &["#"],
        Some("md") => &[""],
        _ => return Vec::new(),
    };
    let mut all = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        let line = line.trim_start();
        if let Some(mark) = marks.iter().find(|mark| line.starts_with(**mark)) {
            all.push((number + 1, line[mark.len()..].trim_start()));
        } else if let Some((_, comment)) = line.split_once(" // ").filter(|_| file.path.ends_with(".rs")) {
            all.push((number + 1, comment));
        }
    }
    all
}
