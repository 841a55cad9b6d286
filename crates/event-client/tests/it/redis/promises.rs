//! Tests that the server's actual settings decide which durability is promised.

use event_client::ErrorKind;
use event_client::message::Durability;
use test_servers::Redis;

use super::{message, open, plain};

async fn publish(url: &str, durability: Durability) -> Result<(), ErrorKind> {
    let bus = open(url).await.expect("opened");
    let mut sent = message("orders.a", "x");
    sent.durability = durability;
    bus.publish(sent).await.map(drop).map_err(|error| error.kind())
}

#[tokio::test]
async fn always_is_fsync() {
    let server = Redis::options().fsync().start().await.expect("a server");
    publish(&server.url(), Durability::Fsync).await.expect("kept");
    let bus = open(&server.url()).await.expect("opened");
    assert_eq!(bus.capabilities().durability, Durability::Fsync);
    // The operator may promise less.
    let less = open(&format!("{}?durability=page-cache", server.url())).await.expect("opened");
    assert_eq!(less.capabilities().max_durability, Durability::PageCache);
}

#[tokio::test]
async fn without_a_file_nothing_is_promised() {
    let server = Redis::options().without_persistence().start().await.expect("a server");
    publish(&server.url(), Durability::Default).await.expect("stored in memory");
    assert_eq!(publish(&server.url(), Durability::PageCache).await, Err(ErrorKind::Unsupported));
    assert!(!open(&server.url()).await.expect("opened").capabilities().persistent);
}

/// Where the ACL hides the settings, only the durability that the operator states counts.
#[tokio::test]
async fn hidden_settings_promise_nothing() {
    let hidden = "~* &* +@all -config -info";
    let server = Redis::options().fsync().acl_user("app", "pw", hidden).start().await.expect("a server");
    assert_eq!(publish(&server.url(), Durability::Fsync).await, Err(ErrorKind::Unsupported));
    publish(&format!("{}?durability=fsync", server.url()), Durability::Fsync).await.expect("kept");
}

/// A publish that requires replicas fails when there are none.
#[tokio::test]
async fn missing_replicas_are_told() {
    let server = Redis::options().start().await.expect("a server");
    let url = format!("{}?wait_replicas=1&publish_timeout=400ms", server.url());
    assert_eq!(publish(&url, Durability::Default).await, Err(ErrorKind::Unavailable));
}

/// A connection that died while it was idle does not fail the next operation.
#[tokio::test]
async fn an_outage_that_nobody_noticed_costs_nothing() {
    let server = Redis::options().start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    bus.publish(message("orders.a", "before")).await.expect("published");
    server.restart().await.expect("restarted");
    bus.publish(message("orders.a", "after")).await.expect("published without a second try");
}

/// A setting that changes while the client is connected changes the promised durability.
#[tokio::test]
async fn less_durability_set_at_run_time_is_refused_to_who_asks_for_more() {
    for generation in test_servers::Generation::ALL {
        let server = Redis::options().generation(generation).fsync().start().await.expect("a server");
        let bus = open(&server.url()).await.expect("opened");
        let sent = |durability| {
            let mut sent = message("orders.a", "x");
            sent.durability = durability;
            bus.publish(sent)
        };
        sent(Durability::Fsync).await.expect("kept");
        let mut plain = plain(&server.url()).await;
        let set = |value: &'static str| {
            let mut command = redis::cmd("CONFIG");
            command.arg("SET").arg("appendfsync").arg(value);
            command
        };
        set("everysec").query_async::<()>(&mut plain).await.expect("set");
        // A connection that is restored reads the settings at once, others within half a minute.
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("TYPE").arg("pubsub");
        kill.query_async::<i64>(&mut plain).await.expect("cut");
        let error = loop {
            if let Err(error) = sent(Durability::Fsync).await {
                break error;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("appendfsync always"), "{error}");
        sent(Durability::PageCache).await.expect("that much is kept");
        sent(Durability::Default).await.expect("nothing in particular was asked for");
        set("always").query_async::<()>(&mut plain).await.expect("set back");
        kill.query_async::<i64>(&mut plain).await.expect("cut");
        while sent(Durability::Fsync).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}
