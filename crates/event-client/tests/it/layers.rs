//! Tests layers around event handlers, request handlers and outgoing requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use event_client::layers::{
    CircuitBreaker, ConcurrencyLimit, Deduplicate, MetricsLayer, RateLimit, Retry, Timeout, TraceLayer,
};
use event_client::service::OutcomeKind::{Ack, Reject};
use event_client::service::{Handler, Msg, Req, RetryPolicy, Service, State};
use event_client::status::{Code, Status};
use event_client::testing::TestBus;
use event_client::{CallError, ErrorKind, Request};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::events::{OrderPlaced, placed};
use crate::requests::{GetQuote, Quote, memory, sku};

const GROUP: &str = "billing.orders.placed";

/// Configures the handlers' result, and counts their calls.
#[derive(Clone, Default)]
struct Bank(Arc<BankState>);

#[derive(Default)]
struct BankState {
    down: AtomicBool,
    slow_ms: AtomicUsize,
    calls: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
}

impl Bank {
    async fn ask(&self) -> Result<(), &'static str> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        let running = self.0.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(running, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(self.0.slow_ms.load(Ordering::SeqCst) as u64)).await;
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        if self.0.down.load(Ordering::SeqCst) { Err("the bank is down") } else { Ok(()) }
    }

    fn down(&self, down: bool) {
        self.0.down.store(down, Ordering::SeqCst);
    }

    fn slow(&self, ms: usize) {
        self.0.slow_ms.store(ms, Ordering::SeqCst);
    }

    fn calls(&self) -> usize {
        self.0.calls.load(Ordering::SeqCst)
    }
}

async fn charge(State(bank): State<Bank>, Msg(_): Msg<OrderPlaced>) -> Result<(), &'static str> {
    bank.ask().await
}

async fn quote(State(bank): State<Bank>, Req(_): Req<GetQuote>) -> Result<Quote, Status> {
    bank.ask().await.map(|()| Quote { cents: 1 }).map_err(Status::unavailable)
}

/// The same request, but not idempotent.
#[derive(Request, Serialize, Deserialize)]
#[request(name = "pricing.book", reply = Quote)]
struct Book {}

async fn book(State(bank): State<Bank>, Req(_): Req<Book>) -> Result<Quote, Status> {
    bank.ask().await.map(|()| Quote { cents: 1 }).map_err(Status::unavailable)
}

fn once() -> RetryPolicy {
    RetryPolicy {
        jitter: false,
        ..RetryPolicy::attempts(2).backoff(Duration::from_secs(1), Duration::from_secs(1))
    }
}

#[tokio::test]
async fn the_stack_of_the_front_page() {
    let bank = Bank::default();
    let service = Service::new("billing").on(charge.concurrency(32).keyed()).retry(once());
    let service = service
        .layer((TraceLayer, MetricsLayer, Timeout::new(Duration::from_secs(10))))
        .with_state(bank.clone());
    let t = TestBus::start(service).await;
    t.publish(placed(1)).await.until_idle().await;
    assert_eq!(t.handler(GROUP).outcomes(), [Ack]);
}

