//! A function without a batch argument, used as a batch handler.

use std::time::Duration;

use event_client::service::Service;

async fn nothing(_: u32) {}

fn main() {
    let _ = Service::<()>::new("billing").on_batch(nothing, 10, Duration::ZERO);
}

//~ this function is not a batch handler
//~ last a `Batch<T>`
