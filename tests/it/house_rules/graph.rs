//! The graph of a crate's imports: an edge leads from each file to the files that define the items it uses. Finds the
//! cycles.

use super::code::{Import, Meaning, Module, Path};
use std::collections::{BTreeMap, BTreeSet};

/// The files of one crate, and the edges between them.
#[derive(Debug, Default)]
pub(super) struct Graph(BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

/// The longest chain of re-exports that is followed. A longer one is an import of itself.
const LONGEST_CHAIN: usize = 32;

/// The target of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// An item that this file defines.
    File(String),
    Module(Path),
}

impl Graph {
    /// Adds the edges between the modules of one root file; `crate_name` is its crate's name in code.
    pub(super) fn add(&mut self, crate_name: &str, modules: &[Module]) {
        let scope = Scope {
            crate_name,
            modules: modules.iter().map(|module| (module.path.clone(), module)).collect(),
        };
        for module in modules {
            let imports = module.imports.iter().filter(|import| is_used(import, module));
            for path in imports.map(|import| &import.path).chain(&module.paths) {
                if let Some(Target::File(to)) = scope.resolve(module, path, 0) {
                    self.add_edge(&module.file, to, path);
                }
            }
            // An import of all names is an import from the module that has them.
            for path in &module.globs {
                if let Some(Target::Module(path)) = scope.resolve(module, path, 0) {
                    self.add_edge(&module.file, scope.modules[&path].file.clone(), &path);
                }
            }
        }
    }

    fn add_edge(&mut self, from: &str, to: String, path: &Path) {
        if from != to {
            self.0.entry(from.to_owned()).or_default().entry(to).or_default().insert(path.join("::"));
        }
    }

    /// Returns the edges from `from` with the paths that they stand for.
    pub(super) fn from(&self, from: &str) -> impl Iterator<Item = (&String, &BTreeSet<String>)> {
        self.0.get(from).into_iter().flatten()
    }

    /// Returns the cycles: the largest sets of files in which each file uses each other file, directly or through
    /// others of the set.
    pub(super) fn cycles(&self) -> Vec<BTreeSet<String>> {
        let reached: BTreeMap<&String, BTreeSet<&String>> =
            self.0.keys().map(|file| (file, self.reached(file))).collect();
        let mut cycles = BTreeSet::new();
        for (file, targets) in &reached {
            let back = |other: &&&String| reached.get(*other).is_some_and(|theirs| theirs.contains(file));
            let cycle: BTreeSet<String> = targets.iter().filter(back).map(|file| (*file).clone()).collect();
            if cycle.len() > 1 {
                cycles.insert(cycle);
            }
        }
        cycles.into_iter().collect()
    }

    fn reached<'a>(&'a self, start: &'a String) -> BTreeSet<&'a String> {
        let mut reached = BTreeSet::new();
        let mut open = vec![start];
        while let Some(file) = open.pop() {
            for (next, _) in self.from(file) {
                if reached.insert(next) {
                    open.push(next);
                }
            }
        }
        reached
    }
}

/// Whether the module's own code needs an import. A re-export that the code does not mention serves other modules
/// only. A trait can be needed without a mention of its name, so other imports always count.
fn is_used(import: &Import, module: &Module) -> bool {
    !import.reexport || import.name.as_ref().is_some_and(|name| module.mentioned.contains(name))
}

/// The modules of one crate, in which paths are resolved.
struct Scope<'a> {
    crate_name: &'a str,
    modules: BTreeMap<Path, &'a Module>,
}

impl Scope<'_> {
    /// Follows a path that stands in `module`. Returns none for paths into other crates and for local names.
    fn resolve(&self, module: &Module, path: &[String], depth: usize) -> Option<Target> {
        let (first, rest) = path.split_first()?;
        if depth > LONGEST_CHAIN {
            return None;
        }
        let start = match first.as_str() {
            "crate" => Target::Module(Path::new()),
            "self" => Target::Module(module.path.clone()),
            "super" => Target::Module(module.path.split_last()?.1.to_vec()),
            name => match self.lookup(module, name, !rest.is_empty(), depth) {
                None if name == self.crate_name => Target::Module(Path::new()),
                found => found?,
            },
        };
        let mut at = start;
        for (index, segment) in rest.iter().enumerate() {
            let Target::Module(path) = &at else { return Some(at) };
            let module = self.modules.get(path)?;
            at = match segment.as_str() {
                "self" => continue,
                "super" => Target::Module(path.split_last()?.1.to_vec()),
                name => {
                    let more = index + 1 < rest.len();
                    match self.lookup(module, name, more, depth) {
                        Some(target) => target,
                        // Another crate's item, re-exported here.
                        None if module.names.contains_key(name) => return None,
                        // A macro has defined it.
                        None => return Some(Target::File(module.file.clone())),
                    }
                }
            };
        }
        Some(at)
    }

    /// Looks a name up in a module's scope; `more` tells that a path continues after it, so that a module or a
    /// type is meant, not a function.
    fn lookup(&self, module: &Module, name: &str, more: bool, depth: usize) -> Option<Target> {
        let of = |meaning: &Meaning| match meaning {
            Meaning::Item => Some(Target::File(module.file.clone())),
            Meaning::Module => {
                Some(Target::Module(module.path.iter().cloned().chain([name.to_owned()]).collect()))
            }
            // `use name;` and `use name::{self}` of an own module or of another crate.
            Meaning::Import(path) if path.len() == 1 && path[0] == name => None,
            Meaning::Import(path) => self.resolve(module, path, depth + 1),
        };
        let found: Vec<Target> = module.names.get(name).into_iter().flatten().filter_map(of).collect();
        let is_module = |target: &&Target| matches!(target, Target::Module(_));
        let preferred =
            if more { found.iter().find(is_module) } else { found.iter().find(|it| !is_module(it)) };
        if let Some(target) = preferred.or(found.first()) {
            return Some(target.clone());
        }
        module.globs.iter().find_map(|path| match self.resolve(module, path, depth + 1)? {
            Target::Module(path) => {
                let other = self.modules.get(&path)?;
                other.names.contains_key(name).then(|| self.lookup(other, name, more, depth + 1)).flatten()
            }
            Target::File(_) => None,
        })
    }
}
