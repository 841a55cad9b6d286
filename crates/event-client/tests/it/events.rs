//! The event types that the tests publish and receive.

use event_client::Event;
use event_client::event::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Event, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[event(name = "orders.placed", version = 1, key = order_id)]
pub(crate) struct OrderPlaced {
    pub(crate) order_id: u64,
    pub(crate) cents: i64,
}

#[derive(Event, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[event(name = "orders.paid", version = 1, key = order_id)]
pub(crate) struct OrderPaid {
    pub(crate) order_id: u64,
}

pub(crate) fn placed(order_id: u64) -> OrderPlaced {
    OrderPlaced { order_id, cents: 100 }
}
