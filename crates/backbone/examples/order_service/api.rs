//! The HTTP side of the example: the routes, and the context of each HTTP request.

use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use event_client::context::Context;
use event_client::status::Code;
use event_client::{Bus, outbox};
use serde::Deserialize;
use serde_json::{Value, json};
use service_kit::health::Health;
use sqlx::SqlitePool;

use crate::orders::{GetOrder, Order, OrderPlaced};

/// The state of the routes.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) pool: SqlitePool,
    pub(crate) bus: Bus,
}

/// The body of `POST /orders`.
#[derive(Deserialize)]
struct NewOrder {
    customer: String,
    cents: i64,
}

/// The status and the text of an error. `service-kit` turns the text into JSON.
type Refusal = (StatusCode, String);

/// The routes of the service, with `/health`, `/ready` and `/metrics`.
pub(crate) fn router(app: App, health: &Health) -> Router {
    Router::new()
        .route("/orders", post(place_order))
        .route("/orders/{id}", get(show_order))
        .layer(from_fn(with_context))
        .with_state(app)
        .merge(health.router())
}

/// Runs each HTTP request in a context from its headers `traceparent`, `tracestate` and `x-request-id`. The library
/// copies correlation and trace from this context to events, requests, staged events and log records.
async fn with_context(request: Request, next: Next) -> Response {
    let headers = request.headers().clone();
    let context = Context::from_headers(|name| headers.get(name)?.to_str().ok());
    let request_id = context.correlation.to_string();
    let mut response = context.scope(next.run(request)).await;
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

/// `POST /orders`: stores the order. Its confirmation comes later, so the status is 202.
async fn place_order(
    State(app): State<App>,
    Json(new): Json<NewOrder>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let order_id = store_order(&app.pool, new).await.map_err(|error| {
        tracing::error!("an order was not stored: {error:#}");
        (StatusCode::INTERNAL_SERVER_ERROR, "the order was not stored".to_owned())
    })?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "order_id": order_id }))))
}

/// Stores the row and the event in one transaction: both or neither.
async fn store_order(pool: &SqlitePool, new: NewOrder) -> anyhow::Result<i64> {
    let mut transaction = pool.begin().await?;
    let insert = "INSERT INTO orders (customer, cents) VALUES (?, ?) RETURNING id";
    let order_id: i64 =
        sqlx::query_scalar(insert).bind(&new.customer).bind(new.cents).fetch_one(&mut *transaction).await?;
    let event = OrderPlaced { order_id, customer: new.customer, cents: new.cents };
    outbox::stage(&mut transaction, event).await?;
    outbox::commit(transaction).await?;
    Ok(order_id)
}

/// `GET /orders/ID`: sends the request over the bus and returns the reply.
async fn show_order(State(app): State<App>, Path(order_id): Path<i64>) -> Result<Json<Order>, Refusal> {
    let answer = app.bus.request(GetOrder { order_id }).timeout(Duration::from_secs(2)).await;
    answer.map(Json).map_err(|error| {
        let status = match error.code() {
            Code::NotFound => StatusCode::NOT_FOUND,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, error.to_string())
    })
}
