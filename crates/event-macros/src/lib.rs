//! Derive macros: Event, Request and task.

use proc_macro::TokenStream;

mod debug_handler;
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
/// `idempotent` (repeating the request is harmless, so layers may send it again), and `stream` (the answer is a
/// stream of chunks of the reply's type).
#[proc_macro_derive(Request, attributes(request))]
pub fn request(input: TokenStream) -> TokenStream {
    request::derive(syn::parse_macro_input!(input)).unwrap_or_else(|error| error.to_compile_error()).into()
}

/// Explains at compile time why an async function is not accepted as a handler; it changes nothing else.
///
/// `no method named `keyed` found` on an async function usually means that its future is not `Send`: it keeps a value
/// such as an `Rc` or a lock guard across an `.await`. With this attribute the compiler names the value and the
/// `.await`. Release builds ignore it.
#[proc_macro_attribute]
pub fn debug_handler(_attribute: TokenStream, item: TokenStream) -> TokenStream {
    debug_handler::expand(item.into()).into()
}

/// Turns an async function into a task kind of the same name; see `task_queue` for the calls and the execution of
/// tasks.
#[proc_macro_attribute]
pub fn task(attribute: TokenStream, item: TokenStream) -> TokenStream {
    task::expand(attribute.into(), item.into()).into()
}
