//! What the tests of each broker start from: a bus by its URL, a message, a group.

use std::sync::Arc;

use event_client::message::Message;
use event_client::subject::{Group, Pattern, Subject};
use event_client::transport::{self, Subscribe, Transport};
use event_client::{ErrorKind, Result};

pub(crate) async fn open(url: &str) -> Result<Arc<dyn Transport>> {
    transport::open(url.parse()?).await
}

/// Opening it must be refused as `kind`, and say `word`.
pub(crate) async fn refused(url: &str, kind: ErrorKind, word: &str) {
    let error = open(url).await.expect_err("it should be refused");
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(error.to_string().contains(word), "{error}");
}

pub(crate) fn message(subject: &str, text: &str) -> Message {
    Message::new(Subject::new(subject).expect("a subject"), "text/plain", text.to_owned())
}

/// A group that takes a few messages ahead.
pub(crate) fn group(name: &str, pattern: &str) -> Subscribe {
    let mut spec =
        Subscribe::group(Group::new(name).expect("a group"), [Pattern::new(pattern).expect("a pattern")]);
    spec.credit = 8;
    spec
}
