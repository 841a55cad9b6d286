//! A plain struct, used as an event.

struct OrderPlaced;

fn main() {
    fn needs_event<E: event_client::Event>() {}
    needs_event::<OrderPlaced>();
}

//~ `OrderPlaced` is not an event
//~ needs `#[derive(Event)]`
//~ #[event(name = "orders.placed", version = 1)]
