//! Tests housekeeping: which entries are trimmed, which consumers are removed and which groups are reported;
//! nothing that is still needed is removed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_client::transport::Start;
use redis::aio::MultiplexedConnection;
use tokio::time::{sleep, timeout};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::{group, message, open, plain, shared};

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done` returns true.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn length(client: &mut MultiplexedConnection, stream: &str) -> usize {
    redis::cmd("XLEN").arg(stream).query_async(client).await.expect("a length")
}

/// Collects the warnings of this thread, on which the test's whole runtime runs.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        tracing::subscriber::set_default(tracing_subscriber::registry().with(self.clone()))
    }

    fn has(&self, words: &[&str]) -> bool {
        self.count(words) > 0
    }

    fn count(&self, words: &[&str]) -> usize {
        let lines = self.0.lock().expect("not poisoned");
        lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!("{}={value:?} ", field.name());
    }
}

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == tracing::Level::WARN {
            let mut text = Text(String::new());
            event.record(&mut text);
            self.0.lock().expect("not poisoned").push(text.0);
        }
    }
}

/// A stream is trimmed up to the oldest entry that a group still needs, and no further.
#[tokio::test]
async fn what_is_not_acknowledged_is_never_trimmed() {
    let (url, namespace) = shared().await;
    let bus = open(&format!("{url}&housekeeping_interval=100ms&retention_messages=10&retention_age=1ms"))
        .await
        .expect("opened");
    let mut client = plain(&url).await;
    let stream = format!("{namespace}:{{orders}}");
    let mut spec = group("slow", "orders.>");
    spec.start = Start::Earliest;
    let subscription = bus.subscribe(spec).await.expect("subscribed");
    let confirms: Vec<_> =
        (0..300).map(|number| bus.publish(message("orders.a", &number.to_string()))).collect();
    for confirm in confirms {
        confirm.await.expect("published");
    }
    let mut kept = None;
    for number in 0..300 {
        let delivery = subscription.next().await.expect("a delivery");
        assert_eq!(delivery.message().payload, number.to_string());
        if number == 200 {
            kept = Some(delivery);
        } else {
            delivery.ack().await.expect("acknowledged");
        }
    }
    // Entry 200 is in flight; the entries after it have to stay, too.
    until("all entries before it are trimmed", async || length(&mut client, &stream).await == 100).await;
    let first: Vec<(String, Vec<(String, String)>)> = redis::cmd("XRANGE")
        .arg(&stream)
        .arg("-")
        .arg("+")
        .arg("COUNT")
        .arg(1)
        .query_async(&mut client)
        .await
        .expect("read");
    let data = first[0].1.iter().find(|(name, _)| name == "data").map(|(_, value)| value.as_str());
    assert_eq!(data, Some("200"));
    // Housekeeping runs several times, and the entry can still be retried.
    sleep(Duration::from_millis(500)).await;
    kept.take().expect("in hand").retry(Duration::ZERO, "again").await.expect("parked");
    let again = subscription.next().await.expect("the retry");
    assert_eq!((again.message().payload.as_ref(), again.info().attempt), (&b"200"[..], 2));
    again.ack().await.expect("acknowledged");
    until("the remaining entries are trimmed to the minimum", async || {
        length(&mut client, &stream).await <= 10
    })
    .await;
}

/// A consumer that has disconnected is removed when it has no pending entry; one with a pending entry is
/// never removed.
#[tokio::test]
async fn dead_consumers_go_only_when_they_have_nothing() {
    let (url, namespace) = shared().await;
    let bus = open(&url).await.expect("opened");
    let stream = format!("{namespace}:{{orders}}");
    drop(bus.subscribe(group("g", "orders.>")).await.expect("subscribed"));
    bus.publish(message("orders.a", "pending")).await.expect("published");
    bus.close().await.expect("closed");
    let mut client = plain(&url).await;
    let mut create = redis::cmd("XGROUP");
    create.arg("CREATECONSUMER").arg(&stream).arg("g");
    for name in ["empty.60000", "somebody-else"] {
        create.clone().arg(name).exec_async(&mut client).await.expect("created");
    }
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP").arg("g").arg("full.60000").arg("COUNT").arg(1).arg("STREAMS").arg(&stream).arg(">");
    read.exec_async(&mut client).await.expect("read");
    let bus = open(&format!("{url}&housekeeping_interval=100ms")).await.expect("opened");
    let mut ask = redis::cmd("XINFO");
    ask.arg("CONSUMERS").arg(&stream).arg("g");
    let mut names = async || {
        let consumers: Vec<std::collections::HashMap<String, redis::Value>> =
            ask.query_async(&mut client).await.expect("asked");
        let name = |consumer: &std::collections::HashMap<String, redis::Value>| {
            redis::from_redis_value::<String>(consumer["name"].clone()).expect("a name")
        };
        consumers.iter().map(name).collect::<Vec<_>>()
    };
    until("the consumer without pending entries is removed", async || {
        !names().await.contains(&"empty.60000".to_owned())
    })
    .await;
    // Two rounds later the others still exist: one has a pending entry, and one is not a member of this
    // library.
    sleep(Duration::from_millis(400)).await;
    let left = names().await;
    for name in ["full.60000", "somebody-else"] {
        assert!(left.contains(&name.to_owned()), "{name} is missing in {left:?}");
    }
    bus.close().await.expect("closed");
}

/// A group that no consumer reads any more is reported by name, once, and keeps its messages.
#[tokio::test]
async fn an_abandoned_group_is_reported() {
    let warnings = Warnings::default();
    let _listening = warnings.listen();
    let (url, namespace) = shared().await;
    let bus = open(&format!("{url}&housekeeping_interval=100ms&retention_age=1ms")).await.expect("opened");
    drop(bus.subscribe(group("forgotten", "orders.>")).await.expect("subscribed"));
    for number in 0..5 {
        bus.publish(message("orders.a", &number.to_string())).await.expect("published");
    }
    let words = ["forgotten", "orders", "abandoned"];
    until("a warning names it", async || warnings.has(&words)).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(warnings.count(&words), 1, "once, not each round");
    let mut client = plain(&url).await;
    assert_eq!(length(&mut client, &format!("{namespace}:{{orders}}")).await, 5);
}

#[tokio::test]
async fn a_server_that_may_lose_messages_is_warned_of() {
    let warnings = Warnings::default();
    let _listening = warnings.listen();
    let forgetful = test_servers::Redis::options().without_persistence().start().await.expect("a server");
    open(&forgetful.url()).await.expect("opened");
    assert!(warnings.has(&["append-only file", "appendonly yes"]));
    let evicting = test_servers::Redis::options().evicting(64).start().await.expect("a server");
    open(&format!("{}?eviction=allow", evicting.url())).await.expect("the operator accepts eviction");
    assert!(warnings.has(&["allkeys-lru", "noeviction"]));
    let volatile =
        test_servers::Redis::options().line("maxmemory 64mb").line("maxmemory-policy volatile-ttl");
    let volatile = volatile.start().await.expect("a server");
    open(&volatile.url()).await.expect("streams have no TTL, but dedup ids do");
    assert!(warnings.has(&["volatile-ttl", "noeviction"]));
}
