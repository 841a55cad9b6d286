//! Tests outbox and inbox on real SQLite files: commit and rollback, order, several relays, and a killed
//! relay.

mod crash;
mod identity;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_client::bus::Settings;
use event_client::confirm::Confirm;
use event_client::envelope::Envelope;
use event_client::inbox::{self, Inbox};
use event_client::message::{Message, MessageId};
use event_client::service::{Attempt, FromRef, Handler, Msg, Service, State};
use event_client::subject::{Group, Pattern};
use event_client::subscription::Subscription;
use event_client::testing::TestBus;
use event_client::transport::{Admin, Capabilities, Receipt, Requests, Subscribe, Transport};
use event_client::{Bus, Error, ErrorKind, outbox};
use futures_util::future::BoxFuture;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{Sqlite, SqlitePool, query, query_scalar};
use tokio::sync::oneshot;

use crate::events::{OrderPaid, OrderPlaced, placed};

async fn open(path: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    outbox::create_tables(&pool).await.unwrap();
    query("CREATE TABLE IF NOT EXISTS effects (id INTEGER NOT NULL)").execute(&pool).await.unwrap();
    pool
}

async fn database() -> (tempfile::TempDir, SqlitePool) {
    let folder = tempfile::tempdir().unwrap();
    let pool = open(&folder.path().join("service.db")).await;
    (folder, pool)
}

async fn count(pool: &SqlitePool, what: &'static str) -> i64 {
    query_scalar(what).fetch_one(pool).await.unwrap()
}

const WAITING: &str = "SELECT count(*) FROM outbox WHERE published IS NULL AND error IS NULL";
const EFFECTS: &str = "SELECT count(*) FROM effects";

