//! Reads the modules of the crates without their test code: their files, the names that they define and import, and
//! the paths that their code mentions.

use super::tokens::{Mentions, is_test, mentions};
use super::{SourceFile, rust_files};
use quote::ToTokens;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use syn::{Item, ItemUse, UseTree, Visibility};

/// A path in code, such as `super`, `queue`, `Queue`.
pub(super) type Path = Vec<String>;

/// A module that the compiler builds outside tests, whether in a file of its own or inside another file.
#[derive(Debug, Default)]
pub(super) struct Module {
    /// The names of the modules around it and its own, from the root of the crate. Empty for the root.
    pub(super) path: Path,
    /// The file that holds the module's code.
    pub(super) file: String,
    /// The meanings of each name in this module's scope. One name can denote a module and a function.
    pub(super) names: BTreeMap<String, Vec<Meaning>>,
    /// The paths of imports that end in `*`.
    pub(super) globs: Vec<Path>,
    pub(super) imports: Vec<Import>,
    /// The paths of two or more segments in the module's code.
    pub(super) paths: BTreeSet<Path>,
    /// Each name that begins a path, or stands alone, in the module's code.
    pub(super) mentioned: BTreeSet<String>,
    /// The structs of the module with the number of their fields.
    pub(super) structs: Vec<(String, usize)>,
}

/// The meaning of a name in a module's scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A type, a function or another item that the module defines.
    Item,
    /// A module below this one.
    Module,
    /// An import of this path.
    Import(Path),
}

/// One leaf of a `use`.
#[derive(Debug)]
pub(super) struct Import {
    /// The name that it adds to the scope; none for `*` and `_`.
    pub(super) name: Option<String>,
    pub(super) path: Path,
    /// Whether other modules may use the name through this one.
    pub(super) reexport: bool,
}

/// The modules below one root file of a crate: a library or a program.
#[derive(Debug)]
pub(super) struct Crate {
    /// The folder of the crate below `crates/`.
    pub(super) folder: String,
    pub(super) modules: Vec<Module>,
}

/// Returns all crates of the workspace. The files are read once.
pub(super) fn crates() -> &'static [Crate] {
    static CRATES: LazyLock<Vec<Crate>> = LazyLock::new(|| {
        let files = rust_files();
        let files: BTreeMap<&str, &SourceFile> =
            files.iter().map(|file| (file.path.as_str(), file)).collect();
        let crates: Vec<_> = files.keys().filter_map(|path| read_crate(&files, path)).collect();
        assert!(crates.len() > 10, "only {} crates found: the walk is broken", crates.len());
        crates
    });
    &CRATES
}

/// Reads a crate if `path` is a root file.
fn read_crate(files: &BTreeMap<&str, &SourceFile>, path: &str) -> Option<Crate> {
    let (folder, file) = path.strip_prefix("crates/")?.split_once("/src/")?;
    let is_program = file.strip_prefix("bin/").is_some_and(|file| !file.contains('/'));
    (is_program || matches!(file, "lib.rs" | "main.rs"))
        .then(|| Crate { folder: folder.to_owned(), modules: modules(files, path) })
}

/// Reads the modules of the crate whose root file is `root`.
pub(super) fn modules(files: &BTreeMap<&str, &SourceFile>, root: &str) -> Vec<Module> {
    let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
    let mut found = Vec::new();
    read_file(files, root, folder, Path::new(), &mut found);
    found
}

/// Reads a file; `folder` is the folder of the modules that it declares.
fn read_file(
    files: &BTreeMap<&str, &SourceFile>,
    file: &str,
    folder: String,
    path: Path,
    found: &mut Vec<Module>,
) {
    let text = &files[file].text;
    let parsed = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
    if !is_test(&parsed.attrs) {
        read_items(files, parsed.items, Place { file, folder, path }, found);
    }
}

/// The place of a module: its file, the folder of the modules that it declares, and its path.
struct Place<'a> {
    file: &'a str,
    folder: String,
    path: Path,
}

