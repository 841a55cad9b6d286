//! A handler whose return type cannot become an outcome.

fn main() {
    fn needs_outcome<T: event_client::service::IntoOutcome>(_: T) {}
    needs_outcome(42_u32);
}

//~ `u32` is not something a handler can return
//~ return `()`, `Outcome`, or `Result<(), E>`