#[tokio::test]
async fn a_timeout_is_retried_then_dead_lettered() {
    let bank = Bank::default();
    bank.slow(11_000);
    let service =
        Service::new("billing").on(charge).retry(once()).layer(Timeout::new(Duration::from_secs(10)));
    let t = TestBus::start(service.with_state(bank.clone())).await;
    let start = Instant::now();
    t.publish(placed(1)).await.until_idle().await;
    assert_eq!(t.handler(GROUP).outcomes().len(), 2);
    assert!(t.handler(GROUP).errors()[0].contains("longer than the 10s"), "{:?}", t.handler(GROUP).errors());
    assert_eq!(t.handler(GROUP).outcomes()[1], Reject);
    assert_eq!(start.elapsed().as_secs(), 21, "twice 10 s and 1 s between");
    assert_eq!(t.dead_letters().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_around_a_request_handler_answers_deadline_exceeded() {
    let (bus, bank) = (memory(), Bank::default());
    bank.slow(3_000);
    let service =
        Service::new("pricing").bus(bus.clone()).reply(quote).layer(Timeout::new(Duration::from_secs(2)));
    let _service = service.with_state(bank).start().await.unwrap();
    match bus.request(sku("tea")).await.unwrap_err() {
        CallError::Status(status) => assert_eq!(status.code, Code::DeadlineExceeded),
        other => panic!("{other:?}"),
    }
    // On the caller's side the layer's timeout is the call's deadline.
    let client = bus.client().layer(Timeout::new(Duration::from_millis(500)));
    let start = Instant::now();
    let error = client.request(sku("tea")).await.unwrap_err();
    assert!(matches!(error, CallError::Deadline { .. }), "{error:?}");
    assert_eq!(start.elapsed().as_millis() / 10, 50);
}

#[tokio::test]
async fn retry_in_place_keeps_the_delivery() {
    let bank = Bank::default();
    bank.down(true);
    let service = Service::new("billing").on(charge).retry(once()).layer(Retry::attempts(3));
    let t = TestBus::start(service.with_state(bank.clone())).await;
    t.publish(placed(1)).await.until_idle().await;
    assert_eq!(bank.calls(), 6, "three in place for each of two attempts");
    assert_eq!(t.handler(GROUP).outcomes().len(), 2);
    bank.down(false);
    t.publish(placed(2)).await.until_idle().await;
    assert_eq!(bank.calls(), 7);
}

#[tokio::test(start_paused = true)]
async fn requests_are_repeated_only_when_that_is_harmless() {
    let (bus, bank) = (memory(), Bank::default());
    bank.down(true);
    let service = Service::new("pricing").bus(bus.clone()).reply(quote).reply(book);
    let service = service.with_state(bank.clone()).start().await.unwrap();
    let client = bus.client().layer(Retry::attempts(3));
    assert_eq!(client.request(sku("tea")).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(bank.calls(), 3, "idempotent");
    assert_eq!(client.request(Book {}).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(bank.calls(), 4, "not declared idempotent");
    service.drain().await.unwrap();

    // Without a responder it is certain that nothing was done, so any request may be retried; here a
    // responder starts later.
    bank.down(false);
    let client =
        bus.client().layer(Retry::attempts(10).backoff(Duration::from_secs(1), Duration::from_secs(1)));
    let (answer, _service) = tokio::join!(client.request(Book {}), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let service = Service::new("pricing").bus(bus.clone()).reply(book).with_state(bank.clone());
        service.start().await.unwrap()
    });
    answer.unwrap();
    // The same layer around the service: one reply after three attempts.
    let before = bank.calls();
    bank.down(true);
    let other = memory();
    let service =
        Service::new("pricing").bus(other.clone()).reply(quote).reply(book).layer(Retry::attempts(3));
    let service = service.with_state(bank.clone()).start().await.unwrap();
    other.request(sku("tea")).await.unwrap_err();
    assert_eq!(bank.calls() - before, 3);
    other.request(Book {}).await.unwrap_err();
    assert_eq!(bank.calls() - before, 4);
    assert_eq!(service.counts()["pricing.get-quote.v1"].rejected, 1);
}

#[tokio::test]
async fn an_open_circuit_holds_events_back_without_spending_their_attempts() {
    let bank = Bank::default();
    bank.down(true);
    let breaker = CircuitBreaker::new().failures(2).open_for(Duration::from_secs(60));
    let service = Service::new("billing").on(charge.concurrency(1)).layer(breaker.clone());
    let service =
        service.retry(RetryPolicy::attempts(3).backoff(Duration::from_millis(1), Duration::from_millis(1)));
    let t = TestBus::start(service.with_state(bank.clone())).await;
    let start = Instant::now();
    t.publish(placed(1)).await;
    while bank.calls() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(breaker.state(GROUP).as_str(), "open");
    assert_eq!(bank.calls(), 2, "nothing is called while it is open");
    bank.down(false);
    t.until_idle().await;
    assert_eq!(t.handler(GROUP).outcomes().last(), Some(&Ack));
    assert!(
        (60..62).contains(&start.elapsed().as_secs()),
        "the probe came after 60 s: {:?}",
        start.elapsed()
    );
    assert_eq!((bank.calls(), breaker.state(GROUP).as_str()), (3, "closed"));
    assert!(t.dead_letters().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_refuses_requests_at_once_on_either_side() {
    let (bus, bank) = (memory(), Bank::default());
    bank.down(true);
    let serving = CircuitBreaker::new();
    let service = Service::new("pricing").bus(bus.clone()).reply(quote).layer(serving.clone());
    let _service = service.with_state(bank.clone()).start().await.unwrap();
    for _ in 0..5 {
        assert_eq!(bus.request(sku("tea")).await.unwrap_err().to_string(), "UNAVAILABLE: the bank is down");
    }
    let refused = bus.request(sku("tea")).await.unwrap_err();
    assert_eq!((refused.code(), bank.calls()), (Code::Unavailable, 5));
    assert!(refused.to_string().contains("circuit"), "{refused}");
    assert_eq!(serving.state("pricing.get-quote.v1").as_str(), "open");

    // The caller's own circuit breaker counts the refusals too, and then makes no more calls on the bus.
    let asking = CircuitBreaker::new().named("pricing");
    let client = bus.client().layer(asking.clone());
    for _ in 0..5 {
        client.request(sku("tea")).await.unwrap_err();
    }
    match client.request(sku("tea")).await.unwrap_err() {
        CallError::Bus(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        other => panic!("{other:?}"),
    }
    assert_eq!(asking.state("pricing").as_str(), "open");
    tokio::time::sleep(Duration::from_secs(61)).await;
    bank.down(false);
    client.request(sku("tea")).await.unwrap();
    assert_eq!(
        (asking.state("pricing").as_str(), serving.state("pricing.get-quote.v1").as_str()),
        ("closed", "closed")
    );
}

#[tokio::test(start_paused = true)]
async fn a_caller_s_own_fault_opens_nothing() {
    async fn picky(Req(_): Req<GetQuote>) -> Result<Quote, Status> {
        Err(Status::invalid_argument("no"))
    }
    let bus = memory();
    let _service = Service::new("pricing").bus(bus.clone()).reply(picky).start().await.unwrap();
    let breaker = CircuitBreaker::new().failures(1);
    let client = bus.client().layer(breaker.clone());
    for _ in 0..3 {
        assert_eq!(client.request(sku("tea")).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(breaker.state("pricing.get-quote.v1").as_str(), "closed");
}

#[tokio::test]
async fn a_rate_slows_events_and_refuses_requests_that_cannot_wait() {
    let bank = Bank::default();
    let service = Service::new("billing").on(charge).layer(RateLimit::per_second(10).burst(1));
    let t = TestBus::start(service.with_state(bank.clone())).await;
    let start = Instant::now();
    for id in 0..21 {
        t.publish(placed(id)).await;
    }
    t.until_idle().await;
    assert!((2000..2100).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(t.handler(GROUP).outcomes(), [Ack; 21]);

    let bus = memory();
    let service = Service::new("pricing").bus(bus.clone()).reply(quote).with_state(bank);
    let _service = service.start().await.unwrap();
    let client = bus.client().layer(RateLimit::per_second(1).burst(1));
    client.request(sku("tea")).await.unwrap();
    let start = Instant::now();
    let error = client.request(sku("tea")).timeout(Duration::from_millis(500)).await.unwrap_err();
    assert_eq!((error.code(), start.elapsed()), (Code::ResourceExhausted, Duration::ZERO));
    client.request(sku("tea")).await.unwrap();
    assert_eq!(start.elapsed().as_millis() / 10, 100, "the other waits for its turn");
}

#[tokio::test(start_paused = true)]
async fn a_concurrency_limit_spans_handlers() {
    let (bus, bank) = (memory(), Bank::default());
    bank.slow(10);
    let limit = ConcurrencyLimit::new(3);
    let service = Service::new("pricing").bus(bus.clone()).reply(quote).reply(book).layer(limit.clone());
    let _service = service.with_state(bank.clone()).start().await.unwrap();
    let quotes =
        futures_util::future::join_all((0..10).map(|_| async { bus.request(sku("tea")).await.unwrap() }));
    let books =
        futures_util::future::join_all((0..10).map(|_| async { bus.request(Book {}).await.unwrap() }));
    tokio::join!(quotes, books);
    assert_eq!(bank.0.most.load(Ordering::SeqCst), 3);
    assert_eq!(limit.running(), 0);
}

#[tokio::test]
async fn a_message_that_was_handled_is_not_handled_again() {
    let bank = Bank::default();
    let service =
        Service::new("billing").on(charge.concurrency(1)).retry(once()).layer(Deduplicate::default());
    let t = TestBus::start(service.with_state(bank.clone())).await;
    for _ in 0..3 {
        t.bus().publish(placed(1)).id("the-same").await.unwrap();
        t.until_idle().await;
    }
    assert_eq!((bank.calls(), t.handler(GROUP).outcomes()), (1, vec![Ack; 3]));
    tokio::time::sleep(Duration::from_secs(601)).await;
    t.bus().publish(placed(1)).id("the-same").await.unwrap();
    t.until_idle().await;
    assert_eq!(bank.calls(), 2, "forgotten after its time");

    // A failed message was not handled: neither a retry nor a replay is skipped.
    bank.down(true);
    t.bus().publish(placed(2)).id("another").await.unwrap();
    t.until_idle().await;
    assert_eq!((bank.calls(), t.dead_letters().await.len()), (4, 1));
    bank.down(false);
    assert_eq!(t.replay_dead_letters().await, 1);
    t.until_idle().await;
    assert_eq!(bank.calls(), 5);
}

#[tokio::test]
async fn draining_does_not_wait_for_a_circuit_to_close() {
    let bank = Bank::default();
    bank.down(true);
    let breaker = CircuitBreaker::new().failures(1).open_for(Duration::from_secs(3600));
    let service = Service::new("billing").on(charge.concurrency(1)).layer(breaker);
    let mut t = TestBus::start(service.with_state(bank.clone())).await;
    t.publish(placed(1)).await.publish(placed(2)).await;
    while bank.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let start = Instant::now();
    t.stop().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(bank.calls(), 1, "the others went back untried");
}

#[tokio::test]
async fn a_panic_goes_through_all_layers_and_leaves_them_whole() {
    async fn sometimes(Msg(order): Msg<OrderPlaced>) {
        assert!(order.order_id != 1, "one");
    }
    let limit = ConcurrencyLimit::new(1);
    let layers = (
        TraceLayer,
        MetricsLayer,
        Deduplicate::default(),
        CircuitBreaker::new(),
        RateLimit::per_second(1000),
        limit.clone(),
        Retry::attempts(2),
        Timeout::new(Duration::from_secs(10)),
    );
    let service = Service::new("billing").on(sometimes).retry(once()).layer(layers);
    let t = TestBus::start(service).await;
    t.publish(placed(1)).await.publish(placed(2)).await.until_idle().await;
    let counts = t.running().counts()[GROUP];
    assert_eq!((counts.acked, counts.rejected, counts.panicked), (1, 1, 2));
    assert_eq!(limit.running(), 0, "its permit came back");
}
