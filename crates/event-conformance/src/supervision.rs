//! Whatever task of the library dies: nothing is deaf while it says that it is live, and who waits is told.

use std::sync::Arc;
use std::time::Duration;

use event_client::ErrorKind;
use event_client::subscription::Subscription;
use event_client::testing::{kill, tasks};
use event_client::transport::{Serve, Subscribe, Transport};

use crate::case::cases;
use crate::exam::{Exam, open};
use crate::message::{SHORT, With, broadcast, group, keyed, on, subject, text};
use crate::requests::frame;

cases! {
    // Not kept by NATS yet: after the death of a group's fetching task the next message did not come within minutes. The
    // cause is not proven; pull requests that the dead task left at the server may take it.
    a_group_outlives_the_death_of_any_task.when(|can| can.name != "nats").within(600);
    a_broadcast_outlives_the_death_of_any_task.within(600);
    a_server_outlives_the_death_of_any_task.within(600);
}

/// A service as it lives with its bus: what ended is opened again.
struct Life<'a> {
    exam: &'a Exam,
    spec: Subscribe,
    bus: Arc<dyn Transport>,
    subscription: Subscription,
}

impl<'a> Life<'a> {
    async fn begin(exam: &'a Exam, spec: Subscribe) -> Self {
        let bus = exam.ok("a handle", open(exam.url())).await;
        let subscription = exam.ok("a subscription", bus.subscribe(spec.clone())).await;
        Self { exam, spec, bus, subscription }
    }

    /// Opens again what has ended.
    async fn renew(&mut self) {
        loop {
            match self.bus.subscribe(self.spec.clone()).await {
                Ok(subscription) => return self.subscription = subscription,
                Err(error) if error.kind() == ErrorKind::Closed => {
                    self.bus = self.exam.ok("another handle", open(self.exam.url())).await;
                }
                Err(error) => assert!(error.is_temporary(), "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Publishes a message and handles it, whatever has ended meanwhile.
    async fn round(&mut self, body: &str) {
        while let Err(error) = self.bus.publish(keyed("k", body)).await {
            if error.kind() == ErrorKind::Closed {
                self.renew().await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        loop {
            match self.subscription.next().await {
                // What was not confirmed comes again; a broadcast has nothing to confirm.
                Some(delivery) => {
                    let ours = text(&delivery) == body;
                    if delivery.ack().await.is_ok() && ours {
                        return;
                    }
                }
                None => {
                    self.renew().await;
                    // Nobody keeps a broadcast for who was away.
                    if self.spec.mode == event_client::transport::Mode::Broadcast {
                        let _ = self.bus.publish(keyed("k", body)).await;
                    }
                }
            }
        }
    }
}

async fn outlives(exam: &Exam, spec: Subscribe) {
    let mut first = Life::begin(exam, spec.clone()).await;
    first.round("first").await;
    let names = tasks();
    assert!(!names.is_empty(), "the library has no tasks");
    // As a member of the same group it would take messages that nobody handles.
    drop(first.subscription);
    exam.ok("close", first.bus.close()).await;
    for name in names {
        let mut life = Life::begin(exam, spec.clone()).await;
        life.round(&format!("before {name}")).await;
        assert!(kill(name) > 0, "no task {name:?}");
        exam.waits_for(format!("a message to be handled after the death of {name:?}"));
        life.round(&format!("after {name}")).await;
        exam.waits_for(format!("the bus to close after the death of {name:?}"));
        drop(life.subscription);
        let _ = life.bus.close().await;
    }
}

/// Messages are handled, and confirmed, after any death.
async fn a_group_outlives_the_death_of_any_task(exam: Exam) {
    outlives(&exam, group("free", 4).lease(SHORT)).await;
    outlives(&exam, group("keyed", 4).keyed().lease(SHORT)).await;
}

/// Messages arrive after any death.
async fn a_broadcast_outlives_the_death_of_any_task(exam: Exam) {
    outlives(&exam, broadcast()).await;
}

/// Requests are answered after any death, at either end.
async fn a_server_outlives_the_death_of_any_task(exam: Exam) {
    let url = exam.url().to_owned();
    let server = tokio::spawn(async move {
        let mut bus = open(&url).await.expect("a handle");
        loop {
            let spec = Serve::new("shop", vec![subject("shop.quote")], 8);
            match bus.requests().serve(spec).await {
                Ok(mut incoming) => {
                    while let Some(mut request) = incoming.recv().await {
                        let _ = request.responder.send(frame("here", true)).await;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Closed => {
                    bus = open(&url).await.expect("another handle");
                }
                Err(error) => assert!(error.is_temporary(), "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut caller = exam.ok("a handle", open(exam.url())).await;
    let mut names = Vec::new();
    let mut next = 0;
    loop {
        let answered = match caller.requests().call(on("shop.quote", "?"), Duration::from_secs(5)).await {
            Ok(mut replies) => matches!(replies.next().await, Some(Ok(_))),
            Err(error) if error.kind() == ErrorKind::Closed => {
                caller = exam.ok("another handle", open(exam.url())).await;
                false
            }
            Err(_) => false,
        };
        if !answered {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        if names.is_empty() {
            names = tasks();
        }
        let Some(name) = names.get(next) else { break };
        kill(name);
        exam.waits_for(format!("an answer after the death of {name:?}"));
        next += 1;
    }
    server.abort();
}
