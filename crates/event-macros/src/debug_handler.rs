//! `#[debug_handler]`: shows why an async function is no handler.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::{Error, FnArg, ItemFn, spanned::Spanned};

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    let check = syn::parse2::<ItemFn>(item.clone()).and_then(|function| check(&function));
    let check = check.unwrap_or_else(Error::into_compile_error);
    quote!(#item #check)
}

/// A function that is never called, and that compiles only when the handler's future is `Send`.
fn check(function: &ItemFn) -> syn::Result<TokenStream> {
    let signature = &function.sig;
    if signature.asyncness.is_none() {
        return Err(Error::new(signature.fn_token.span(), "a handler is an `async fn`"));
    }
    if !signature.generics.params.is_empty() {
        let text = "`#[debug_handler]` checks functions without type and lifetime parameters only";
        return Err(Error::new(signature.generics.span(), text));
    }
    let mut arguments = Vec::new();
    for input in &signature.inputs {
        let FnArg::Typed(input) = input else {
            return Err(Error::new(input.span(), "a handler is a plain function, it has no `self`"));
        };
        let kind = &input.ty;
        arguments.push(quote_spanned!(kind.span()=> argument::<#kind>()));
    }
    let name = &signature.ident;
    let call = quote_spanned!(name.span()=> is_send(#name(#(#arguments),*)));
    Ok(quote! {
        #[cfg(debug_assertions)]
        const _: () = {
            fn is_send<F: ::core::future::Future + ::core::marker::Send>(_: F) {}
            fn argument<T: ::core::marker::Send + 'static>() -> T {
                ::core::panic!("never called")
            }
            #[allow(dead_code)]
            fn check() {
                #call
            }
        };
    })
}
