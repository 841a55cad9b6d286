//! Tests bad input: each case is a clear error, and does not affect other messages.

use std::time::Duration;

use event_client::ErrorKind;
use event_client::message::Durability;
use test_servers::{Generation, Redis, Tls};
use tokio::time::timeout;

use super::{group, message, open, plain, refused, shared};
use crate::broker::{does_everything, keeps_to_its_namespace, printed};

#[tokio::test]
async fn wrong_credentials_are_denied_and_never_shown() {
    let server = Redis::options().user("app", "s3cret").start().await.expect("a server");
    refused(&server.url_of("app", "wr0ng"), ErrorKind::Denied, "credentials").await;
    refused(&server.bare_url(), ErrorKind::Denied, "credentials").await;
    let error = open(&server.url_of("app", "wr0ng")).await.expect_err("wrong");
    assert!(!format!("{error} {error:?}").contains("wr0ng"), "{error:?}");
    let bus = open(&server.url()).await.expect("the right password");
    assert!(!format!("{bus:?}").contains("s3cret"));
    bus.publish(message("orders.placed", "x")).await.expect("published");
}

#[tokio::test]
async fn no_server_is_told_within_seconds() {
    let told = refused("redis://127.0.0.1:1", ErrorKind::Unavailable, "cannot be reached");
    timeout(Duration::from_secs(60), told).await.expect("it does not try for ever");
}

/// A missing permission for one topic refuses that topic only.
#[tokio::test]
async fn a_missing_permission_harms_one_topic_only() {
    let rules = "~backbone:{orders}* ~backbone:topics ~backbone:{groups}* ~backbone:{rpc:* &backbone:* +@all";
    let server = Redis::options().acl_user("app", "pw", rules).start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    let window = [
        bus.publish(message("orders.a", "before")),
        bus.publish(message("secret.a", "x")),
        bus.publish(message("orders.a", "after")),
    ];
    let mut results = Vec::new();
    for confirm in window {
        results.push(confirm.await.map_err(|error| error.kind()));
    }
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    assert_eq!(results[1], Err(ErrorKind::Denied));
    for want in ["before", "after"] {
        let delivery = subscription.next().await.expect("a delivery");
        assert_eq!(delivery.message().payload, want);
        delivery.ack().await.expect("acknowledged");
    }
    let error = bus.subscribe(group("h", "secret.>")).await.expect_err("not allowed");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
}

/// Without permission for `CLIENT UNBLOCK`, a reader polls at short intervals instead.
#[tokio::test]
async fn client_unblock_may_be_forbidden() {
    let rules = "~* &* +@all -client|unblock";
    let server = Redis::options().acl_user("app", "pw", rules).start().await.expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    bus.publish(message("orders.a", "x")).await.expect("published");
    let delivery = subscription.next().await.expect("a delivery");
    delivery.retry(Duration::from_millis(100), "again").await.expect("parked");
    let again = subscription.next().await.expect("the retry");
    assert_eq!(again.info().attempt, 2);
    again.ack().await.expect("acknowledged");
    bus.close().await.expect("closed");
    assert!(subscription.next().await.is_none());
}

#[tokio::test]
async fn a_server_that_throws_streams_away_is_refused() {
    let server = Redis::options().evicting(64).start().await.expect("a server");
    refused(&server.url(), ErrorKind::Config, "maxmemory-policy noeviction").await;
    let bus = open(&format!("{}?eviction=allow", server.url())).await.expect("the operator accepts eviction");
    bus.publish(message("orders.a", "x")).await.expect("published");
}

/// In a cluster, topics are stored on different nodes, and this client follows no redirection.
#[tokio::test]
async fn a_node_of_a_cluster_is_refused() {
    let server = Redis::options().line("cluster-enabled yes").start().await.expect("a server");
    refused(&server.url(), ErrorKind::Unsupported, "Redis Cluster").await;
}

