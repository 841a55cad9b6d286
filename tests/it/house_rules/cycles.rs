//! Checks that the imports between the files of a crate run one way: a file never uses, directly or through others,
//! a file that uses it.
//!
//! An edge leads from a file to the file that *defines* an item which its code names in a `use` or in a path that
//! begins with `crate`, `self`, `super` or a module in scope. Re-exports are followed; one that its own file does not
//! use is no edge, and neither is a `mod` declaration. Test code does not count.
//!
//! An `impl` block in another file than its type gives an edge from that file to the type's. Two kinds of use cannot
//! be seen, because they name no path: calls of methods, and of macros by their textual scope.

use super::code::{Crate, crates, modules};
use super::graph::Graph;
use super::{SourceFile, assert_none};
use std::collections::{BTreeMap, BTreeSet};

/// Cycles that must stay, each with its reason: the files, relative to `crates/`.
const ALLOWED: &[(&[&str], &str)] = &[];

#[test]
fn imports_within_a_crate_run_one_way() {
    let allowed: BTreeSet<BTreeSet<String>> = ALLOWED
        .iter()
        .map(|(files, _)| files.iter().map(|file| format!("crates/{file}")).collect())
        .collect();
    let mut findings = Vec::new();
    let mut found = BTreeSet::new();
    for graph in graphs() {
        for cycle in graph.cycles() {
            if !allowed.contains(&cycle) {
                findings.push(describe(&graph, &cycle));
            }
            found.insert(cycle);
        }
    }
    for cycle in allowed.difference(&found) {
        findings
            .push(format!("ALLOWED names a cycle that is no longer there, or has other files: {cycle:?}"));
    }
    assert_none("import cycles: move what both sides need to a file below them:", findings);
}

/// Builds the graph of each crate.
fn graphs() -> Vec<Graph> {
    let mut all: BTreeMap<&str, Graph> = BTreeMap::new();
    for Crate { folder, modules } in crates() {
        all.entry(folder).or_default().add(&folder.replace('-', "_"), modules);
    }
    all.into_values().collect()
}

/// Names the files of a cycle and the edges between them.
fn describe(graph: &Graph, cycle: &BTreeSet<String>) -> String {
    let mut text = format!("{} files:", cycle.len());
    for from in cycle {
        for (to, paths) in graph.from(from).filter(|(to, _)| cycle.contains(*to)) {
            let paths: Vec<_> = paths.iter().map(String::as_str).collect();
            text += &format!("\n    {from} -> {to}: {}", paths.join(", "));
        }
    }
    text
}

#[test]
fn a_cycle_is_found_in_every_form_of_import() {
    let through = |first: &str, second: &str| {
        [("lib", "mod a; mod b; mod c;"), ("a", first), ("b", second), ("c", "")].map(own)
    };
    for (first, second) in [
        ("use crate::b::B; fn a() {}", "use super::a::a; struct B;"),
        ("fn a() { crate::b::b(); }", "fn b() { super::a::a() }"),
        ("use crate::b; fn a() { b::b() }", "fn b() { vec![crate::a::a()] }"),
        ("use super::{b::{B as C}, c}; fn a() {}", "struct B; impl crate::a::A for B {}"),
        ("fn a() { use super::b::*; }", "use crate::a::a;"),
    ] {
        assert_eq!(cycles_of(&through(first, second)), ["a b"], "not found: {first} {second}");
    }
    for (first, second) in [
        ("use crate::b::B;", "use std::a; struct B;"),
        ("#[cfg(test)] use crate::b::B;", "use crate::a::A;"),
        ("use crate::b::B;", "struct B; #[cfg(test)] mod tests { use crate::a::A; }"),
        ("fn a(&self) { self.b::<u8>() }", "use crate::a::a; fn b() {}"),
        ("/// See [`crate::b`].\nfn a() {}", "use crate::a::a;"),
    ] {
        assert_eq!(cycles_of(&through(first, second)), [""; 0], "wrongly found: {first} {second}");
    }
}

#[test]
fn an_edge_leads_to_the_defining_file() {
    let child = "use super::{Parent, Lower}; struct Child;";
    let uses = [("lib", "mod a; pub use a::Child; struct Parent; fn f(_: Child) {}"), ("a", child)].map(own);
    assert_eq!(cycles_of(&uses), ["a lib"], "the parent uses the child, which uses the parent");
    let passes = [("lib", "mod a; pub use a::Child; struct Parent;"), ("a", child)].map(own);
    assert_eq!(cycles_of(&passes), [""; 0], "a re-export alone is no use");
    let lower = [
        ("lib", "mod a; mod b; pub use a::Child; pub use b::Lower; fn f(_: Child) {}"),
        ("a", "use super::Lower;"),
        ("b", "pub struct Lower;"),
    ]
    .map(own);
    assert_eq!(cycles_of(&lower), [""; 0], "the name is defined below both");
}

fn own((name, text): (&str, &str)) -> SourceFile {
    SourceFile { path: format!("src/{name}.rs"), text: text.to_owned() }
}

/// Returns the cycles of a crate with these files, as lists of their names.
fn cycles_of(files: &[SourceFile]) -> Vec<String> {
    let by_path = files.iter().map(|file| (file.path.as_str(), file)).collect();
    let mut graph = Graph::default();
    graph.add("sample", &modules(&by_path, "src/lib.rs"));
    let short = |file: &String| file.trim_start_matches("src/").trim_end_matches(".rs").to_owned();
    let joined = |cycle: &BTreeSet<String>| cycle.iter().map(short).collect::<Vec<_>>().join(" ");
    graph.cycles().iter().map(joined).collect()
}
