//! Derive macros: Event, Request and task.

use proc_macro::TokenStream;

mod event;
mod request;
mod task;

/// Implements `event_client::Event`.
///
/// `#[event(name = "orders.placed", version = 1)]`, and optionally `key = field`, `upcast_from = OlderType`
/// (with `impl From<OlderType>`), `since = N` when versions before N no longer exist.
#[proc_macro_derive(Event, attributes(event))]
pub fn event(input: TokenStream) -> TokenStream {
    event::derive(syn::parse_macro_input!(input)).unwrap_or_else(|error| error.to_compile_error()).into()
}

/// Implements `event_client::Request`.
///
/// `#[request(name = "pricing.get-quote", reply = Quote)]`, and optionally `error = QuoteError`, `version = 1`,
/// `idempotent` (asking twice is harmless, so layers may repeat it), and `stream` (the answer comes in chunks of
/// the reply's type).
#[proc_macro_derive(Request, attributes(request))]
pub fn request(input: TokenStream) -> TokenStream {
    request::derive(syn::parse_macro_input!(input)).unwrap_or_else(|error| error.to_compile_error()).into()
}

/// Turns an async function into a task kind of the same name; see `task_queue` for how tasks are called and run.
#[proc_macro_attribute]
pub fn task(attribute: TokenStream, item: TokenStream) -> TokenStream {
    task::expand(attribute.into(), item.into()).into()
}