/// A full server refuses publishes, and its stored messages can still be read.
#[tokio::test]
async fn a_full_server_says_so() {
    let server = Redis::options()
        .line("maxmemory 6mb")
        .line("maxmemory-policy noeviction")
        .start()
        .await
        .expect("a server");
    let bus = open(&server.url()).await.expect("opened");
    let subscription = bus.subscribe(group("g", "orders.>")).await.expect("subscribed");
    let text = "x".repeat(100_000);
    let mut stored = 0;
    let error = loop {
        match bus.publish(message("orders.a", &text)).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 1000, "it never gets full");
    };
    assert_eq!(error.kind(), ErrorKind::Full, "{error:?}");
    assert!(error.to_string().contains("maxmemory"), "{error}");
    for _ in 0..stored.min(8) {
        let delivery = subscription.next().await.expect("the stored message");
        assert_eq!(delivery.message().payload.len(), text.len());
        drop(delivery);
    }
}

#[tokio::test]
async fn a_key_that_holds_something_else_is_named() {
    let (url, namespace) = shared().await;
    let mut client = plain(&url).await;
    let key = format!("{namespace}:{{orders}}");
    redis::cmd("SET").arg(&key).arg("mine").exec_async(&mut client).await.expect("set");
    let bus = open(&url).await.expect("opened");
    let error = bus.publish(message("orders.a", "x")).await.expect_err("not a stream");
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.to_string().contains("namespace"), "{error}");
    bus.publish(message("billing.a", "x")).await.expect("another topic is not harmed");
    let kept: String = redis::cmd("GET").arg(&key).query_async(&mut client).await.expect("read");
    assert_eq!(kept, "mine");
}

#[tokio::test]
async fn streams_are_not_made_where_that_is_forbidden() {
    let (url, namespace) = shared().await;
    let bus = open(&format!("{url}&provision=verify")).await.expect("opened");
    let error = bus.publish(message("orders.a", "x")).await.expect_err("no stream");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    assert!(error.to_string().contains("topology apply"), "{error}");
    let mut delayed = message("orders.a", "x");
    delayed.dedup = true;
    let error = bus.publish(delayed).await.expect_err("no stream");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    let mut client = plain(&url).await;
    let exists: i64 = redis::cmd("EXISTS")
        .arg(format!("{namespace}:{{orders}}"))
        .query_async(&mut client)
        .await
        .expect("asked");
    assert_eq!(exists, 0);
}

#[tokio::test]
async fn tls_needs_the_right_certificates() {
    let server = Redis::options().tls(Tls::Mutual).user("app", "pw").start().await.expect("a server");
    let files = server.certificates().expect("certificates");
    let (ca, cert, key) = (files.ca.display(), files.client.display(), files.client_key.display());
    let bus = open(&format!("{}?ca={ca}&cert={cert}&key={key}", server.url())).await.expect("mutual TLS");
    bus.publish(message("orders.a", "x")).await.expect("published");
    for options in [String::new(), format!("?ca={ca}")] {
        let error = open(&format!("{}{options}", server.url())).await.expect_err("not trusted");
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error:?}");
    }
    refused(&format!("{}?ca=/no/such/file", server.url()), ErrorKind::Config, "/no/such/file").await;
}

/// A replica accepts no writes.
#[tokio::test]
async fn a_replica_takes_nothing() {
    let server = Redis::options().line("replicaof 127.0.0.1 1").start().await.expect("a server");
    let url = format!("{}?publish_timeout=1s", server.url());
    // Opening may succeed, because it is not known whether the replica will become the master.
    if let Ok(bus) = open(&url).await {
        let error = bus.publish(message("orders.a", "x")).await.expect_err("a replica");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
}

#[tokio::test]
async fn durability_that_the_server_lacks_is_refused() {
    let (url, _) = shared().await;
    let bus = open(&url).await.expect("opened");
    let mut strong = message("orders.a", "x");
    strong.durability = Durability::Fsync;
    let error = bus.publish(strong).await.expect_err("everysec");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    refused(&format!("{url}&durability=fsync"), ErrorKind::Config, "appendfsync always").await;
}

/// The user on the operators' page can run every operation of a service, on both generations.
#[tokio::test]
async fn the_printed_rights_suffice() {
    let page = include_str!("../../../../../ops/brokers/redis.md");
    let rules = printed(page, "ACL SETUSER billing on >secret ", "\n");
    for generation in Generation::ALL {
        let options = Redis::options().generation(generation);
        let server = options.acl_user("billing", "secret", rules).start().await.expect("a server");
        let bus = open(&server.url()).await.expect("opened");
        does_everything(&bus).await;
        bus.close().await.expect("closed");
        keeps_to_its_namespace(&server.url()).await;
    }
}
