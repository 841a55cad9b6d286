//! Checks that no type of a broker's client crate is in a public signature: an upgrade of one must never
//! affect our users.

use super::{assert_none, rust_files};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use std::collections::BTreeSet;
use syn::{ImplItem, Item, TraitItem, UseTree, Visibility};

/// The client crates, by their names in code.
const BROKER_CRATES: &[&str] = &["async_nats", "lapin", "redis"];

/// The start of the folders of the transports' crates.
const TRANSPORTS: &str = "crates/transport-";

#[test]
fn no_broker_type_is_in_a_public_signature() {
    let mut findings = Vec::new();
    for file in
        rust_files().iter().filter(|file| file.path.contains("/src/") && !file.path.starts_with("ops/"))
    {
        let leaks = leaks(&file.text).unwrap_or_else(|error| panic!("{}: {error}", file.path));
        findings.extend(leaks.into_iter().map(|leak| format!("{}: {leak}", file.path)));
    }
    assert_none("types of broker crates in public signatures:", findings);
}

#[test]
fn the_modules_of_a_transport_are_private() {
    let roots: Vec<_> = rust_files()
        .into_iter()
        .filter(|file| file.path.starts_with(TRANSPORTS) && file.path.ends_with("/src/lib.rs"))
        .collect();
    assert!(roots.len() >= 4, "only {} crates begin with {TRANSPORTS}: point this rule at them", roots.len());
    let mut findings = Vec::new();
    for root in roots {
        for item in syn::parse_file(&root.text).expect("it compiles").items {
            if let Item::Mod(module) = item
                && matches!(module.vis, Visibility::Public(_))
                // The page of the options, which has no code.
                && module.content.as_ref().is_none_or(|(_, items)| !items.is_empty())
            {
                findings.push(format!("{}: pub mod {}", root.path, module.ident));
            }
        }
    }
    assert_none("a transport exports its type and its page of options, and no module with code:", findings);
}

#[test]
fn a_leak_is_found_wherever_it_hides() {
    for leaking in [
        "pub fn channel() -> lapin::Channel { todo!() }",
        "use lapin::Channel as Line; pub struct Bus { pub line: Line }",
        "pub struct Bus(pub ::redis::Client);",
        "pub enum Cause { Nats(async_nats::Error) }",
        "pub type Connection = redis::aio::ConnectionManager;",
        "pub use lapin;",
        "pub trait Open { fn open(&self) -> redis::Client; }",
        "impl Bus { pub fn raw(&self) -> &redis::Client { &self.0 } }",
        "impl From<lapin::Error> for Error { fn from(error: lapin::Error) -> Self { todo!() } }",
    ] {
        assert_eq!(leaks(leaking).unwrap().len(), 1, "not found: {leaking}");
    }
    for sealed in [
        "pub struct Bus { line: lapin::Channel }",
        "pub(crate) fn channel() -> lapin::Channel { todo!() }",
        "use redis::Client; fn open() -> Client { todo!() }",
        "impl Bus { fn raw(&self) -> &redis::Client { &self.0 } }",
        "pub(super) struct Id; impl redis::ToRedisArgs for Id {}",
        "pub fn scheme() -> &'static str { \"redis://\" }",
        "mod redis; pub fn open() { redis::open() }",
        "pub use transport_redis::docs as redis;",
    ] {
        assert_eq!(leaks(sealed).unwrap(), Vec::<String>::new(), "wrongly found: {sealed}");
    }
}

/// Returns the public signatures of a file that name a broker's type, directly or through a `use` in the same
/// file.
fn leaks(source: &str) -> syn::Result<Vec<String>> {
    let file = syn::parse_file(source)?;
    // One of our modules may have a broker's name (`mod redis;`): inside such a file the bare name is that
    // module.
    let ours: BTreeSet<String> = file
        .items
        .iter()
        .filter_map(|item| if let Item::Mod(module) = item { Some(module.ident.to_string()) } else { None })
        .collect();
    let mut foreign: BTreeSet<String> =
        BROKER_CRATES.iter().map(|name| name.to_string()).filter(|name| !ours.contains(name)).collect();
    for item in &file.items {
        if let Item::Use(item) = item {
            imports(&item.tree, false, &foreign.clone(), &mut foreign);
        }
    }
    let mut found = Vec::new();
    public_signatures(&file.items, &mut |signature| {
        if names(signature.clone()).iter().any(|name| foreign.contains(name)) {
            found.push(signature.to_string());
        }
    });
    Ok(found)
}

