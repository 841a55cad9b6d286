//! A handler's last argument must say what it receives.

fn main() {
    fn needs_payload<P: event_client::service::FromPayload>() {}
    needs_payload::<String>();
}

//~ `String` cannot be a handler's last argument
//~ the last argument is Msg<T> of an `#[derive(Event)]` type
