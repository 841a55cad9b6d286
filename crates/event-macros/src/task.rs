//! Expands `#[task]`: turns an async function into a task kind of the same name.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Attribute, Error, Expr, ExprLit, FnArg, Ident, ItemFn, Lit, LitInt, LitStr, Pat, PatType, Path, Result,
    ReturnType, Type, parse::Parser, spanned::Spanned,
};

/// The options in the brackets of `#[task(...)]`.
struct Options {
    name: Option<LitStr>,
    root: TokenStream,
    /// `field: value` pairs of `TaskOptions`.
    fields: Vec<TokenStream>,
    backoff: (Option<TokenStream>, Option<TokenStream>),
}

pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> TokenStream {
    match syn::parse2::<ItemFn>(item.clone()).and_then(|function| expand_function(attribute, function)) {
        Ok(tokens) => tokens,
        Err(error) => error.into_compile_error(),
    }
}

fn expand_function(attribute: TokenStream, function: ItemFn) -> Result<TokenStream> {
    let options = parse_options(attribute)?;
    let signature = &function.sig;
    if signature.asyncness.is_none() {
        return Err(Error::new(signature.fn_token.span(), "a task is an `async fn`"));
    }
    if !signature.generics.params.is_empty() {
        let text = "a task has no type or lifetime parameters: it is stored and run by name";
        return Err(Error::new(signature.generics.span(), text));
    }
    let ReturnType::Type(_, returned) = &signature.output else {
        return Err(Error::new(signature.paren_token.span.close(), "a task returns `Result<T, E>`"));
    };

    let root = &options.root;
    let name = &signature.ident;
    let visibility = &function.vis;
    let (docs, attributes): (Vec<_>, Vec<_>) =
        function.attrs.iter().partition(|attribute| attribute.path().is_ident("doc"));
    let task_name = options.name.as_ref().map_or_else(|| name.to_string(), LitStr::value);
    let fields = &options.fields;
    let backoff = backoff(&options);

    let mut inputs = Vec::new();
    let (mut arguments, mut types, mut parameters) = (Vec::new(), Vec::new(), Vec::new());
    let (mut passed, mut extracted, mut checked) = (Vec::new(), Vec::new(), Vec::new());
    for (index, input) in signature.inputs.iter().enumerate() {
        let FnArg::Typed(input) = input else {
            return Err(Error::new(input.span(), "a task is a plain function, it has no `self`"));
        };
        let (input, marked) = take_mark(input.clone());
        let kind = &input.ty;
        if let Type::Reference(reference) = &**kind {
            return Err(Error::new(
                reference.span(),
                "a task owns its arguments: they are read from the store",
            ));
        }
        if marked || is_extractor(kind) {
            let value = format_ident!("__extracted_{index}");
            extracted.push(quote!(let #value = <#kind as #root::FromTask>::from_task(&__context)?;));
            checked.push(quote!(<#kind as #root::FromTask>::check(__states)?;));
            passed.push(value);
        } else {
            let value = argument_name(&input, index);
            parameters.push(value.to_string().trim_start_matches("r#").to_owned());
            passed.push(value.clone());
            arguments.push(value);
            types.push(kind.clone());
        }
        inputs.push(input);
    }
    let block = &function.block;
    let output = &signature.output;

    Ok(quote! {
        #(#docs)*
        #[allow(non_camel_case_types)]
        #[derive(Debug, Clone, Copy)]
        #visibility struct #name;

        #[allow(dead_code, clippy::too_many_arguments)]
        impl #name {
            /// Enqueues the task with its own options when awaited.
            #visibility fn delay(self, #(#arguments: #types),*) -> #root::Call<Self> {
                #root::Call::new((#(#arguments,)*))
            }

            /// Returns a call that takes options (countdown, eta, queue and more) before it is awaited.
            #visibility fn apply_async(self, args: (#(#types,)*)) -> #root::Call<Self> {
                #root::Call::new(args)
            }

            /// Runs the function itself in the current task, without any store.
            #(#attributes)*
            #visibility async fn call(#(#inputs),*) #output #block
        }

        impl #root::Task for #name {
            const NAME: &'static str = #task_name;
            const PARAMETERS: &'static [&'static str] = &[#(#parameters),*];
            const OPTIONS: #root::TaskOptions =
                #root::TaskOptions { #(#fields,)* #backoff ..#root::TaskOptions::DEFAULT };
            type Args = (#(#types,)*);
            type Output = <#returned as #root::TaskReturn>::Output;

            fn check(__states: &#root::States) -> ::core::result::Result<(), ::std::string::String> {
                let _ = __states;
                #(#checked)*
                ::core::result::Result::Ok(())
            }

            async fn run(
                __context: #root::TaskContext,
                __args: Self::Args,
            ) -> ::core::result::Result<Self::Output, #root::TaskError> {
                let _ = &__context;
                #(#extracted)*
                let (#(#arguments,)*) = __args;
                #root::TaskReturn::into_outcome(Self::call(#(#passed),*).await)
            }
        }
    })
}

/// `State<T>`, `TaskContext` and parameters marked with `#[extract]` come from the run and not from the task's
/// arguments.
fn is_extractor(kind: &Type) -> bool {
    let Type::Path(path) = kind else { return false };
    path.path.segments.last().is_some_and(|last| last.ident == "State" || last.ident == "TaskContext")
}

fn take_mark(mut input: PatType) -> (PatType, bool) {
    let before = input.attrs.len();
    input.attrs.retain(|attribute: &Attribute| !attribute.path().is_ident("extract"));
    let marked = input.attrs.len() < before;
    (input, marked)
}

fn argument_name(input: &PatType, index: usize) -> Ident {
    match &*input.pat {
        Pat::Ident(pattern) => {
            let name = pattern.ident.to_string();
            Ident::new(name.trim_start_matches('_'), pattern.ident.span())
        }
        _ => format_ident!("arg{index}"),
    }
}

fn backoff(options: &Options) -> TokenStream {
    let root = &options.root;
    let (base, max) = &options.backoff;
    if base.is_none() && max.is_none() {
        return TokenStream::new();
    }
    let default = quote!(#root::Backoff::DEFAULT);
    let base = base.clone().unwrap_or_else(|| quote!(#default.base));
    let max = max.clone().unwrap_or_else(|| quote!(#default.max));
    quote!(backoff: #root::Backoff { base: #base, max: #max },)
}

const KNOWN: &str =
    "name, queue, retries, backoff, backoff_max, timeout, priority, crashes, unique, expires, result_ttl";

fn parse_options(attribute: TokenStream) -> Result<Options> {
    let mut options =
        Options { name: None, root: quote!(::task_queue), fields: Vec::new(), backoff: (None, None) };
    let parser = syn::meta::parser(|meta| {
        let Some(key) = meta.path.get_ident().cloned() else {
            return Err(meta.error(format!("unknown option; known are {KNOWN}")));
        };
        match key.to_string().as_str() {
            "name" => options.name = Some(non_empty(meta.value()?.parse()?)?),
            "queue" => {
                let queue = non_empty(meta.value()?.parse()?)?;
                options.fields.push(quote!(queue: #queue));
            }
            "retries" | "crashes" => {
                let number: LitInt = meta.value()?.parse()?;
                let value: u32 = number
                    .base10_parse()
                    .map_err(|_| Error::new(number.span(), "expected a whole number, 0 or more"))?;
                options.fields.push(quote!(#key: #value));
            }
            "priority" => {
                let value: Expr = meta.value()?.parse()?;
                options.fields.push(quote!(priority: #value));
            }
            "unique" => options.fields.push(quote!(unique: true)),
            "timeout" | "expires" => {
                let value = duration(meta.value()?.parse()?)?;
                options.fields.push(quote!(#key: ::core::option::Option::Some(#value)));
            }
            "result_ttl" => {
                let value = duration(meta.value()?.parse()?)?;
                options.fields.push(quote!(result_ttl: #value));
            }
            "backoff" => options.backoff.0 = Some(duration(meta.value()?.parse()?)?),
            "backoff_max" => options.backoff.1 = Some(duration(meta.value()?.parse()?)?),
            "crate" => {
                let path: Path = meta.value()?.parse::<LitStr>()?.parse()?;
                options.root = quote!(#path);
            }
            _ => return Err(meta.error(format!("unknown option `{key}`; known are {KNOWN}"))),
        }
        Ok(())
    });
    parser.parse2(attribute)?;
    Ok(options)
}

fn non_empty(text: LitStr) -> Result<LitStr> {
    if text.value().trim().is_empty() {
        Err(Error::new(text.span(), "expected a name, not an empty text"))
    } else {
        Ok(text)
    }
}

/// Parses a length of time written as `"30s"`, `"500ms"`, `"5m"`, `"2h"` or `"1d"`, at compile time.
fn duration(value: Expr) -> Result<TokenStream> {
    let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &value else {
        let text = "expected a length of time in quotes, such as \"30s\" or \"500ms\"";
        return Err(Error::new(value.span(), text));
    };
    let millis = parse_millis(&text.value()).ok_or_else(|| {
        Error::new(text.span(), "not a length of time: write \"500ms\", \"30s\", \"5m\", \"2h\" or \"1d\"")
    })?;
    Ok(quote!(::core::time::Duration::from_millis(#millis)))
}

fn parse_millis(text: &str) -> Option<u64> {
    let split = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let unit = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the error that the compiler would show, or an empty text.
    fn error(attribute: TokenStream, item: TokenStream) -> String {
        let made = expand(attribute, item).to_string();
        made.split_once("compile_error !").map(|(_, text)| text.to_owned()).unwrap_or_default()
    }

    #[test]
    fn a_good_function_becomes_a_task_of_its_name() {
        let made = expand(
            quote!(queue = "email", retries = 5, backoff = "2s", timeout = "30s", priority = -3, unique),
            quote! {
                /// Sends it.
                pub(crate) async fn send(State(mail): State<Mail>, _order: u64, #[extract] who: Who, mut to: String) -> Result<(), E> {}
            },
        )
        .to_string();
        assert!(!made.contains("compile_error"), "{made}");
        for part in [
            "pub (crate) struct send ;",
            "const NAME : & 'static str = \"send\" ;",
            "& [\"order\" , \"to\"]",
            "type Args = (u64 , String ,) ;",
            "retries : 5u32",
            "priority : - 3",
            "unique : true",
            "from_millis (30000u64)",
        ] {
            assert!(made.contains(part), "{part} in {made}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let good = quote!(
            async fn f() -> Result<(), E> {}
        );
        for (attribute, item, said) in [
            (
                quote!(),
                quote!(
                    fn f() -> Result<(), E> {}
                ),
                "a task is an `async fn`",
            ),
            (
                quote!(),
                quote!(
                    async fn f() {}
                ),
                "a task returns `Result<T, E>`",
            ),
            (
                quote!(),
                quote!(
                    async fn f<T>(t: T) -> Result<(), E> {}
                ),
                "no type or lifetime parameters",
            ),
            (
                quote!(),
                quote!(
                    async fn f(t: &str) -> Result<(), E> {}
                ),
                "owns its arguments",
            ),
            (
                quote!(),
                quote!(
                    async fn f(&self) -> Result<(), E> {}
                ),
                "no `self`",
            ),
            (
                quote!(),
                quote!(
                    struct F;
                ),
                "expected",
            ),
            (quote!(retry = 3), good.clone(), "unknown option `retry`; known are name, queue, retries"),
            (quote!(timeout = 30), good.clone(), "in quotes"),
            (quote!(timeout = "30 parsecs"), good.clone(), "not a length of time"),
            (quote!(retries = -1), good.clone(), "a whole number, 0 or more"),
            (quote!(queue = ""), good.clone(), "not an empty text"),
        ] {
            let shown = error(attribute, item);
            assert!(shown.contains(said), "{said} in {shown}");
        }
        assert_eq!(error(quote!(), good), "");
    }

    #[test]
    fn lengths_of_time() {
        assert_eq!(parse_millis("500ms"), Some(500));
        assert_eq!(parse_millis("30s"), Some(30_000));
        assert_eq!(parse_millis("1 d"), Some(86_400_000));
        for bad in ["", "s", "30", "-1s", "1 fortnight", "99999999999999999999d"] {
            assert_eq!(parse_millis(bad), None, "{bad}");
        }
    }
}