/// Adds the names that a `use` of a broker crate imports into the file.
fn imports(tree: &UseTree, inside: bool, crates: &BTreeSet<String>, names: &mut BTreeSet<String>) {
    match tree {
        UseTree::Path(path) => {
            let inside = inside || crates.contains(&path.ident.to_string());
            imports(&path.tree, inside, crates, names);
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| imports(tree, inside, crates, names)),
        UseTree::Name(name) if inside => drop(names.insert(name.ident.to_string())),
        UseTree::Rename(name) if inside => drop(names.insert(name.rename.to_string())),
        _ => {}
    }
}

/// Returns the paths of a `use` without the names that it gives them: our module may be exported as `redis`.
fn imported(tree: &UseTree) -> TokenStream {
    match tree {
        UseTree::Path(path) => path.ident.to_token_stream().into_iter().chain(imported(&path.tree)).collect(),
        UseTree::Group(group) => group.items.iter().flat_map(imported).collect(),
        UseTree::Rename(name) => name.ident.to_token_stream(),
        UseTree::Name(_) | UseTree::Glob(_) => tree.to_token_stream(),
    }
}

/// Calls `see` with each signature that code outside the crate could reach, without bodies and private parts.
fn public_signatures(items: &[Item], see: &mut dyn FnMut(TokenStream)) {
    let public = |visibility: &Visibility| matches!(visibility, Visibility::Public(_));
    let fields = |fields: &syn::Fields, all: bool, see: &mut dyn FnMut(TokenStream)| {
        fields
            .iter()
            .filter(|field| all || public(&field.vis))
            .for_each(|field| see(field.ty.to_token_stream()));
    };
    let private: Vec<_> = items
        .iter()
        .filter_map(|item| match item {
            Item::Struct(item) if !public(&item.vis) => Some(&item.ident),
            Item::Enum(item) if !public(&item.vis) => Some(&item.ident),
            _ => None,
        })
        .collect();
    for item in items {
        match item {
            Item::Fn(item) if public(&item.vis) => see(item.sig.to_token_stream()),
            Item::Type(item) if public(&item.vis) => see(item.to_token_stream()),
            Item::Const(item) if public(&item.vis) => see(item.ty.to_token_stream()),
            Item::Static(item) if public(&item.vis) => see(item.ty.to_token_stream()),
            Item::Use(item) if public(&item.vis) => see(imported(&item.tree)),
            Item::Struct(item) if public(&item.vis) => {
                see(item.generics.to_token_stream());
                fields(&item.fields, false, see);
            }
            Item::Enum(item) if public(&item.vis) => {
                item.variants.iter().for_each(|variant| fields(&variant.fields, true, see));
            }
            Item::Trait(item) if public(&item.vis) => {
                for part in &item.items {
                    match part {
                        TraitItem::Fn(function) => see(function.sig.to_token_stream()),
                        other => see(other.to_token_stream()),
                    }
                }
            }
            // The header of a trait implementation is public when both sides are public; its methods only
            // repeat the trait's.
            Item::Impl(item) => match &item.trait_ {
                // Code outside cannot name a private type of this file.
                Some(_) if private.iter().any(|name| is(&item.self_ty, name)) => {}
                Some((_, path, _)) => see(path.to_token_stream()),
                None => {
                    for part in &item.items {
                        match part {
                            ImplItem::Fn(function) if public(&function.vis) => {
                                see(function.sig.to_token_stream())
                            }
                            ImplItem::Const(constant) if public(&constant.vis) => {
                                see(constant.ty.to_token_stream())
                            }
                            _ => {}
                        }
                    }
                }
            },
            Item::Mod(item) if public(&item.vis) => {
                if let Some((_, items)) = &item.content {
                    public_signatures(items, see);
                }
            }
            _ => {}
        }
    }
}

/// Returns whether this is the type with that name, with any parameters.
fn is(ty: &syn::Type, name: &syn::Ident) -> bool {
    matches!(ty, syn::Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == *name))
}

/// Returns every identifier in `tokens`, groups included.
fn names(tokens: TokenStream) -> Vec<String> {
    tokens
        .into_iter()
        .flat_map(|token| match token {
            TokenTree::Ident(ident) => vec![ident.to_string()],
            TokenTree::Group(group) => names(group.stream()),
            _ => Vec::new(),
        })
        .collect()
}
