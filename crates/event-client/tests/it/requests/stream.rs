//! Tests replies in chunks: order, errors after chunks, readers that leave.

use super::*;

async fn ask(out: ReplySink<Ask>, Req(asked): Req<Ask>) -> Result<(), ChatError> {
    for word in asked.words {
        out.send(Chunk(word)).await.map_err(|_| ChatError)?;
    }
    if asked.then_fail { Err(ChatError) } else { Ok(()) }
}

fn words(words: &[&str], then_fail: bool) -> Ask {
    Ask { words: words.iter().map(ToString::to_string).collect(), then_fail }
}

#[tokio::test]
async fn chunks_arrive_in_order_and_end() {
    let bus = memory();
    let _service = Service::new("chat").bus(bus.clone()).reply(ask).start().await.unwrap();
    let all: Vec<_> = bus.request(words(&["a", "b", "c"], false)).stream().await.unwrap().collect().await;
    let all: Vec<_> = all.into_iter().map(Result::unwrap).collect();
    assert_eq!(all, ["a", "b", "c"].map(|word| Chunk(word.into())));
    // An empty stream ends without an error.
    let all: Vec<_> = bus.request(words(&[], false)).stream().await.unwrap().collect().await;
    assert!(all.is_empty());
    // More chunks than any buffer holds.
    let many = Ask { words: (0..1000).map(|n| n.to_string()).collect(), then_fail: false };
    assert_eq!(bus.request(many).stream().await.unwrap().count().await, 1000);
}

#[tokio::test]
async fn an_error_may_come_after_chunks_or_instead_of_them() {
    let bus = memory();
    let _service = Service::new("chat").bus(bus.clone()).reply(ask).start().await.unwrap();
    let mut stream = bus.request(words(&["a"], true)).stream().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), Chunk("a".into()));
    assert!(matches!(stream.next().await, Some(Err(CallError::Remote(ChatError)))));
    assert!(stream.next().await.is_none());
    let error = bus.request(words(&[], true)).stream().await.unwrap_err();
    assert!(matches!(error, CallError::Remote(ChatError)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_stops_the_service_and_its_deadline_ends_it() {
    async fn forever(
        State(seen): State<Dropped>,
        out: ReplySink<Ask>,
        Req(_): Req<Ask>,
    ) -> Result<(), Status> {
        let _held = seen;
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            out.send(Chunk("more".into())).await.map_err(|error| Status::from(&error))?;
        }
    }
    let bus = memory();
    let dropped = Arc::new(Notify::new());
    let service = Service::new("chat").bus(bus.clone()).reply(forever);
    let service = service.with_state(Dropped(dropped.clone())).start().await.unwrap();
    let mut stream = bus.request(words(&[], false)).stream().await.unwrap();
    stream.next().await.unwrap().unwrap();
    let start = Instant::now();
    drop(stream);
    dropped.notified().await;
    assert!(start.elapsed() <= Duration::from_millis(100), "{:?}", start.elapsed());

    let stream = bus.request(words(&[], false)).timeout(Duration::from_secs(1)).stream().await.unwrap();
    let mut all: Vec<_> = stream.collect().await;
    assert!(matches!(all.pop(), Some(Err(CallError::Deadline { .. }))));
    assert!((8..=10).contains(&all.len()), "{}", all.len());
    dropped.notified().await;
    tokio::task::yield_now().await;
    assert_eq!(service.counts()["chat.ask.v1"].released, 2);
}
