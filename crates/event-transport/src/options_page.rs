//! Checks the page of options of a transport against the parser of its URL, for the tests of the transport.

use std::collections::BTreeSet;

use crate::error::Result;

/// A row of the table of options: the name, and the default where the page states a value.
struct Row {
    name: String,
    default: Option<String>,
}

/// Reads the table below the heading `## Options`.
fn rows(page: &str) -> Vec<Row> {
    let options = page.split("\n## Options\n").nth(1).expect("a heading `## Options`");
    let table = options.split("\n## ").next().unwrap_or(options);
    let quoted = |cell: &str| Some(cell.trim().strip_prefix('`')?.strip_suffix('`')?.to_owned());
    let rows = table.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 4, "option, values, default and meaning: {line}");
        Row { name: quoted(cells[0]).expect("a name"), default: quoted(cells[2]) }
    });
    rows.collect()
}

/// Compares a page with the parser of its transport: the page lists exactly the options that the parser accepts, and
/// the value in the column "Default" has the same effect as no option.
#[track_caller]
pub fn check<T: PartialEq>(page: &str, url: &str, read: impl Fn(&str) -> Result<T>) {
    let error = |option: &str| read(&format!("{url}?{option}")).err().map(|error| error.to_string());
    let refused = error("no_such_option=1").expect("an unknown option is refused");
    let known = refused.split(" takes ").nth(1).expect("the error lists the options");
    let known = known.split_once(" (").map_or(known, |(known, _)| known);
    let known: BTreeSet<_> = known.split(", ").map(str::to_owned).collect();
    let rows = rows(page);
    let listed: BTreeSet<_> = rows.iter().map(|row| row.name.clone()).collect();
    assert_eq!(listed.len(), rows.len(), "an option has two rows");
    assert_eq!(listed, known, "left: options in the page; right: options of the parser");
    let plain = read(url).unwrap_or_else(|error| panic!("{url}: {error}"));
    for Row { name, default } in rows {
        let refused = error(&format!("{name}=!")).unwrap_or_default();
        assert!(!refused.contains("unknown option"), "{refused}");
        let Some(default) = default else { continue };
        match read(&format!("{url}?{name}={default}")) {
            Ok(given) => assert!(given == plain, "`{name}={default}` is not the default"),
            Err(error) => panic!("`{name}={default}`: {error}"),
        }
    }
}
