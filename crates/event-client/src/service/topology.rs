//! The durable groups that a service needs on its bus, listed before the service starts.

use super::Service;
use crate::subject::Group;
use crate::transport::{Subscribe, Topology};
use event_transport::error::{Error, Result};

impl<S> Service<S> {
    /// Returns the durable groups of its handlers, for `backbone topology plan|apply`: print them as JSON from a flag
    /// of your program, then services may run with `provision=verify` or `off`.
    ///
    /// # Errors
    /// An invalid route or group name of a handler.
    pub fn topology(&self) -> Result<Topology> {
        let mut topology = Topology::default();
        for entry in &self.handlers {
            let route = entry.route.as_ref().map_err(|error| Error::new(error.kind(), error.to_string()))?;
            if entry.request.is_none() && !entry.options.broadcast {
                let group = Group::new(entry.options.group(&self.name, &route.name))?;
                topology.add(&entry.options.subscribe(Subscribe::group(group, route.filters.clone())));
            }
        }
        Ok(topology)
    }
}