/// Waits for a condition that another task or process establishes.
async fn until(pool: &SqlitePool, what: &'static str, wanted: i64) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while count(pool, what).await != wanted {
        assert!(tokio::time::Instant::now() < deadline, "{what} is {} not {wanted}", count(pool, what).await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn stage_all(pool: &SqlitePool, orders: impl IntoIterator<Item = OrderPlaced>) -> Vec<MessageId> {
    let mut tx = pool.begin().await.unwrap();
    let mut ids = Vec::new();
    for order in orders {
        ids.push(outbox::stage(&mut tx, order).await.unwrap());
    }
    outbox::commit(tx).await.unwrap();
    ids
}

/// A running relay, stopped and joined by [`Working::stop`].
pub(crate) struct Working(oneshot::Sender<()>, tokio::task::JoinHandle<event_client::Result<()>>);

impl Working {
    pub(crate) fn start<D: outbox::Dialect>(relay: outbox::Relay<D>) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self(stop, tokio::spawn(relay.run_until(async { stopped.await.unwrap_or_default() })))
    }

    pub(crate) async fn stop(self) {
        drop(self.0);
        self.1.await.unwrap().unwrap();
    }
}

pub(crate) async fn listen(bus: &Bus) -> Subscription {
    let mut spec = Subscribe::group(Group::new("test").unwrap(), [Pattern::new("orders.>").unwrap()]);
    spec.max_in_flight = 10_000;
    bus.subscribe(spec).await.unwrap()
}

pub(crate) async fn next(subscription: &Subscription) -> Arc<Message> {
    let delivery = tokio::time::timeout(Duration::from_secs(30), subscription.next()).await;
    let delivery = delivery.expect("nothing came in 30 s").expect("the subscription has ended");
    let message = delivery.message().clone();
    delivery.ack().await.unwrap();
    message
}

pub(crate) async fn memory(name: &str) -> Bus {
    let settings = Settings { source: "/billing".into(), ..Settings::default() };
    Bus::connect_with(&format!("memory:outbox-{name}"), settings).await.unwrap()
}

#[tokio::test]
async fn what_is_committed_is_published_and_what_is_rolled_back_is_not() {
    let (_folder, pool) = database().await;
    let bus = memory("commit").await;
    let subscription = listen(&bus).await;
    // The poll interval is an hour, so an event that arrives was published because of the signal.
    let relay = Working::start(outbox::Relay::new(pool.clone(), bus.clone()).poll(Duration::from_secs(3600)));
    let mut tx = pool.begin().await.unwrap();
    query("INSERT INTO effects VALUES (1)").execute(&mut *tx).await.unwrap();
    outbox::stage(&mut tx, placed(1)).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!((count(&pool, WAITING).await, count(&pool, EFFECTS).await), (0, 0));

    let mut tx = pool.begin().await.unwrap();
    let id = outbox::stage(&mut tx, placed(2)).header("tenant", "acmé").entity("order/2").await.unwrap();
    tx.commit().await.unwrap();
    let message = next(&subscription).await;
    assert_eq!((message.id.clone(), message.key.as_deref()), (id, Some("2")));
    assert_eq!(message.headers.iter().collect::<Vec<_>>(), [("tenant", "acmé")]);
    let envelope = Envelope::read(&message).unwrap();
    assert_eq!(envelope.decode::<OrderPlaced>().unwrap(), placed(2));
    assert_eq!(
        (envelope.meta.source.as_str(), envelope.meta.subject.as_deref()),
        ("/billing", Some("order/2"))
    );
    assert_eq!(envelope.meta.correlationid, Some(message.id.clone()));
    assert!(envelope.meta.traceparent.is_some() && envelope.meta.time.is_some());
    until(&pool, WAITING, 0).await;
    relay.stop().await;
    assert!(subscription.try_next().is_none(), "the rolled back event never appears");
}

#[tokio::test]
async fn staged_in_a_handler_it_carries_cause_correlation_and_trace() {
    #[derive(Clone)]
    struct App(SqlitePool, Arc<AtomicUsize>);
    impl FromRef<App> for SqlitePool {
        fn from_ref(app: &App) -> Self {
            app.0.clone()
        }
    }
    async fn pay(
        inbox: Inbox<Sqlite>,
        State(App(_, calls)): State<App>,
        Msg(order): Msg<OrderPlaced>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Some(mut tx) = inbox.begin().await? else { return Ok(()) };
        query("INSERT INTO effects VALUES (?)").bind(order.order_id as i64).execute(&mut *tx).await?;
        outbox::stage(&mut tx, OrderPaid { order_id: order.order_id }).await?;
        if calls.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err("fails before the commit".into());
        }
        outbox::commit(tx).await?;
        Ok(())
    }
    let (_folder, pool) = database().await;
    let app = App(pool.clone(), Arc::default());
    let policy = event_client::service::RetryPolicy::default()
        .backoff(Duration::from_millis(1), Duration::from_millis(1));
    let t = TestBus::real_time(Service::new("billing").on(pay.retry(policy)).with_state(app)).await;
    let subscription = listen(t.bus()).await;
    let sent = t.bus().publish(placed(1)).into_message().unwrap();
    // The same event three times, as after a crash between commit and acknowledgement.
    for _ in 0..3 {
        t.bus().publish_message(sent.clone()).await.unwrap();
        next(&subscription).await;
    }
    t.until_idle().await;
    assert_eq!(count(&pool, EFFECTS).await, 1, "the failed attempt left nothing, the repeats did nothing");
    assert_eq!(count(&pool, WAITING).await, 1);
    let relay = Working::start(outbox::Relay::new(pool.clone(), t.running().bus().clone()));
    let message = next(&subscription).await;
    relay.stop().await;
    let (origin, meta) = (Envelope::read(&sent).unwrap().meta, Envelope::read(&message).unwrap().meta);
    assert_eq!(meta.causationid, Some(sent.id));
    assert_eq!(meta.correlationid, origin.correlationid);
    assert_eq!(meta.traceparent.unwrap().trace_id, origin.traceparent.unwrap().trace_id);
    assert_eq!((meta.source.as_str(), meta.event_type.as_str()), ("/billing", "orders.paid.v1"));
}

#[tokio::test]
async fn an_id_is_staged_once() {
    let (_folder, pool) = database().await;
    for _ in 0..2 {
        let mut tx = pool.begin().await.unwrap();
        outbox::stage(&mut tx, placed(1)).id("order-1").await.unwrap();
        outbox::commit(tx).await.unwrap();
    }
    assert_eq!(count(&pool, WAITING).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_relays_keep_the_order_of_each_key_and_publish_once() {
    let (_folder, pool) = database().await;
    let bus = memory("several").await;
    let subscription = listen(&bus).await;
    let relay = || outbox::Relay::new(pool.clone(), bus.clone()).batch(16).dedup(false);
    let relays: Vec<_> = (0..3).map(|_| Working::start(relay())).collect();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for n in 0..50 {
                    stage_all(&pool, [OrderPlaced { order_id: writer, cents: n }]).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut seen = vec![Vec::new(); 4];
    for _ in 0..200 {
        let order: OrderPlaced = Envelope::read(&*next(&subscription).await).unwrap().decode().unwrap();
        seen[order.order_id as usize].push(order.cents);
    }
    assert!(seen.iter().all(|of_key| *of_key == (0..50).collect::<Vec<_>>()), "{seen:?}");
    until(&pool, WAITING, 0).await;
    for relay in relays {
        relay.stop().await;
    }
    assert!(subscription.try_next().is_none(), "one relay works at a time");
    assert_eq!(count(&pool, "SELECT count(*) FROM outbox_relay").await, 0, "the claim was given back");
}

/// A memory transport with a fault: the function decides the result of each publish.
struct Faulty<F>(Arc<dyn Transport>, F);

impl<F: Fn(&Arc<dyn Transport>, Message) -> Confirm<Receipt> + Send + Sync + 'static> Transport
    for Faulty<F>
{
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }
    fn publish(&self, message: Message) -> Confirm<Receipt> {
        (self.1)(&self.0, message)
    }
    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, event_client::Result<Subscription>> {
        self.0.subscribe(spec)
    }
    fn requests(&self) -> &dyn Requests {
        self.0.requests()
    }
    fn admin(&self) -> &dyn Admin {
        self.0.admin()
    }
    fn close(&self) -> BoxFuture<'_, event_client::Result<()>> {
        self.0.close()
    }
}

impl<F> std::fmt::Debug for Faulty<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faulty")
    }
}

