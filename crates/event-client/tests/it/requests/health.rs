//! Tests the health request that every service answers.

use super::*;

#[tokio::test]
async fn every_service_says_how_it_is() {
    async fn note(event_client::service::Msg(_): event_client::service::Msg<crate::events::OrderPlaced>) {}
    let bus = memory();
    assert_eq!(bus.health("pricing").await.unwrap_err().kind(), ErrorKind::NoResponder);
    let service = Service::new("pricing").bus(bus.clone()).reply(quote).on(note).start().await.unwrap();
    let health = bus.health("pricing").await.unwrap();
    assert!(health.ready, "{health:?}");
    let handlers: Vec<_> =
        health.handlers.iter().map(|(name, state)| (name.as_str(), state.as_str())).collect();
    assert_eq!(handlers, [("pricing.get-quote.v1", "live"), ("pricing.orders.placed", "live")]);
    service.drain().await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(bus.health("pricing").await.unwrap_err().kind(), ErrorKind::NoResponder);
}
