//! Starting a service: every handler gets its source of work, then all of them begin.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use smol_str::SmolStr;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::extract::{Route, Served};
use super::handler::{Identity, Knobs};
use super::running::{self, Running};
use super::source::Events;
use super::versions::Patience;
use super::worker::Station;
use super::{Service, Work};
use crate::bus::{Bus, Settings};
use crate::error::{Error, Result};
use crate::subject::{Group, Pattern, Subject};
use crate::transport::{IncomingRequest, Serve, Subscribe};

impl Service {
    /// Subscribes every handler and starts its workers.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for a service without a bus, a version that is none, a handler without a route, a gap in an event's versions or
    /// two handlers in one group; and what subscribing answers. Nothing runs when one handler cannot.
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
            let text = "the version of a service is a semantic version, such as `1.4.0`";
            let refused = Error::new(crate::ErrorKind::Config, text).with("version", version).because(error);
            return Err(failed(refused));
        }
        let mut names = HashSet::new();
        let mut open: Vec<(Station, usize, Source, Box<dyn Work>)> = Vec::new();
        for entry in self.stations {
            let route = entry.route.map_err(failed)?;
            let retry = entry.knobs.retry.unwrap_or(self.retry);
            let slots = entry.knobs.slots();
            let name = match entry.request {
                Some(served) => SmolStr::new_static(served.subject),
                None => entry.knobs.group(&self.name, &route.name),
            };
            if !names.insert(name.clone()) {
                let text = match entry.request {
                    Some(_) => format!("two handlers answer `{name}`"),
                    None => format!("two handlers share the group `{name}`; name one with `.group(\"…\")`"),
                };
                return Err(failed(Error::new(crate::ErrorKind::Config, text)));
            }
            let within = entry.knobs.await_version.unwrap_or(Knobs::DEFAULT_AWAIT_VERSION);
            let patience = entry.versions.map(|versions| Arc::new(Patience::new(versions, within)));
            let source = match entry.request {
                Some(served) => serve(&bus, &self.name, self.version.clone(), served, &entry.knobs).await,
                None => subscribe(&bus, &name, &route, &entry.knobs, patience.as_ref()).await,
            };
            let source = source.map_err(|error| failed(error.with("handler", &name)))?;
            let filters: Vec<_> = route.filters.iter().map(Pattern::as_str).collect();
            tracing::info!(
                service = %self.name, handler = %name, receives = filters.join(" "),
                answers = entry.request.map(|served| served.subject), transport = bus.capabilities().name,
                concurrency = entry.knobs.calls(), batch = entry.knobs.batch, keyed = entry.knobs.keyed,
                attempts = retry.attempts, "handler ready"
            );
            let identity = Arc::new(Identity {
                service: self.name.clone(),
                group: name,
                attempts: retry.attempts,
                broadcast: entry.knobs.broadcast,
                plain: entry.knobs.plain,
                concurrency: entry.knobs.calls(),
                draining: source.draining(),
            });
            let observer = self.observer.clone();
            let station =
                Station { bus: bus.clone(), identity, retry, stats: Arc::default(), patience, observer };
            open.push((station, slots, source, (entry.open)(Arc::new(()))));
        }
        let mut running = Running::new(self.name, bus, self.drain);
        for (station, slots, source, work) in open {
            let station = Arc::new(station);
            let (workers, source) = match source {
                Source::Events(events, spec) => {
                    running.keep(events.keep(station.bus.clone(), spec));
                    (work.spawn(slots, station.clone(), events.taker()), running::Source::Events(events))
                }
                Source::Requests(served, inbox) => {
                    let draining = station.identity.draining.clone();
                    running.watch(station.identity.group.clone(), draining.clone());
                    (work.serve(slots, station.clone(), served, inbox), running::Source::Requests(draining))
                }
            };
            running.add(station.identity.group.clone(), station.stats.clone(), source, workers);
        }
        running.answer_health().await?;
        Ok(running)
    }

    /// Runs until `shutdown` resolves, then drains: stops fetching, hands back what has not started, finishes
    /// what runs within the bound, settles. The bus stays open for its other users.
    ///
    /// # Errors
    /// As [`Service::start`] and [`Running::drain`], and when a handler gets no more work though nobody stopped it
    /// ([`Running::failed`]).
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let mut running = self.start().await?;
        let failure = tokio::select! {
            () = shutdown => None,
            error = running.failed() => Some(error),
        };
        let drained = running.drain().await;
        failure.map_or(drained, Err)
    }
}

/// Where a handler's work comes from.
enum Source {
    Events(Events, Subscribe),
    Requests(Served, mpsc::Receiver<IncomingRequest>),
}

impl Source {
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
    knobs: &Knobs,
    patience: Option<&Arc<Patience>>,
) -> Result<Source> {
    let spec = if knobs.broadcast {
        Subscribe::broadcast(route.filters.clone())
    } else {
        Subscribe::group(Group::new(group)?, route.filters.clone())
    };
    let spec = knobs.subscribe(spec);
    let events = Events::open(bus, spec.clone()).await?;
    // Where members of a keyed group work side by side, a key goes to another of them by itself.
    if let Some(patience) = patience
        && spec.keyed
        && bus.capabilities().keyed_members == 1
    {
        events.stand_back_when_asked(bus.clone(), spec.clone(), patience.clone());
    }
    Ok(Source::Events(events, spec))
}

async fn serve(
    bus: &Bus,
    service: &SmolStr,
    version: Option<SmolStr>,
    served: Served,
    knobs: &Knobs,
) -> Result<Source> {
    if *knobs != (Knobs { concurrency: knobs.concurrency, ..Knobs::default() }) {
        return Err(Error::new(
            crate::ErrorKind::Config,
            "a request is answered once or not at all: a handler of requests takes `.concurrency(n)` and no other setting",
        ));
    }
    let spec = Serve {
        service: service.clone(),
        version,
        subjects: vec![Subject::new(served.subject)?],
        credit: knobs.slots(),
    };
    let inbox = bus.transport().requests().serve(spec).await?;
    Ok(Source::Requests(served, inbox))
}
