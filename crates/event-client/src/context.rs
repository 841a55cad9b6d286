//! The context of the event that a task handles: correlation, causation and trace, copied to every event it emits.

use std::fmt;
use std::future::Future;
use std::str::FromStr;

use smol_str::SmolStr;
use tokio::time::Instant;

use crate::message::MessageId;
use event_transport::error::{Error, ErrorKind, Result};

/// W3C trace context, level 1: a trace and a span in it.
///
/// The text form is `00-<32 hex>-<16 hex>-<2 hex>` (<https://www.w3.org/TR/trace-context/>).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// 128 bits, never zero.
    pub trace_id: u128,
    /// 64 bits, never zero.
    pub span_id: u64,
    /// Bit 0: sampled.
    pub flags: u8,
}

impl TraceParent {
    /// A new trace with its first span, sampled.
    pub fn root() -> Self {
        Self { trace_id: fastrand::u128(1..), span_id: fastrand::u64(1..), flags: 1 }
    }

    /// A new span of the same trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span_id: fastrand::u64(1..), ..self }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // This runs for every published event: a digit table is faster than formatting three numbers.
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = *b"00-________________________________-________________-__";
        let mut spell = |at: usize, length: usize, number: u128| {
            for (place, byte) in text[at..at + length].iter_mut().rev().enumerate() {
                *byte = DIGITS[(number >> (4 * place) & 0xf) as usize];
            }
        };
        spell(3, 32, self.trace_id);
        spell(36, 16, u128::from(self.span_id));
        spell(53, 2, u128::from(self.flags));
        f.write_str(std::str::from_utf8(&text).expect("ASCII"))
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TraceParent {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let mut parts = text.split('-');
            let mut hex = |length: usize| {
                let part = parts.next()?;
                if part.len() != length {
                    return None;
                }
                part.bytes().try_fold(0_u128, |number, byte| {
                    let digit = match byte {
                        b'0'..=b'9' => byte - b'0',
                        b'a'..=b'f' => byte - b'a' + 10,
                        _ => return None,
                    };
                    Some(number << 4 | u128::from(digit))
                })
            };
            let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
            // Later versions may append fields; version ff is forbidden, and version 00 has exactly four fields.
            let whole = parts.next().is_none() || version > 0;
            (version != 0xff && trace_id != 0 && span_id != 0 && whole).then_some(Self {
                trace_id,
                span_id: span_id as u64,
                flags: flags as u8,
            })
        };
        parse().ok_or_else(|| Error::new(ErrorKind::Decode, "not a W3C traceparent"))
    }
}

/// Correlation, causation and trace that the library writes into every event emitted now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The id of the event that started the flow to which the handled event belongs.
    pub correlation: MessageId,
    /// The id of the event being handled: the direct cause of the emitted events.
    pub causation: MessageId,
    /// The handler's own span.
    pub trace: TraceParent,
    /// Vendor state of that trace (`tracestate`), passed on unchanged.
    pub tracestate: Option<SmolStr>,
}

tokio::task_local! {
    static CURRENT: (Context, Option<Instant>);
}

/// The deadline of the request that this task handles: after it the caller no longer waits for the reply.
pub fn deadline() -> Option<Instant> {
    CURRENT.try_with(|(_, deadline)| *deadline).ok().flatten()
}

/// The longest `x-request-id` that becomes a correlation id, in bytes; a longer one is ignored.
const LONGEST_REQUEST_ID: usize = 128;

impl Context {
    /// The context of work that no event caused: a new flow and a new trace.
    ///
    /// The flow's id stands as the cause of its first events, which [`Context::causation`] cannot leave out.
    pub fn root() -> Self {
        let id = MessageId::now();
        Self { correlation: id.clone(), causation: id, trace: TraceParent::root(), tracestate: None }
    }

    /// The context of an HTTP request, from its headers: `traceparent` and `tracestate`
    /// (<https://www.w3.org/TR/trace-context/>) continue the caller's trace with a new span, `x-request-id` is the
    /// correlation id. A header that is missing or malformed is replaced as in [`Context::root`].
    ///
    /// ```
    /// # use event_client::context::Context;
    /// let headers = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("x-request-id", "req-78")];
    /// let context = Context::from_headers(|name| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value));
    /// assert_eq!(context.correlation.to_string(), "req-78");
    /// assert!(context.trace.to_string().starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
    /// ```
    ///
    /// An axum middleware gives every event, request, staged event and log record of a request this context:
    ///
    /// ```ignore
    /// async fn trace(request: Request, next: Next) -> Response {
    ///     let headers = request.headers().clone();
    ///     let context = Context::from_headers(|name| headers.get(name)?.to_str().ok());
    ///     context.scope(next.run(request)).await
    /// }
    /// ```
    pub fn from_headers<'h>(header: impl Fn(&str) -> Option<&'h str>) -> Self {
        let mut context = Self::root();
        if let Some(trace) = header("traceparent").and_then(|text| text.parse::<TraceParent>().ok()) {
            context.trace = trace.child();
            context.tracestate = header("tracestate").map(SmolStr::new);
        }
        let printable = |id: &&str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic());
        if let Some(id) = header("x-request-id").filter(|id| id.len() <= LONGEST_REQUEST_ID).filter(printable)
        {
            context.correlation = id.into();
            context.causation = context.correlation.clone();
        }
        context
    }

    /// Returns the context of the event that this task handles, if it handles one.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|(context, _)| context.clone()).ok()
    }

    /// Runs `future` in this context.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope((self, None), future)
    }

    /// Runs `future` in this context, with a deadline for every request that `future` makes.
    pub fn scope_until<F: Future>(self, deadline: Instant, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope((self, Some(deadline)), future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_headers_start_a_flow_and_a_trace() {
        let long = "x".repeat(LONGEST_REQUEST_ID + 1);
        for id in ["", "a b", "a\tb", "\u{e9}", &long] {
            let context = Context::from_headers(|name| match name {
                "traceparent" => Some("00-0-0-01"),
                "tracestate" => Some("vendor=1"),
                _ => Some(id),
            });
            assert_ne!(context.correlation.to_string(), id);
            assert_eq!(context.tracestate, None, "the state belongs to the trace that was refused");
        }
    }

    #[test]
    fn the_specification_s_own_examples() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(text.parse::<TraceParent>().unwrap().to_string(), text);
        for bad in [
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "",
        ] {
            assert!(bad.parse::<TraceParent>().is_err(), "{bad}");
        }
        assert!(
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later".parse::<TraceParent>().is_ok()
        );
    }

    proptest! {
        #[test]
        fn every_trace_comes_back_as_the_specification_spells_it(trace_id in 1_u128.., span_id in 1_u64.., flags: u8) {
            let trace = TraceParent { trace_id, span_id, flags };
            prop_assert_eq!(trace.to_string(), format!("00-{trace_id:032x}-{span_id:016x}-{flags:02x}"));
            prop_assert_eq!(trace.to_string().parse::<TraceParent>().unwrap(), trace);
        }

        #[test]
        fn parsing_never_panics(text in ".{0,80}") {
            let _ = text.parse::<TraceParent>();
        }
    }
}
