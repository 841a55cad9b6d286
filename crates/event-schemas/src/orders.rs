//! The events of Gateway / Users / Orders: the states of an order. `orders.placed` shows a change of version.

use event_client::Event;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::sample::Sample;

/// An order was placed: the first version counted whole euros.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.placed", version = 1, key = order_id)]
pub struct OrderPlacedV1 {
    /// The order.
    pub order_id: Uuid,
    /// The user who placed the order.
    pub user_id: String,
    /// The sum in euros.
    pub euros: i64,
}

/// An order was placed.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.placed", version = 2, key = order_id, upcast_from = OrderPlacedV1)]
pub struct OrderPlaced {
    /// The order.
    pub order_id: Uuid,
    /// The user who placed the order.
    pub user_id: String,
    /// The sum in cents.
    pub cents: i64,
    /// ISO 4217 code; orders of version 1 were all in `EUR`.
    pub currency: String,
}

impl From<OrderPlacedV1> for OrderPlaced {
    fn from(v1: OrderPlacedV1) -> Self {
        let cents = v1.euros.saturating_mul(100);
        Self { order_id: v1.order_id, user_id: v1.user_id, cents, currency: "EUR".into() }
    }
}

/// An order was paid.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.paid", version = 1, key = order_id)]
pub struct OrderPaid {
    /// The order.
    pub order_id: Uuid,
    /// The payment provider's reference.
    pub payment: String,
}

/// An order was cancelled.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.cancelled", version = 1, key = order_id)]
pub struct OrderCancelled {
    /// The order.
    pub order_id: Uuid,
    /// Why, in words.
    pub reason: String,
}

const ORDER: Uuid = Uuid::from_u128(0x0193_4f2e_8d10_7c3a_9b5e_2f6a_1c4d_7e81);

impl Sample for OrderPlacedV1 {
    fn sample() -> Self {
        Self { order_id: ORDER, user_id: "user-7".into(), euros: 42 }
    }
}

impl Sample for OrderPlaced {
    fn sample() -> Self {
        Self { order_id: ORDER, user_id: "user-7".into(), cents: 4_200, currency: "EUR".into() }
    }
}

impl Sample for OrderPaid {
    fn sample() -> Self {
        Self { order_id: ORDER, payment: "pay-991".into() }
    }
}

impl Sample for OrderCancelled {
    fn sample() -> Self {
        Self { order_id: ORDER, reason: "out of stock".into() }
    }
}
