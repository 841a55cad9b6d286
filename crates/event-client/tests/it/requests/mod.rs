//! Tests requests: typed replies and errors, deadlines that are passed on, members that take turns, replies
//! in chunks.

mod health;
mod large;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use event_client::context::Context;
use event_client::request::{CallError, ReplyError};
use event_client::service::{Deadline, Handler, ReplySink, Req, Running, Service, State};
use event_client::status::{Code, Status};
use event_client::transport::{MemoryConfig, MemoryTransport};
use event_client::{Bus, ErrorKind, Request};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

#[derive(Request, Serialize, Deserialize, Clone, Debug)]
#[request(name = "pricing.get-quote", reply = Quote, error = QuoteError, idempotent)]
pub(crate) struct GetQuote {
    pub(crate) sku: String,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
pub(crate) struct Quote {
    pub(crate) cents: i64,
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize, PartialEq)]
pub(crate) enum QuoteError {
    #[error("no such sku: {0}")]
    Unknown(String),
}

impl ReplyError for QuoteError {
    fn code(&self) -> Code {
        Code::NotFound
    }
}

#[derive(Request, Serialize, Deserialize)]
#[request(name = "chat.ask", reply = Chunk, error = ChatError, stream)]
struct Ask {
    words: Vec<String>,
    then_fail: bool,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Chunk(String);

#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize, PartialEq)]
#[error("out of credits")]
struct ChatError;
impl ReplyError for ChatError {}

/// Signals when it is dropped: shows that the work was cancelled.
#[derive(Clone, Default)]
struct Dropped(Arc<Notify>);
impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

pub(crate) fn memory() -> Bus {
    let transport = MemoryTransport::private(MemoryConfig::default()).unwrap();
    Bus::with_transport(Arc::new(transport), Default::default()).unwrap()
}

pub(crate) fn sku(sku: &str) -> GetQuote {
    GetQuote { sku: sku.into() }
}

pub(crate) async fn quote(Req(asked): Req<GetQuote>) -> Result<Quote, QuoteError> {
    match asked.sku.as_str() {
        "tea" => Ok(Quote { cents: 250 }),
        "panic" => panic!("the secret is 42"),
        _ => Err(QuoteError::Unknown(asked.sku)),
    }
}

async fn pricing(bus: &Bus) -> Running {
    Service::new("pricing").bus(bus.clone()).reply(quote).start().await.unwrap()
}

#[tokio::test]
async fn answers_and_typed_errors_come_back_as_values() {
    let bus = memory();
    let service = pricing(&bus).await;
    assert_eq!(bus.request(sku("tea")).await.unwrap(), Quote { cents: 250 });
    match bus.request(sku("gold")).await {
        Err(error @ CallError::Remote(QuoteError::Unknown(_))) => {
            assert_eq!((error.code(), error.code().http()), (Code::NotFound, 404));
            assert_eq!(error.to_string(), "no such sku: gold");
        }
        other => panic!("{other:?}"),
    }
    let counts = service.counts()["pricing.get-quote.v1"];
    assert_eq!((counts.acked, counts.rejected), (1, 1));
    assert!(service.is_ready());
    service.drain().await.unwrap();
}

#[tokio::test]
async fn answers_come_in_the_encoding_of_the_question() {
    let bus = memory();
    let _service = pricing(&bus).await;
    let settings = event_client::bus::Settings {
        codec: event_client::codec::Codec::MsgPack,
        mode: event_client::envelope::Mode::Binary,
        ..Default::default()
    };
    let other = bus.with_settings(settings).unwrap();
    assert_eq!(other.request(sku("tea")).await.unwrap(), Quote { cents: 250 });
    assert!(matches!(other.request(sku("x")).await, Err(CallError::Remote(QuoteError::Unknown(_)))));
}

#[tokio::test(start_paused = true)]
async fn nobody_there_is_known_at_once() {
    let bus = memory();
    let start = Instant::now();
    let error = bus.request(sku("tea")).await.unwrap_err();
    assert!(matches!(error, CallError::NoResponder { .. }), "{error:?}");
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.to_string().contains("pricing.get-quote.v1"), "{error}");
    assert_eq!(start.elapsed(), Duration::ZERO);

    // The same after the last member has left.
    let service = pricing(&bus).await;
    bus.request(sku("tea")).await.unwrap();
    service.drain().await.unwrap();
    assert!(matches!(bus.request(sku("tea")).await, Err(CallError::NoResponder { .. })));
}

