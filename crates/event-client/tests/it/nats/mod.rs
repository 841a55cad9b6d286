//! The NATS transport against real servers: what it refuses, what comes from elsewhere, what other clients see.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use event_client::message::Message;
use event_client::subject::{Group, Pattern, Subject};
use event_client::transport::{self, Subscribe, Transport};
use event_client::{ErrorKind, Result};
use test_servers::{Generation, Nats};

mod foreign;
mod logins;
mod refusals;
mod rights;

/// The shared server with a namespace of this test's own.
async fn shared() -> (String, String) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let namespace = format!("it-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let server = Nats::shared(Generation::Old).await;
    (format!("{}?namespace={namespace}", server.url()), namespace)
}

async fn open(url: &str) -> Result<Arc<dyn Transport>> {
    transport::open(url.parse()?).await
}

/// Opening it must be refused as `kind`, and say `word`.
async fn refused(url: &str, kind: ErrorKind, word: &str) {
    let error = open(url).await.expect_err("it should be refused");
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(error.to_string().contains(word), "{error}");
}

fn message(subject: &str, text: &str) -> Message {
    Message::new(Subject::new(subject).expect("a subject"), "text/plain", text.to_owned())
}

fn group(name: &str, pattern: &str) -> Subscribe {
    let mut spec =
        Subscribe::group(Group::new(name).expect("a group"), [Pattern::new(pattern).expect("a pattern")]);
    spec.credit = 8;
    spec
}

/// A plain client.
async fn plain(url: &str) -> async_nats::Client {
    async_nats::connect(url.split('?').next().expect("a URL")).await.expect("connected")
}
