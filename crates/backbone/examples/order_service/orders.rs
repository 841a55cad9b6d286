//! The domain of the example: its event, its request, the two handlers and the task.

use std::time::Duration;

use event_client::context::Context;
use event_client::inbox::Inbox;
use event_client::layers::{MetricsLayer, Timeout, TraceLayer};
use event_client::service::{Handler, Msg, Req, Running, Service, State};
use event_client::status::Status;
use event_client::{Bus, Event, Request, outbox};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::{Sqlite, SqlitePool};
use task_queue::{TaskContext, TaskError, task};
use uuid::Uuid;

/// The event `orders.placed.v1`. Its key is the customer: the orders of one customer are confirmed in order.
#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.placed", version = 1, key = customer)]
pub(crate) struct OrderPlaced {
    pub(crate) order_id: i64,
    pub(crate) customer: String,
    pub(crate) cents: i64,
}

/// The request `orders.get-order.v1`. It is idempotent: sending it twice does no harm.
#[derive(Request, Serialize, Deserialize)]
#[request(name = "orders.get-order", reply = Order, idempotent)]
pub(crate) struct GetOrder {
    pub(crate) order_id: i64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) order_id: i64,
    pub(crate) state: String,
    pub(crate) receipt_sent: bool,
    pub(crate) correlation: Option<String>,
}

/// Confirms an order, and enqueues the task that sends its receipt.
///
/// The bus may deliver an event more than once. The inbox stores the event's id in the same transaction as the change.
async fn confirm(inbox: Inbox<Sqlite>, context: Context, Msg(order): Msg<OrderPlaced>) -> anyhow::Result<()> {
    let Some(mut transaction) = inbox.begin().await? else { return Ok(()) };
    sqlx::query("UPDATE orders SET state = 'confirmed', correlation = ? WHERE id = ?")
        .bind(context.correlation.to_string())
        .bind(order.order_id)
        .execute(&mut *transaction)
        .await?;
    // The task is enqueued before the commit, because a crash after the commit would lose it. The task's id is the same
    // in every attempt, so a second attempt adds no second task.
    send_receipt
        .delay(order.order_id)
        .id(Uuid::new_v5(&Uuid::NAMESPACE_OID, inbox.key().as_bytes()))
        .header("correlation_id", context.correlation.to_string())
        .header("traceparent", context.trace.to_string())
        .await?;
    outbox::commit(transaction).await?;
    tracing::info!(order_id = order.order_id, cents = order.cents, "order confirmed");
    Ok(())
}

/// Replies to the request `GetOrder`.
async fn get_order(State(pool): State<SqlitePool>, Req(asked): Req<GetOrder>) -> Result<Order, Status> {
    let row: Option<(String, bool, Option<String>)> =
        sqlx::query_as("SELECT state, receipt_sent, correlation FROM orders WHERE id = ?")
            .bind(asked.order_id)
            .fetch_optional(&pool)
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
    let (state, receipt_sent, correlation) =
        row.ok_or_else(|| Status::not_found(format!("there is no order {}", asked.order_id)))?;
    Ok(Order { order_id: asked.order_id, state, receipt_sent, correlation })
}

/// Starts the handlers. When it returns, the groups of the handlers exist, and the bus keeps every new event for them.
pub(crate) async fn start(bus: &Bus, pool: &SqlitePool) -> event_client::Result<Running> {
    Service::new("orders")
        .version(env!("CARGO_PKG_VERSION"))
        .bus(bus.clone())
        .on(confirm.keyed().concurrency(8))
        .reply(get_order)
        .layer((TraceLayer, MetricsLayer, Timeout::new(Duration::from_secs(10))))
        .with_state(pool.clone())
        .start()
        .await
}

/// Sends the receipt. A task has no `Context`; the handler put the correlation id and the trace into its headers.
#[task(queue = "mail", retries = 5, backoff = "2s")]
pub(crate) async fn send_receipt(
    task_queue::State(pool): task_queue::State<SqlitePool>,
    run: TaskContext,
    order_id: i64,
) -> Result<(), TaskError> {
    sqlx::query("UPDATE orders SET receipt_sent = TRUE WHERE id = ?").bind(order_id).execute(&pool).await?;
    tracing::info!(order_id, correlation_id = run.header("correlation_id"), "receipt sent");
    Ok(())
}
