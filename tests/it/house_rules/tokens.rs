//! Finds the paths and the `use` items in the tokens of an item, the arguments of macros included and test code
//! excluded.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::BTreeSet;
use syn::{Attribute, ItemUse};

/// The paths, names and `use` items in a piece of code.
#[derive(Default)]
pub(super) struct Mentions {
    /// The paths of two or more segments, without those that begin with `::`.
    pub(super) paths: BTreeSet<Vec<String>>,
    /// Each name that begins a path or stands alone. Names after a dot are methods and fields, and no part of it.
    pub(super) names: BTreeSet<String>,
    /// The `use` items inside function bodies.
    pub(super) uses: Vec<ItemUse>,
}

/// Returns whether an item with these attributes is built for tests only.
pub(super) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::List(list) => list.path.is_ident("cfg") && requires_test(list.tokens.clone()),
        syn::Meta::NameValue(_) => false,
    })
}

/// Returns whether a `cfg` condition is `test`, or `all(..)` with `test` in it.
fn requires_test(condition: TokenStream) -> bool {
    let tokens: Vec<_> = condition.into_iter().collect();
    match &tokens[..] {
        [TokenTree::Ident(name)] => name == "test",
        [TokenTree::Ident(all), TokenTree::Group(group)] if all == "all" => {
            group.stream().into_iter().any(|token| matches!(token, TokenTree::Ident(name) if name == "test"))
        }
        _ => false,
    }
}

/// Returns the mentions in `tokens`.
pub(super) fn mentions(tokens: TokenStream) -> Mentions {
    let mut found = Mentions::default();
    collect(tokens, &mut found);
    found
}

fn collect(tokens: TokenStream, found: &mut Mentions) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Group(group) => {
                collect(group.stream(), found);
                at += 1;
            }
            // Attributes of the whole item were judged before; these are inside its body.
            TokenTree::Punct(mark) if mark.as_char() == '#' => at = after_attribute(&tokens, at),
            TokenTree::Ident(word) if word == "use" && at + 1 < tokens.len() => {
                let end = tokens[at..].iter().position(|token| is_punct(token, ';'));
                let end = end.map_or(tokens.len(), |length| at + length + 1);
                // Outside a function body this can be the precise capture `use<'a>` of a type.
                match syn::parse2::<ItemUse>(tokens[at..end].iter().cloned().collect()) {
                    Ok(item) => {
                        found.uses.push(item);
                        at = end;
                    }
                    Err(_) => at += 1,
                }
            }
            TokenTree::Ident(_) => at = path(&tokens, at, found),
            _ => at += 1,
        }
    }
}

/// Reads the path that begins at `at` and returns the index after it.
fn path(tokens: &[TokenTree], at: usize, found: &mut Mentions) -> usize {
    let mut segments = Vec::new();
    let mut next = at;
    while let Some(TokenTree::Ident(name)) = tokens.get(next) {
        segments.push(name.to_string().trim_start_matches("r#").to_owned());
        next += 1;
        if !is_separator(tokens, next) || !matches!(tokens.get(next + 2), Some(TokenTree::Ident(_))) {
            break;
        }
        next += 2;
    }
    let before = |back: usize, mark| at.checked_sub(back).is_some_and(|index| is_punct(&tokens[index], mark));
    // A lifetime, a method or field, and the rest of a path: the type before it was read already.
    let is_part =
        before(1, '\'') || (before(1, '.') && !before(2, '.')) || (before(1, ':') && before(2, ':'));
    if !is_part {
        found.names.insert(segments[0].clone());
        if segments.len() > 1 {
            found.paths.insert(segments);
        }
    }
    next
}

/// Returns the index after the attribute at `at`, and after the code that it excludes from other builds than
/// tests.
fn after_attribute(tokens: &[TokenTree], at: usize) -> usize {
    let Some(TokenTree::Group(group)) = tokens.get(at + 1) else { return at + 1 };
    // Also `#` of a `quote!`, before a repetition.
    if group.delimiter() != Delimiter::Bracket {
        return at + 1;
    }
    let attribute: Vec<_> = group.stream().into_iter().collect();
    let test = match &attribute[..] {
        [TokenTree::Ident(name)] => name == "test",
        [TokenTree::Ident(name), TokenTree::Group(condition)] => {
            name == "cfg" && requires_test(condition.stream())
        }
        _ => false,
    };
    if !test {
        return at + 2;
    }
    let rest = &tokens[at + 2..];
    let is_item = rest.iter().take(4).any(|token| {
        ["fn", "mod", "use", "impl", "struct", "enum", "const", "static", "type", "let"]
            .iter()
            .any(|word| matches!(token, TokenTree::Ident(name) if name == word))
    });
    let end = rest.iter().position(|token| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        token => is_punct(token, ';') || (!is_item && is_punct(token, ',')),
    });
    end.map_or(tokens.len(), |length| at + 2 + length + 1)
}

fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    [at, at + 1].into_iter().all(|index| tokens.get(index).is_some_and(|token| is_punct(token, ':')))
}

fn is_punct(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}
