//! Tests replies and requests that are larger than the bus accepts: both ends get an error with the reason.

use super::*;
use crate::failures::Lines;

const HOUR: Duration = Duration::from_secs(3600);

fn small_bus() -> Bus {
    let mut config = MemoryConfig::default();
    config.max_payload = 4096;
    Bus::with_transport(Arc::new(MemoryTransport::private(config).unwrap()), Default::default()).unwrap()
}

/// Checks the status that a caller gets instead of the reply, which names the limit.
#[track_caller]
fn too_large<E: std::fmt::Debug>(error: CallError<E>) {
    match error {
        CallError::Status(status) => {
            assert_eq!(status.code, Code::ResourceExhausted);
            assert!(status.message.contains("4096"), "{status}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_told_to_the_caller_and_logged_by_the_service() {
    #[derive(Request, Serialize, Deserialize)]
    #[request(name = "files.read", reply = String, error = ReadError)]
    struct Read {
        bytes: usize,
        fail: bool,
    }
    #[derive(Debug, thiserror::Error, Serialize, Deserialize)]
    #[error("refused")]
    struct ReadError(String);
    impl ReplyError for ReadError {}
    async fn read(Req(asked): Req<Read>) -> Result<String, ReadError> {
        let data = "x".repeat(asked.bytes);
        if asked.fail { Err(ReadError(data)) } else { Ok(data) }
    }
    let (lines, _listening) = Lines::listen();
    let bus = small_bus();
    let service = Service::new("files").bus(bus.clone()).reply(read).start().await.unwrap();
    assert_eq!(bus.request(Read { bytes: 4000, fail: false }).await.unwrap().len(), 4000);
    too_large(bus.request(Read { bytes: 4096, fail: false }).timeout(HOUR).await.unwrap_err());
    let line = lines.with("a request failed", 1).await.remove(0);
    assert!(line["error"].contains("4096") && line.contains_key("correlation_id"), "{line:#?}");
    let counts = service.counts()["files.read.v1"];
    assert_eq!((counts.acked, counts.rejected), (1, 1));
    // A request's own error that is too large is reported too.
    too_large(bus.request(Read { bytes: 4096, fail: true }).timeout(HOUR).await.unwrap_err());
    assert_eq!(bus.request(Read { bytes: 1, fail: false }).await.unwrap(), "x", "the service continues");
}

#[tokio::test]
async fn a_chunk_that_is_too_large_ends_the_stream_whatever_the_handler_makes_of_it() {
    async fn careless(out: ReplySink<Ask>, Req(asked): Req<Ask>) -> Result<(), Status> {
        for word in asked.words {
            let chunk = if word == "large" { "x".repeat(5000) } else { word };
            let _ = out.send(Chunk(chunk)).await;
        }
        Ok(())
    }
    let (lines, _listening) = Lines::listen();
    let bus = small_bus();
    let service = Service::new("chat").bus(bus.clone()).reply(careless).start().await.unwrap();
    let words = ["first", "large", "last"].map(str::to_owned).into();
    let mut stream = bus.request(Ask { words, then_fail: false }).timeout(HOUR).stream().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), Chunk("first".into()));
    too_large(stream.next().await.unwrap().unwrap_err());
    assert!(stream.next().await.is_none());
    assert!(lines.with("a request failed", 1).await[0]["error"].contains("4096"));
    let counts = service.counts()["chat.ask.v1"];
    assert_eq!((counts.acked, counts.rejected), (0, 1));
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_before_it_is_sent() {
    let bus = small_bus();
    let service = pricing(&bus).await;
    match bus.request(sku(&"x".repeat(5000))).timeout(HOUR).await.unwrap_err() {
        CallError::Bus(error) => {
            assert_eq!(error.kind(), ErrorKind::TooLarge);
            assert!(error.to_string().contains("4096"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(service.counts()["pricing.get-quote.v1"], Default::default());
}
