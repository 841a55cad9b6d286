//! Expands `#[derive(Event)]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{DeriveInput, Error, Ident, LitInt, LitStr, Path, Result};

pub(crate) fn derive(input: DeriveInput) -> Result<TokenStream> {
    let mut name: Option<LitStr> = None;
    let mut version: Option<LitInt> = None;
    let mut key: Option<Ident> = None;
    let mut from: Option<Path> = None;
    let mut since: Option<LitInt> = None;
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("event")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("name") {
                name = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("version") {
                version = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("key") {
                key = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("upcast_from") {
                from = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("since") {
                since = Some(meta.value()?.parse()?);
            } else {
                return Err(
                    meta.error("unknown option; an event takes name, version, key, upcast_from and since")
                );
            }
            Ok(())
        })?;
    }
    let ident = &input.ident;
    let Some(name) = name else {
        return Err(Error::new_spanned(
            ident,
            "an event needs a name: #[event(name = \"orders.placed\", version = 1)]",
        ));
    };
    let Some(version) = version else {
        return Err(Error::new_spanned(
            ident,
            "an event needs a version: #[event(name = \"orders.placed\", version = 1)]",
        ));
    };
    check_name(&name, 2)?;
    let number: u32 = version.base10_parse()?;
    if number == 0 {
        return Err(Error::new(version.span(), "versions count from 1"));
    }
    let since = match since {
        Some(since) => since.base10_parse::<u32>()?,
        None => 1,
    };
    let subject = format!("{}.v{number}", name.value());
    let key = key.map(|field| {
        quote! {
            fn key(&self) -> ::core::option::Option<::event_client::__private::SmolStr> {
                ::core::option::Option::Some(::event_client::__private::key(&self.#field))
            }
        }
    });
    let (older, upcast) = match &from {
        Some(from) => (
            quote!(lineage.extend(<#from as ::event_client::Event>::lineage());),
            quote!(<#from as ::event_client::Event>::decode(version, envelope).map(::core::convert::Into::into)),
        ),
        None => (
            quote!(),
            quote!(::core::result::Result::Err(::event_client::__private::unknown_version(#name, version))),
        ),
    };
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    Ok(quote! {
        impl #generics ::event_client::Event for #ident #arguments #bounds {
            const NAME: &'static str = #name;
            const VERSION: u32 = #number;
            const SUBJECT: &'static str = #subject;
            #key
            fn lineage() -> ::std::vec::Vec<::event_client::event::Version> {
                #[allow(unused_mut)]
                let mut lineage = ::std::vec![::event_client::event::Version {
                    name: #name, number: #number, subject: #subject, since: #since,
                }];
                #older
                lineage
            }
            fn decode(version: u32, envelope: &::event_client::envelope::Envelope) -> ::event_client::Result<Self> {
                if version == #number { envelope.decode() } else { #upcast }
            }
        }
    })
}

/// Checks a name at compile time, by the rule of `event_client::subject`.
pub(crate) fn check_name(name: &LitStr, least: usize) -> Result<()> {
    let text = name.value();
    let tokens: Vec<_> = text.split('.').collect();
    let fine = |token: &&str| {
        !token.is_empty() && token.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
    };
    if tokens.len() < least || tokens.len() > 7 || text.len() > 180 || !tokens.iter().all(fine) {
        let rule =
            format!("a name has {least} to 7 dot-separated tokens of a-z 0-9 _ -, such as \"orders.placed\"");
        return Err(Error::new(name.span(), rule));
    }
    Ok(())
}
