//! Reports messages that are skipped because another kind of publisher made their subject.

use event_transport::subject::Group;

/// Logs and counts a message whose subject no publisher of this library can have made.
pub(super) fn foreign(group: &Group, subject: &str, position: u64) {
    tracing::warn!(
        group = %group, nats_subject = subject, position,
        "a message was skipped: its subject is not valid in this library, which accepts tokens of a-z 0-9 _ -"
    );
    metrics::counter!("event_client_foreign_subjects_total", "transport" => "nats").increment(1);
}
