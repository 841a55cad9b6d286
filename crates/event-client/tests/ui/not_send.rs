//! A handler that keeps an `Rc` across an `.await` is not `Send`.

use std::rc::Rc;

use event_client::service::{Raw, debug_handler};

#[debug_handler]
async fn count(_: Raw) {
    let count = Rc::new(1);
    std::future::ready(()).await;
    drop(count);
}

fn main() {}

//~ future cannot be sent between threads safely
//~ `Rc<i32>`
//~ await occurs here
