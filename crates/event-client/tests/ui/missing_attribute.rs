//! A derive without a name and a version.

#[derive(event_client::Event)]
struct OrderPlaced;

fn main() {}

//~ an event needs a name: #[event(name = "orders.placed", version = 1)]