pub(crate) fn faulty(
    bus: &Bus,
    publish: impl Fn(&Arc<dyn Transport>, Message) -> Confirm<Receipt> + Send + Sync + 'static,
) -> Bus {
    Bus::with_transport(Arc::new(Faulty(bus.transport().clone(), publish)), Settings::default()).unwrap()
}

#[tokio::test]
async fn a_bus_that_fails_now_and_then_turns_no_key_round() {
    let (_folder, pool) = database().await;
    let bus = memory("faults").await;
    let subscription = listen(&bus).await;
    let calls = AtomicUsize::new(0);
    let flaky = faulty(&bus, move |memory, message| match calls.fetch_add(1, Ordering::Relaxed) % 7 {
        3 => Confirm::ready(Err(Error::new(ErrorKind::Unavailable, "the bus is down"))),
        _ => memory.publish(message),
    });
    stage_all(&pool, (0..60).map(|n| OrderPlaced { order_id: n % 3, cents: n as i64 })).await;
    let relay = Working::start(outbox::Relay::new(pool.clone(), flaky).batch(30));
    let mut seen = vec![Vec::new(); 3];
    for _ in 0..60 {
        let order: OrderPlaced = Envelope::read(&*next(&subscription).await).unwrap().decode().unwrap();
        seen[order.order_id as usize].push(order.cents);
    }
    assert!(seen.iter().all(|of_key| of_key.is_sorted() && of_key.len() == 20), "{seen:?}");
    until(&pool, WAITING, 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn what_can_never_be_published_is_set_aside_and_holds_up_nothing() {
    let (_folder, pool) = database().await;
    let bus = Bus::connect("memory:outbox-large?max_payload=600").await.unwrap();
    let subscription = listen(&bus).await;
    let mut tx = pool.begin().await.unwrap();
    outbox::stage(&mut tx, placed(1)).header("note", &"x".repeat(1000)).await.unwrap();
    outbox::stage(&mut tx, placed(1)).await.unwrap();
    outbox::commit(tx).await.unwrap();
    let relay = Working::start(outbox::Relay::new(pool.clone(), bus.clone()));
    assert!(next(&subscription).await.headers.is_empty());
    until(&pool, WAITING, 0).await;
    relay.stop().await;
    let error: String =
        query_scalar("SELECT error FROM outbox WHERE published IS NULL").fetch_one(&pool).await.unwrap();
    assert!(error.contains("600"), "{error}");
}

#[tokio::test]
async fn published_rows_and_old_keys_are_pruned_and_waiting_rows_never() {
    let (_folder, pool) = database().await;
    let bus = memory("prune").await;
    stage_all(&pool, (0..10).map(placed)).await;
    let relay =
        outbox::Relay::new(pool.clone(), bus).keep(Duration::from_millis(20)).poll(Duration::from_millis(5));
    let relay = Working::start(relay);
    until(&pool, "SELECT count(*) FROM outbox", 0).await;
    relay.stop().await;
    stage_all(&pool, [placed(1)]).await;
    let mut tx = pool.begin().await.unwrap();
    assert!(inbox::once(&mut tx, "billing:1").await.unwrap());
    assert!(!inbox::once(&mut tx, "billing:1").await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(inbox::prune(&pool, inbox::DEFAULT_TTL).await.unwrap(), 0);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(inbox::prune(&pool, Duration::ZERO).await.unwrap(), 1);
    assert_eq!(count(&pool, WAITING).await, 1);
}

#[tokio::test]
async fn missing_tables_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new().filename(folder.path().join("x.db")).create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let relay = outbox::Relay::new(pool.clone(), memory("missing").await);
    let error = relay.run_until(std::future::pending()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("create_tables"), "{error}");
    let mut tx = pool.begin().await.unwrap();
    let error = outbox::stage(&mut tx, placed(1)).await.unwrap_err();
    assert!(
        error.to_string().contains("create_tables") && error.to_string().contains("orders.placed"),
        "{error}"
    );
}
