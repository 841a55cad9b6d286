//! A handler whose last argument is no payload extractor.

fn main() {
    fn needs_payload<P: event_client::service::FromPayload>() {}
    needs_payload::<String>();
}

//~ `String` cannot be a handler's last argument
//~ the last argument is Msg<T> of an `#[derive(Event)]` type
