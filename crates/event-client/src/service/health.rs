//! Answers health requests for a service over the bus.

use std::time::Duration;

use smol_str::SmolStr;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::source::Beat;
use crate::bus::Bus;
use crate::codec::Codec;
use crate::message::Headers;
use crate::request::{ServiceHealth, health};
use crate::subscription::Health;
use crate::transport::{Frame, IncomingRequest, Serve};
use event_transport::error::{ErrorKind, Result};

/// The most health requests that are answered at a time; each takes microseconds.
const CREDIT: usize = 8;

/// Reports whether a handler's source of work makes progress.
#[derive(Clone)]
pub(super) enum Pulse {
    Events(Beat),
    Requests(CancellationToken),
}

impl Pulse {
    pub(super) fn health(&self) -> Health {
        match self {
            Self::Events(beat) => beat.health(),
            Self::Requests(stopped) if stopped.is_cancelled() => Health::Stopped,
            Self::Requests(_) => Health::Live,
        }
    }
}

/// Answers health requests until the result is dropped. `None` when the transport has no requests, or the service's
/// name cannot be a subject.
pub(super) async fn answer(
    bus: &Bus,
    service: &SmolStr,
    handlers: Vec<(SmolStr, Pulse)>,
) -> Result<Option<AbortOnDropHandle<()>>> {
    let Ok(subject) = health::subject(service) else { return Ok(None) };
    let spec = Serve::new(service.clone(), vec![subject], CREDIT);
    let mut inbox = match bus.transport().requests().serve(spec).await {
        Ok(inbox) => inbox,
        Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(None),
        Err(error) => return Err(error.during("serve health requests")),
    };
    let service = service.clone();
    Ok(Some(AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(IncomingRequest { mut responder, .. }) = inbox.recv().await {
            let mut payload = Vec::new();
            if Codec::Json.encode(&report(&service, &handlers), &mut payload).is_err() {
                continue;
            }
            let content_type = SmolStr::new_static(Codec::Json.content_type());
            let frame = Frame { headers: Headers::new(), content_type, payload: payload.into(), last: true };
            // A caller that does not receive its reply must not delay the others.
            let _ = tokio::time::timeout(Duration::from_secs(1), responder.send(frame)).await;
        }
    }))))
}

fn report(service: &str, handlers: &[(SmolStr, Pulse)]) -> ServiceHealth {
    let states: Vec<_> = handlers.iter().map(|(name, pulse)| (name.to_string(), pulse.health())).collect();
    ServiceHealth {
        service: service.to_owned(),
        ready: states.iter().all(|(_, health)| *health == Health::Live),
        handlers: states
            .into_iter()
            .map(|(name, health)| {
                let text = match health {
                    Health::Starting => "starting".to_owned(),
                    Health::Live => "live".to_owned(),
                    Health::Rebuilding(why) => format!("rebuilding: {why}"),
                    Health::Stopped => "stopped".to_owned(),
                };
                (name, text)
            })
            .collect(),
    }
}
