//! Cases that kill the library's tasks: no subscription stays without messages while its health is live, and
//! every waiting call ends.

use std::sync::Arc;
use std::time::Duration;

use event_client::subscription::Subscription;
use event_client::testing::{kill, tasks};
use event_client::transport::{Serve, Subscribe, Transport};
use event_client::{Error, ErrorKind};

use crate::case::cases;
use crate::exam::{Exam, open};
use crate::message::{SHORT, With, broadcast, group, keyed, on, subject, text};
use crate::requests::frame;

cases! {
    a_group_outlives_the_death_of_any_task.within(240);
    a_broadcast_outlives_the_death_of_any_task.within(240);
    a_server_outlives_the_death_of_any_task.within(240);
}

/// A service and its bus: a handle or subscription that has ended is opened again.
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

    async fn end(self) -> Result<(), Error> {
        drop(self.subscription);
        self.bus.close().await
    }

    /// Opens a new subscription, on a new handle when the old one has ended; a handle that has ended can be
    /// closed as usual.
    async fn renew(&mut self) {
        loop {
            match self.bus.subscribe(self.spec.clone()).await {
                Ok(subscription) => return self.subscription = subscription,
                Err(error) if error.kind() == ErrorKind::Closed => {
                    let another = self.exam.ok("another handle", open(self.exam.url())).await;
                    self.exam.waits_for("a handle that ended to close");
                    let _ = std::mem::replace(&mut self.bus, another).close().await;
                }
                Err(error) => assert!(error.is_temporary(), "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Publishes a message until it is confirmed.
    async fn publish(&mut self, body: &str) {
        while let Err(error) = self.bus.publish(keyed("k", body)).await {
            if error.kind() == ErrorKind::Closed {
                self.renew().await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Publishes a message and handles it, and opens again a handle or subscription that ends meanwhile.
    async fn round(&mut self, body: &str) {
        self.publish(body).await;
        loop {
            match self.subscription.next().await {
                Some(delivery) => {
                    let ours = text(&delivery) == body;
                    match delivery.ack().await {
                        Ok(()) if ours => return,
                        Ok(()) => {}
                        // It is not known whether the server received the acknowledgement. If it did, the
                        // message is not delivered again.
                        Err(_) => self.publish(body).await,
                    }
                }
                None => {
                    self.renew().await;
                    // A broadcast message is not kept for a subscriber that was away.
                    if self.spec.mode == event_client::transport::Mode::Broadcast {
                        self.publish(body).await;
                    }
                }
            }
        }
    }
}

async fn outlives(exam: &Exam, spec: Subscribe) {
    // Count only the tasks of the handles that this case opens.
    let _ = exam.bus().close().await;
    for name in tasks() {
        kill(name);
    }
    none_is_left(exam, "the exam's own handle").await;
    let mut first = Life::begin(exam, spec.clone()).await;
    first.round("first").await;
    let names = tasks();
    assert!(!names.is_empty(), "the library has no tasks");
    exam.ok("close", first.end()).await;
    none_is_left(exam, "a peaceful end").await;
    for name in names {
        let mut life = Life::begin(exam, spec.clone()).await;
        life.round(&format!("before {name}")).await;
        assert!(kill(name) > 0, "no task {name:?}");
        exam.waits_for(format!("a message to be handled after the death of {name:?}"));
        life.round(&format!("after {name}")).await;
        exam.waits_for(format!("the bus to close after the death of {name:?}"));
        let _ = life.end().await;
        none_is_left(exam, name).await;
    }
}

/// A task that still runs after its bus was closed keeps the connection open, and as a member of the group it
/// takes messages that no handler receives.
async fn none_is_left(exam: &Exam, after: &str) {
    exam.waits_for(format!("the library's tasks to end after {after:?}"));
    while !tasks().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Messages are handled, and confirmed, after the death of any task.
async fn a_group_outlives_the_death_of_any_task(exam: Exam) {
    outlives(&exam, group("free", 4).lease(SHORT)).await;
    outlives(&exam, group("keyed", 4).keyed().lease(SHORT)).await;
}

/// Broadcast messages are delivered after the death of any task.
async fn a_broadcast_outlives_the_death_of_any_task(exam: Exam) {
    outlives(&exam, broadcast()).await;
}

/// Requests are answered after the death of any task, at either end.
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