fn read_items(
    files: &BTreeMap<&str, &SourceFile>,
    items: Vec<Item>,
    place: Place<'_>,
    found: &mut Vec<Module>,
) {
    let mut module = Module { path: place.path.clone(), file: place.file.to_owned(), ..Module::default() };
    for item in items {
        if is_test(attributes(&item)) {
            continue;
        }
        match item {
            Item::Mod(child) => {
                let name = child.ident.to_string();
                module.define(&name, Meaning::Module);
                let path: Path = place.path.iter().cloned().chain([name.clone()]).collect();
                let folder = format!("{}/{name}", place.folder);
                match child.content {
                    Some((_, items)) => {
                        read_items(files, items, Place { file: place.file, folder, path }, found);
                    }
                    None => {
                        let candidates = [format!("{folder}.rs"), format!("{folder}/mod.rs")];
                        let file = candidates.iter().find(|file| files.contains_key(file.as_str()));
                        let file = file.unwrap_or_else(|| panic!("{}: no file for `mod {name}`", place.file));
                        read_file(files, file, folder, path, found);
                    }
                }
            }
            Item::Use(item) => module.import(&item),
            item => module.add(&item),
        }
    }
    found.push(module);
}

impl Module {
    fn define(&mut self, name: &str, meaning: Meaning) {
        let meanings = self.names.entry(name.to_owned()).or_default();
        if !meanings.contains(&meaning) {
            meanings.push(meaning);
        }
    }

    fn add(&mut self, item: &Item) {
        if let Some(name) = name(item) {
            self.define(&name, Meaning::Item);
        }
        if let Item::Struct(item) = item {
            self.structs.push((item.ident.to_string(), item.fields.len()));
        }
        let Mentions { paths, names, uses } = mentions(item.to_token_stream());
        self.paths.extend(paths);
        self.mentioned.extend(names);
        uses.iter().for_each(|item| self.import(item));
    }

    fn import(&mut self, item: &ItemUse) {
        if item.leading_colon.is_none() {
            let reexport = !matches!(item.vis, Visibility::Inherited);
            self.import_tree(&item.tree, Path::new(), reexport);
        }
    }

    fn import_tree(&mut self, tree: &UseTree, before: Path, reexport: bool) {
        let joined = |name: &syn::Ident| -> Path { before.iter().cloned().chain([text(name)]).collect() };
        let (name, path) = match tree {
            UseTree::Path(path) => return self.import_tree(&path.tree, joined(&path.ident), reexport),
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.import_tree(tree, before.clone(), reexport));
            }
            UseTree::Name(name) if name.ident == "self" => (before.last().cloned(), before),
            UseTree::Name(name) => (Some(text(&name.ident)), joined(&name.ident)),
            UseTree::Rename(name) => {
                let path = if name.ident == "self" { before } else { joined(&name.ident) };
                (Some(text(&name.rename)).filter(|name| name != "_"), path)
            }
            UseTree::Glob(_) => {
                self.globs.push(before.clone());
                (None, before)
            }
        };
        if let Some(name) = &name {
            self.define(name, Meaning::Import(path.clone()));
        }
        self.imports.push(Import { name, path, reexport });
    }
}

/// Returns the text of an identifier without the mark of a raw one.
fn text(ident: &syn::Ident) -> String {
    ident.to_string().trim_start_matches("r#").to_owned()
}

/// Returns the name that an item defines.
fn name(item: &Item) -> Option<String> {
    Some(match item {
        Item::Const(item) => text(&item.ident),
        Item::Enum(item) => text(&item.ident),
        Item::Fn(item) => text(&item.sig.ident),
        Item::Macro(item) => text(item.ident.as_ref()?),
        Item::Static(item) => text(&item.ident),
        Item::Struct(item) => text(&item.ident),
        Item::Trait(item) => text(&item.ident),
        Item::Type(item) => text(&item.ident),
        Item::Union(item) => text(&item.ident),
        _ => return None,
    })
}

fn attributes(item: &Item) -> &[syn::Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
