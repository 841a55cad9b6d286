//! Checks that a struct stands for one concept, by the number of its fields, and that a file is not a mere part of
//! another one, which would import all names of its parent.

use super::assert_none;
use super::code::{Module, crates};
use std::collections::BTreeSet;

/// The maximum number of fields of a struct outside tests.
const MOST: usize = 12;

/// Structs that may have more fields, each with its file below `crates/` and the reason beside it.
const LARGE: &[(&str, &str)] = &[
    // The attributes of a CloudEvent, one field each, as they are stored and sent.
    ("event-client/src/envelope/meta.rs", "Meta"),
    // A log record as it is stored and sent.
    ("event-client/src/log/record.rs", "LogRecord"),
    // Rows of the task store, and the task that a caller hands to it: a field for each column.
    ("task-queue/src/store/record/lease.rs", "Leased"),
    ("task-queue/src/store/record/schedule.rs", "ScheduleRecord"),
    ("task-queue/src/store/record/task.rs", "NewTask"),
    ("task-queue/src/store/record/task.rs", "TaskRecord"),
];

#[test]
fn structs_have_few_fields() {
    let mut found = BTreeSet::new();
    let mut findings = Vec::new();
    for module in all() {
        for (name, fields) in module.structs.iter().filter(|(_, fields)| *fields > MOST) {
            let place = (module.file.trim_start_matches("crates/").to_owned(), name.clone());
            if !LARGE.iter().any(|(file, name)| (*file, *name) == (&*place.0, &*place.1)) {
                findings.push(format!("{}: {name} has {fields} fields, {MOST} allowed", module.file));
            }
            found.insert(place);
        }
    }
    for (file, name) in LARGE {
        if !found.contains(&((*file).to_owned(), (*name).to_owned())) {
            findings.push(format!("LARGE names {name} in {file}, which has no more than {MOST} fields"));
        }
    }
    assert_none("too many fields: group those that belong together into a struct of their own:", findings);
}

#[test]
fn only_tests_import_all_names_of_their_parent() {
    let from_parent = |path: &Vec<String>| path.iter().all(|segment| segment == "super");
    let findings = all().filter(|module| module.globs.iter().any(from_parent));
    assert_none("`use super::*` outside tests:", findings.map(|module| module.file.clone()).collect());
}

fn all() -> impl Iterator<Item = &'static Module> {
    crates().iter().flat_map(|found| &found.modules)
}
