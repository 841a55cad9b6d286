//! Starts a service: opens the source of work of every handler, then starts the workers of all handlers.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use smol_str::SmolStr;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::handler::HandlerOptions;
use super::incoming::Identity;
use super::route::{Endpoint, Route};
use super::running::{self, Running};
use super::source::Events;
use super::versions::Patience;
use super::worker::HandlerRuntime;
use super::{Service, Work};
use crate::bus::{Bus, Settings};
use crate::subject::{Group, Pattern, Subject};
use crate::transport::{IncomingRequest, Serve, Subscribe};
use event_transport::error::{Error, Result};

impl Service {
    /// Subscribes every handler and starts its workers.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for a service without a bus, an invalid version, a handler
    /// without a route, a gap in an event's versions, or two handlers in one group; and the errors of subscribing. No
    /// handler runs when one of them cannot start.
    pub async fn start(self) -> Result<Running> {
        let service = self.name.clone();
        let failed = |error: Error| error.during("start service").with("service", &service);
        let Some(bus) = &self.bus else {
            let text = "the service has no bus; add `.bus(bus)` or use `Service::from_env`";
            return Err(failed(Error::new(crate::ErrorKind::Config, text)));
        };
        let settings =
            Settings { source: smol_str::format_smolstr!("/{}", self.name), ..bus.settings().clone() };
        let bus = bus.with_settings(settings)?;
        if let Some(version) = &self.version
            && let Err(error) = semver::Version::parse(version)
        {
            let text = "the version of a service must be a semantic version, such as `1.4.0`";
            let refused = Error::new(crate::ErrorKind::Config, text).with("version", version).because(error);
            return Err(failed(refused));
        }
        let mut names = HashSet::new();
        let mut open: Vec<(HandlerRuntime, usize, Intake, Box<dyn Work>)> = Vec::new();
        for entry in self.handlers {
            let route = entry.route.map_err(failed)?;
            let retry = entry.options.retry.unwrap_or(self.retry);
            let slots = entry.options.slots();
            let name = match entry.request {
                Some(endpoint) => SmolStr::new_static(endpoint.subject),
                None => entry.options.group(&self.name, &route.name),
            };
            if !names.insert(name.clone()) {
                let text = match entry.request {
                    Some(_) => format!("two handlers answer `{name}`"),
                    None => format!("two handlers share the group `{name}`; name one with `.group(\"…\")`"),
                };
                return Err(failed(Error::new(crate::ErrorKind::Config, text)));
            }
            let within = entry.options.await_version.unwrap_or(HandlerOptions::DEFAULT_AWAIT_VERSION);
            let patience = entry.versions.map(|versions| Arc::new(Patience::new(versions, within)));
            let source = match entry.request {
                Some(endpoint) => {
                    serve(&bus, &self.name, self.version.clone(), endpoint, &entry.options).await
                }
                None => subscribe(&bus, &name, &route, &entry.options, patience.as_ref()).await,
            };
            let source = source.map_err(|error| failed(error.with("handler", &name)))?;
            let filters: Vec<_> = route.filters.iter().map(Pattern::as_str).collect();
            tracing::info!(
                service = %self.name, handler = %name, receives = filters.join(" "),
                answers = entry.request.map(|endpoint| endpoint.subject), transport = bus.capabilities().name,
                concurrency = entry.options.calls(), batch = entry.options.batch, keyed = entry.options.keyed,
                attempts = retry.attempts, "handler ready"
            );
            let identity = Arc::new(Identity {
                service: self.name.clone(),
                group: name,
                attempts: retry.attempts,
                broadcast: entry.options.broadcast,
                plain: entry.options.plain,
                concurrency: entry.options.calls(),
                draining: source.draining(),
            });
            let observer = self.observer.clone();
            let runtime = HandlerRuntime {
                bus: bus.clone(),
                identity,
                retry,
                stats: Arc::default(),
                patience,
                observer,
            };
            open.push((runtime, slots, source, (entry.open)(Arc::new(()))));
        }
        let mut running = Running::new(self.name, bus, self.drain);
        for (runtime, slots, source, work) in open {
            let runtime = Arc::new(runtime);
            let (workers, source) = match source {
                Intake::Events(events, spec) => {
                    running.keep(events.keep(runtime.bus.clone(), spec));
                    (work.spawn(slots, runtime.clone(), events.taker()), running::StopHandle::Events(events))
                }
                Intake::Requests(endpoint, inbox) => {
                    let draining = runtime.identity.draining.clone();
                    running.watch(runtime.identity.group.clone(), draining.clone());
                    (
                        work.serve(slots, runtime.clone(), endpoint, inbox),
                        running::StopHandle::Requests(draining),
                    )
                }
            };
            running.add(runtime.identity.group.clone(), runtime.stats.clone(), source, workers);
        }
        running.answer_health().await?;
        Ok(running)
    }

    /// Runs until `shutdown` resolves, then drains: stops fetching, releases the messages that have not started,
    /// finishes running work within the drain bound, and settles it. The bus stays open for its other users.
    ///
    /// # Errors
    /// The errors of [`Service::start`] and [`Running::drain`], and an error when a handler receives no more work
    /// although the service was not stopped ([`Running::failed`]).
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        self.start().await?.run_until(shutdown).await
    }
}

/// The source of a handler's work.
enum Intake {
    Events(Events, Subscribe),
    Requests(Endpoint, mpsc::Receiver<IncomingRequest>),
}

impl Intake {
    fn draining(&self) -> CancellationToken {
        match self {
            Self::Events(events, _) => events.stopping().clone(),
            Self::Requests(..) => CancellationToken::new(),
        }
    }
}

async fn subscribe(
    bus: &Bus,
    group: &str,
    route: &Route,
    options: &HandlerOptions,
    patience: Option<&Arc<Patience>>,
) -> Result<Intake> {
    let spec = if options.broadcast {
        Subscribe::broadcast(route.filters.clone())
    } else {
        Subscribe::group(Group::new(group)?, route.filters.clone())
    };
    let spec = options.subscribe(spec);
    let events = Events::open(bus, spec.clone()).await?;
    // On transports where members of a keyed group work side by side, a key moves to another member automatically.
    if let Some(patience) = patience
        && spec.keyed
        && bus.capabilities().keyed_members == 1
    {
        events.stand_back_when_asked(bus.clone(), spec.clone(), patience.clone());
    }
    Ok(Intake::Events(events, spec))
}

async fn serve(
    bus: &Bus,
    service: &SmolStr,
    version: Option<SmolStr>,
    endpoint: Endpoint,
    options: &HandlerOptions,
) -> Result<Intake> {
    if *options != (HandlerOptions { concurrency: options.concurrency, ..HandlerOptions::default() }) {
        return Err(Error::new(
            crate::ErrorKind::Config,
            "a request is answered once or not at all: a handler of requests takes `.concurrency(n)` and no other setting",
        ));
    }
    let spec = Serve {
        service: service.clone(),
        version,
        subjects: vec![Subject::new(endpoint.subject)?],
        max_in_flight: options.slots(),
    };
    let inbox = bus.transport().requests().serve(spec).await?;
    Ok(Intake::Requests(endpoint, inbox))
}
