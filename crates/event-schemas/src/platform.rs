//! The events of the Django platform: service instances that start and stop, and changes of circuit breakers.

use event_client::Event;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sample::Sample;

/// A service instance has come up.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "platform.service-registered", version = 1, key = service)]
pub struct ServiceRegistered {
    /// The service.
    pub service: String,
    /// Where it answers.
    pub url: String,
    /// Its version.
    pub version: String,
}

/// A circuit breaker has changed its state.
#[derive(Clone, Debug, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "platform.breaker-changed", version = 1, key = service)]
pub struct BreakerChanged {
    /// The service behind the breaker.
    pub service: String,
    /// Its new state.
    pub state: BreakerState,
}

/// State of a circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// One call may pass to see whether the service is back.
    HalfOpen,
}

impl Sample for ServiceRegistered {
    fn sample() -> Self {
        Self { service: "users".into(), url: "http://127.0.0.1:8001".into(), version: "1.4.0".into() }
    }
}

impl Sample for BreakerChanged {
    fn sample() -> Self {
        Self { service: "users".into(), state: BreakerState::HalfOpen }
    }
}
