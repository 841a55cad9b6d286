//! A function without a payload argument, used as a handler.

use event_client::service::Service;

async fn nothing(_: u32) {}

fn main() {
    let _ = Service::<()>::new("billing").on(nothing);
}

//~ this function is not a handler
//~ a handler is an `async fn` of up to 8 extractors and last a payload
