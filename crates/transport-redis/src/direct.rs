//! A send that a caller starts on its own thread, and that the sending task completes.
//!
//! When nothing else waits or is in flight, waking the task first would cost one more task switch for each single
//! publish or settlement.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::Notify;

use event_transport::sync::lock;

/// Commands that are being sent; the output has their replies.
pub(super) type Sending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The place of at most one send that was started directly.
pub(super) struct Direct<T> {
    sending: Mutex<Option<Sending<T>>>,
    ready: Notify,
}

impl<T: Send + 'static> Direct<T> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { sending: Mutex::new(None), ready: Notify::new() })
    }

    /// Polls the send once, which passes its commands to the connection. Returns its output if it has ended; otherwise
    /// keeps it for the task.
    pub(super) fn start(self: &Arc<Self>, mut sending: Sending<T>) -> Option<T> {
        let waker = Waker::from(self.clone());
        // Locked until the send is stored: the task may be woken before that.
        let mut place = lock(&self.sending);
        match sending.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(sent) => Some(sent),
            Poll::Pending => {
                *place = Some(sending);
                None
            }
        }
    }

    /// Waits until the task has to poll the send that [`take`](Self::take) returns.
    pub(super) async fn ready(&self) {
        self.ready.notified().await;
    }

    pub(super) fn take(&self) -> Option<Sending<T>> {
        lock(&self.sending).take()
    }
}

impl<T: Send + 'static> Wake for Direct<T> {
    fn wake(self: Arc<Self>) {
        self.ready.notify_one();
    }
}
