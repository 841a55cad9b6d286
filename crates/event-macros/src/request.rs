//! Expands `#[derive(Request)]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{DeriveInput, Error, LitInt, LitStr, Result, Type};

pub(crate) fn derive(input: DeriveInput) -> Result<TokenStream> {
    let mut name: Option<LitStr> = None;
    let mut version: Option<LitInt> = None;
    let mut reply: Option<Type> = None;
    let mut error: Option<Type> = None;
    let mut idempotent = false;
    let mut stream = false;
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("request")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("name") {
                name = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("version") {
                version = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("reply") {
                reply = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("error") {
                error = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("idempotent") {
                idempotent = true;
            } else if meta.path.is_ident("stream") {
                stream = true;
            } else {
                return Err(meta.error(
                    "unknown option; a request takes name, reply, error, version, idempotent and stream",
                ));
            }
            Ok(())
        })?;
    }
    let ident = &input.ident;
    let hint = "#[request(name = \"pricing.get-quote\", reply = Quote)]";
    let Some(name) = name else {
        return Err(Error::new_spanned(ident, format!("a request needs a name: {hint}")));
    };
    let Some(reply) = reply else {
        return Err(Error::new_spanned(ident, format!("a request needs the type of its reply: {hint}")));
    };
    crate::event::check_name(&name, 2)?;
    let number = match &version {
        Some(version) => version.base10_parse::<u32>()?,
        None => 1,
    };
    if number == 0 {
        return Err(Error::new_spanned(version, "versions count from 1"));
    }
    let subject = format!("{}.v{number}", name.value());
    let error = match error {
        Some(error) => quote!(#error),
        None => quote!(::event_client::request::NoError),
    };
    let shape = if stream { quote!(Streaming) } else { quote!(Unary) };
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    Ok(quote! {
        impl #generics ::event_client::Request for #ident #arguments #bounds {
            type Reply = #reply;
            type Error = #error;
            type Shape = ::event_client::request::#shape;
            const NAME: &'static str = #name;
            const SUBJECT: &'static str = #subject;
            const IDEMPOTENT: bool = #idempotent;
        }
    })
}