#[tokio::test]
async fn members_of_a_service_take_turns() {
    #[derive(Request, Serialize, Deserialize)]
    #[request(name = "who.am-i", reply = usize)]
    struct WhoAmI {}
    async fn who(State(me): State<usize>, Req(_): Req<WhoAmI>) -> Result<usize, Status> {
        Ok(me)
    }
    let bus = memory();
    let mut members = Vec::new();
    for me in 0..3 {
        let member = Service::new("who").bus(bus.clone()).reply(who).with_state(me);
        members.push(member.start().await.unwrap());
    }
    let mut answered = [0; 3];
    for _ in 0..9 {
        answered[bus.request(WhoAmI {}).await.unwrap()] += 1;
    }
    assert_eq!(answered, [3; 3]);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_travels_and_the_work_is_dropped() {
    async fn slow(
        State(seen): State<Dropped>,
        deadline: Deadline,
        Req(_): Req<GetQuote>,
    ) -> Result<Quote, Status> {
        assert!(deadline.left().unwrap() <= Duration::from_millis(800));
        let _held = seen;
        std::future::pending().await
    }
    let bus = memory();
    let dropped = Arc::new(Notify::new());
    let service = Service::new("pricing").bus(bus.clone()).reply(slow);
    let service = service.with_state(Dropped(dropped.clone())).start().await.unwrap();
    let start = Instant::now();
    let error = bus.request(sku("tea")).timeout(Duration::from_millis(800)).await.unwrap_err();
    assert!(matches!(error, CallError::Deadline { .. }), "{error:?}");
    assert_eq!(error.to_string(), "`pricing.get-quote.v1` did not answer within 800ms");
    assert_eq!(start.elapsed().as_millis() / 10, 80);
    dropped.notified().await;
    tokio::task::yield_now().await;
    assert_eq!(service.counts()["pricing.get-quote.v1"].released, 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_stops_the_work() {
    async fn slow(State(seen): State<Dropped>, Req(_): Req<GetQuote>) -> Result<Quote, Status> {
        let _held = seen;
        std::future::pending().await
    }
    let bus = memory();
    let dropped = Arc::new(Notify::new());
    let service = Service::new("pricing").bus(bus.clone()).reply(slow);
    let _service = service.with_state(Dropped(dropped.clone())).start().await.unwrap();
    let start = Instant::now();
    let call = tokio::time::timeout(Duration::from_millis(10), bus.request(sku("tea")));
    call.await.unwrap_err();
    dropped.notified().await;
    assert!(start.elapsed() < Duration::from_secs(1), "long before the deadline of 5 s");
}

#[tokio::test(start_paused = true)]
async fn a_call_made_while_handling_inherits_what_is_left_and_the_flow() {
    #[derive(Request, Serialize, Deserialize)]
    #[request(name = "shop.checkout", reply = (u64, String))]
    struct Checkout {}
    #[derive(Request, Serialize, Deserialize)]
    #[request(name = "shop.stock", reply = (u64, String))]
    struct Stock {}

    async fn checkout(bus: Bus, Req(_): Req<Checkout>) -> Result<(u64, String), Status> {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // The call has a timeout of a minute, but only 700 ms remain.
        let call = bus.request(Stock {}).timeout(Duration::from_secs(60));
        call.await.map_err(|error| error.to_status())
    }
    async fn stock(
        context: Context,
        deadline: Deadline,
        Req(_): Req<Stock>,
    ) -> Result<(u64, String), Status> {
        Ok((deadline.left().unwrap().as_millis() as u64, context.correlation.to_string()))
    }
    let bus = memory();
    let service = Service::new("shop").bus(bus.clone()).reply(checkout).reply(stock);
    let _service = service.start().await.unwrap();
    let flow = Context {
        correlation: "the-flow".into(),
        causation: "the-cause".into(),
        trace: event_client::context::TraceParent::root(),
        tracestate: None,
    };
    let call = bus.request(Checkout {}).timeout(Duration::from_secs(1)).context(flow);
    let (left, correlation) = call.await.unwrap();
    assert!((600..=700).contains(&left), "{left}");
    assert_eq!(correlation, "the-flow");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_has_passed_sends_nothing() {
    let bus = memory();
    let asked = Arc::new(AtomicUsize::new(0));
    async fn count(State(asked): State<Arc<AtomicUsize>>, Req(_): Req<GetQuote>) -> Result<Quote, Status> {
        asked.fetch_add(1, Ordering::Relaxed);
        Ok(Quote { cents: 1 })
    }
    let service = Service::new("pricing").bus(bus.clone()).reply(count).with_state(asked.clone());
    let _service = service.start().await.unwrap();
    let error = bus.request(sku("tea")).timeout(Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, CallError::Deadline { within: Duration::ZERO, .. }), "{error:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    bus.request(sku("tea")).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_panic_answers_internal_and_harms_nobody_else() {
    let bus = memory();
    let service = Service::new("pricing").bus(bus.clone()).reply(quote.concurrency(1)).start().await.unwrap();
    let error = bus.request(sku("panic")).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    assert!(!error.to_string().contains("42"), "a panic's text stays at home: {error}");
    assert_eq!(bus.request(sku("tea")).await.unwrap(), Quote { cents: 250 });
    let counts = service.counts()["pricing.get-quote.v1"];
    assert_eq!((counts.panicked, counts.rejected, counts.acked), (1, 1, 1));
}

#[tokio::test]
async fn what_cannot_be_decoded_answers_invalid_argument() {
    #[derive(Request, Serialize, Deserialize)]
    #[request(name = "pricing.get-quote", reply = Quote, error = QuoteError)]
    struct OtherShape {
        amount: f64,
    }
    let bus = memory();
    let _service = pricing(&bus).await;
    match bus.request(OtherShape { amount: 0.5 }).await {
        Err(CallError::Status(status)) => {
            assert_eq!(status.code, Code::InvalidArgument);
            assert!(status.message.contains("sku"), "names the missing field: {status}");
        }
        other => panic!("{other:?}"),
    }
    // A reply that the caller cannot decode.
    #[derive(Request, Serialize, Deserialize)]
    #[request(name = "pricing.get-quote", reply = Vec<u8>, error = QuoteError)]
    struct OtherReply {
        sku: String,
    }
    match bus.request(OtherReply { sku: "tea".into() }).await {
        Err(CallError::Bus(error)) => assert_eq!(error.kind(), ErrorKind::Decode),
        other => panic!("{other:?}"),
    }
    // Invalid JSON instead of an envelope.
    let subject = event_client::subject::Subject::new("pricing.get-quote.v1").unwrap();
    let garbage = event_client::message::Message::new(subject, "application/cloudevents+json", "{{{");
    let mut replies = bus.transport().requests().call(garbage, Duration::from_secs(1)).await.unwrap();
    let frame = replies.next().await.unwrap().unwrap();
    assert_eq!((frame.headers.get("status"), frame.last), (Some("INVALID_ARGUMENT"), true));
}

#[tokio::test]
async fn any_error_becomes_the_status_that_fits() {
    #[derive(Request, Serialize, Deserialize)]
    #[request(name = "fail.as", reply = ())]
    struct FailAs {
        how: String,
    }
    async fn fail(Req(asked): Req<FailAs>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Err(asked.how.into())
    }
    async fn fail_status(Req(_): Req<GetQuote>) -> Result<Quote, Status> {
        Err(Status::resource_exhausted("50 % used — bitte warten")
            .with_details(serde_json::json!({"after_s": 7})))
    }
    let bus = memory();
    let service = Service::new("fail").bus(bus.clone()).reply(fail).reply(fail_status);
    let _service = service.start().await.unwrap();
    let error = bus.request(FailAs { how: "disk".into() }).await.unwrap_err();
    assert_eq!((error.code(), error.to_string().as_str()), (Code::Internal, "INTERNAL: disk"));
    match bus.request(sku("x")).await.unwrap_err() {
        CallError::Status(status) => {
            assert_eq!(status.message, "50 % used — bitte warten");
            assert_eq!(status.details.unwrap()["after_s"], 7);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn concurrency_bounds_what_runs_at_a_time() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    async fn busy(Req(_): Req<GetQuote>) -> Result<Quote, Status> {
        let now = RUNNING.fetch_add(1, Ordering::SeqCst) + 1;
        MOST.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        Ok(Quote { cents: 1 })
    }
    let bus = memory();
    let service = Service::new("pricing").bus(bus.clone()).reply(busy.concurrency(3));
    let service = service.start().await.unwrap();
    let calls = (0..20).map(|_| async { bus.request(sku("tea")).await.unwrap() });
    futures_util::future::join_all(calls).await;
    assert_eq!(MOST.load(Ordering::SeqCst), 3);
    assert_eq!(service.counts()["pricing.get-quote.v1"].acked, 20);
}

#[tokio::test]
async fn bad_settings_are_refused_at_the_start() {
    let bus = memory();
    let start = |service: Service| service.bus(bus.clone()).start();
    let error = start(Service::new("pricing").reply(quote.keyed())).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("concurrency"), "{error}");
    let error = start(Service::new("pricing").reply(quote).reply(quote)).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Config && error.to_string().contains("two handlers answer"),
        "{error}"
    );
    let error = bus.request(sku("tea")).header("bad name", "x").await.unwrap_err();
    assert!(matches!(&error, CallError::Bus(error) if error.kind() == ErrorKind::InvalidName), "{error}");
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_what_runs_and_turns_others_away() {
    let started = Arc::new(Notify::new());
    async fn slow(State(started): State<Arc<Notify>>, Req(_): Req<GetQuote>) -> Result<Quote, Status> {
        started.notify_one();
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(Quote { cents: 9 })
    }
    let bus = memory();
    let service = Service::new("pricing").bus(bus.clone()).reply(slow).with_state(started.clone());
    let service = service.start().await.unwrap();
    let asking = tokio::spawn({
        let bus = bus.clone();
        async move { bus.request(sku("tea")).await }
    });
    started.notified().await;
    let (drained, refused) = tokio::join!(service.drain(), async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        bus.request(sku("tea")).await
    });
    drained.unwrap();
    assert!(matches!(refused, Err(CallError::NoResponder { .. })), "{refused:?}");
    assert_eq!(asking.await.unwrap().unwrap(), Quote { cents: 9 });
}
