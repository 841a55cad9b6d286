//! A client: sends requests through layers to the bus.

use std::fmt;
use std::sync::Arc;

use tower::ServiceExt;
use tower::util::BoxCloneSyncService;
use tower_layer::Layer;

use super::send::{BoxCall, Outgoing, Sender, send};
use super::{Answer, Call, Request};
use crate::bus::Connection;

/// Sends requests through layers such as [`Timeout`](crate::layers::Timeout) and
/// [`CircuitBreaker`](crate::layers::CircuitBreaker). Clones share the layers' state.
#[derive(Clone)]
pub struct Client {
    bus: Arc<Connection>,
    service: BoxCall,
}

impl Client {
    pub(crate) fn new(bus: Arc<Connection>) -> Self {
        let way_out = bus.clone();
        let service = BoxCloneSyncService::new(tower::service_fn(move |outgoing| {
            let bus = way_out.clone();
            async move { send(&bus, outgoing).await }
        }));
        Self { bus, service }
    }

    /// Adds a layer around the calls of this client. The last layer added is the outermost; in a tuple the first is.
    #[must_use]
    pub fn layer<L>(self, layer: L) -> Self
    where
        L: Layer<BoxCall>,
        L::Service: tower_service::Service<Outgoing, Response = Answer> + Clone + Send + Sync + 'static,
        <L::Service as tower_service::Service<Outgoing>>::Error: Into<tower::BoxError>,
        <L::Service as tower_service::Service<Outgoing>>::Future: Send,
    {
        let service = layer.layer(self.service).map_err(crate::layers::of_layer);
        Self { bus: self.bus, service: BoxCloneSyncService::new(service) }
    }

    /// Sends a request; await the returned builder for the answer.
    pub fn request<T: Request>(&self, request: T) -> Call<'_, T> {
        Call::new(Sender::layered(&self.bus, &self.service), request)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("bus", &self.bus).finish_non_exhaustive()
    }
}
