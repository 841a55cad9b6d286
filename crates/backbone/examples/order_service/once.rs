//! The option `--once`: a client that uses the running example over HTTP, so that it needs no second terminal.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::orders::Order;

/// Places an order over HTTP and waits until it is confirmed and its receipt is sent.
pub(crate) async fn place_one_order(address: SocketAddr) -> anyhow::Result<()> {
    let (client, base) = (reqwest::Client::new(), format!("http://{address}"));
    let response = client
        .post(format!("{base}/orders"))
        .header("x-request-id", "req-78")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .json(&json!({ "customer": "anna", "cents": 1200 }))
        .send()
        .await?
        .error_for_status()?;
    let placed: Value = response.json().await?;
    println!("POST /orders: {placed}");

    let order_url = format!("{base}/orders/{}", placed["order_id"]);
    let order = loop {
        let order: Order = client.get(&order_url).send().await?.error_for_status()?.json().await?;
        if order.state == "confirmed" && order.receipt_sent {
            break order;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    anyhow::ensure!(order.correlation.as_deref() == Some("req-78"), "the request id was lost: {order:?}");
    println!("GET /orders/{}: {}", order.order_id, serde_json::to_string(&order)?);

    for path in ["/health", "/ready"] {
        let answer: Value =
            client.get(format!("{base}{path}")).send().await?.error_for_status()?.json().await?;
        println!("GET {path}: {}", answer["status"]);
    }
    let metrics = client.get(format!("{base}/metrics")).send().await?.error_for_status()?.text().await?;
    let handled = metrics.lines().find(|line| line.starts_with("messaging_process_messages"));
    println!("GET /metrics: {}", handled.unwrap_or("no events were handled"));
    Ok(())
}
