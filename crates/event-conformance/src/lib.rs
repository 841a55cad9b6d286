//! The exam, the conformance test suite for transports: each sentence of the contract is at least one named
//! case.
//!
//! ```text
//!   Fixture ── fresh storage ──▶ Exam (handles, helpers) ──▶ Case `redelivery::unacked_message_returns`
//! ```
//!
//! A case runs alone on its own storage, directly on the transport, once: a failing case is not run again. It
//! waits for signals; when a signal does not arrive, the case fails at its deadline and reports the step that
//! it was waiting for.
//!
//! Optional abilities of a transport are in its [`Capabilities`](event_client::transport::Capabilities). The
//! cases of an ability that is not declared are skipped *by name*, and in their place a case shows that the
//! ability is refused with [`ErrorKind::Unsupported`](event_client::ErrorKind::Unsupported).
//!
//! A transport runs the exam by passing a [`Fixture`] to [`cases`]; a program that starts itself as a second
//! process calls [`play_if_asked`] first in `main`.

mod case;
mod exam;
mod fixture;
mod message;
mod process;

mod admin;
mod broadcast;
mod chaos;
mod close;
mod competing;
mod crash;
mod dead_letter;
mod dedup;
mod delay;
mod drain;
mod events;
mod expiry;
mod extremes;
mod fan_out;
mod faults;
mod filters;
mod headers;
mod lease;
mod limits;
mod ordering;
mod plain;
mod provision;
mod publish;
mod redelivery;
mod request_faults;
mod requests;
mod settle;
mod start;
mod streaming;
mod supervision;
mod wildcard;

pub use case::{Case, capabilities};
pub use exam::Exam;
pub use fixture::{Fixture, Server, Settings, Storage};
pub use process::play_if_asked;

/// Returns all cases, in the order of the contract.
pub fn cases() -> Vec<Case> {
    [
        publish::cases(),
        fan_out::cases(),
        competing::cases(),
        start::cases(),
        provision::cases(),
        filters::cases(),
        ordering::cases(),
        settle::cases(),
        redelivery::cases(),
        lease::cases(),
        delay::cases(),
        expiry::cases(),
        dedup::cases(),
        dead_letter::cases(),
        wildcard::cases(),
        headers::cases(),
        events::cases(),
        plain::cases(),
        limits::cases(),
        extremes::cases(),
        broadcast::cases(),
        requests::cases(),
        streaming::cases(),
        drain::cases(),
        close::cases(),
        admin::cases(),
        crash::cases(),
        chaos::cases(),
        faults::cases(),
        request_faults::cases(),
        supervision::cases(),
    ]
    .concat()
}
