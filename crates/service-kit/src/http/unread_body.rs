//! Reads and discards the part of a request's body that a handler did not read.
//!
//! If a connection is closed while bytes still arrive, TCP resets it, and the reset can overtake the response: a
//! sender that was refused in the middle of its body would get a connection error instead of the status. So the rest
//! is read first.

use axum::body::{Body, BodyDataStream, Bytes, HttpBody as _};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use futures_util::StreamExt as _;
use futures_util::stream::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::timeout;

/// Maximum number of bytes that are read and discarded.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// Longest wait for all of it and, below, for one piece: a sender that sends nothing can receive the response.
const WHOLE: Duration = Duration::from_secs(10);
const PIECE: Duration = Duration::from_secs(1);

/// The unread part of a body; `None` when there is no body.
pub(super) struct UnreadBody(Option<Shared>);

#[derive(Clone)]
struct Shared(Arc<Mutex<Unread>>);

struct Unread {
    body: BodyDataStream,
    ended: bool,
    /// Whether the sender waits for `100 Continue`, which the first read sends.
    waits: bool,
}

impl UnreadBody {
    /// Returns the request with a body that reads from the shared state kept here.
    pub(super) fn of(request: Request) -> (Request, Self) {
        if request.body().is_end_stream() {
            return (request, Self(None));
        }
        let waits = request.headers().contains_key(header::EXPECT);
        let (parts, body) = request.into_parts();
        let unread = Unread { body: body.into_data_stream(), ended: false, waits };
        let shared = Shared(Arc::new(Mutex::new(unread)));
        let reading = shared.clone();
        let body = Body::from_stream(poll_fn(move |context| reading.poll(context)));
        (Request::from_parts(parts, body), Self(Some(shared)))
    }

    /// Reads the rest, within the limits, unless the response is 408 or an upgrade, or the sender waits for `100
    /// Continue`.
    pub(super) async fn discard(self, status: StatusCode) {
        let Self(Some(shared)) = self else { return };
        let done = {
            let unread = shared.lock();
            unread.ended || unread.waits
        };
        if done || status == StatusCode::REQUEST_TIMEOUT || status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let all = async {
            let mut left = MOST_BYTES;
            while let Ok(Some(Ok(piece))) = timeout(PIECE, poll_next(&shared)).await {
                let Some(less) = left.checked_sub(piece.len()) else { return };
                left = less;
            }
        };
        // Bytes that do not arrive in time are lost when the connection closes.
        drop(timeout(WHOLE, all).await);
    }
}

async fn poll_next(shared: &Shared) -> Option<Result<Bytes, axum::Error>> {
    std::future::poll_fn(|context| shared.poll(context)).await
}

impl Shared {
    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::Error>>> {
        let mut unread = self.lock();
        unread.waits = false;
        if unread.ended {
            return Poll::Ready(None);
        }
        let polled = unread.body.poll_next_unpin(context);
        unread.ended = matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Unread> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
