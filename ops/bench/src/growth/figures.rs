//! Measures wall time and CPU time of a section, and names the figures of a point.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::usage;

/// One measured number, with its unit in the name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    pub value: f64,
}

/// Returns the figure `name`.
pub fn figure(name: impl Into<String>, value: f64) -> Figure {
    Figure { name: name.into(), value }
}

/// Returns the figure `name` in milliseconds.
pub fn millis(name: &str, time: Duration) -> Figure {
    figure(format!("{name} ms"), time.as_secs_f64() * 1e3)
}

/// The start of a section.
#[derive(Debug)]
pub struct Meter {
    start: Instant,
    client: Duration,
    server: Option<(u32, Duration)>,
}

/// The wall time of a section, and the CPU time of this process and of the server in it.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub wall: Duration,
    pub client: Duration,
    pub server: Option<Duration>,
}

impl Meter {
    /// Begins a section; `server` is the process of the broker, if there is one.
    pub fn start(server: Option<u32>) -> Result<Self> {
        let server = server.map(|process| usage::cpu_of(process).map(|cpu| (process, cpu))).transpose()?;
        Ok(Self { client: usage::own_cpu()?, server, start: Instant::now() })
    }

    /// Ends the section.
    pub fn stop(&self) -> Result<Cost> {
        let wall = self.start.elapsed();
        let server = self
            .server
            .map(|(process, before)| usage::cpu_of(process).map(|now| now - before))
            .transpose()?;
        Ok(Cost { wall, client: usage::own_cpu()? - self.client, server })
    }
}

impl Cost {
    /// Returns microseconds per message: wall time, which gets the name `wall`, and CPU time.
    pub fn per_message(&self, wall: &str, messages: usize) -> Vec<Figure> {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / messages.max(1) as f64;
        let mut figures = vec![
            figure(format!("{wall} us/message"), each(self.wall)),
            figure("client CPU us/message", each(self.client)),
        ];
        figures.extend(self.server.map(|server| figure("server CPU us/message", each(server))));
        figures
    }
}
