//! A bus: the data that all connections to one name share, and the registry that finds it by its name.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Weak};

use super::config::MemoryConfig;
use super::log::Usage;
use super::servers::Servers;
use super::state::State;
use crate::Capabilities;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;

/// Buses that at least one connection in this process uses, by name.
static NAMED: LazyLock<Mutex<HashMap<String, Weak<Bus>>>> = LazyLock::new(Mutex::default);

pub(super) struct Bus {
    pub(super) config: MemoryConfig,
    pub(super) capabilities: Capabilities,
    pub(super) servers: Servers,
    state: Mutex<State>,
    next_id: AtomicU64,
}

impl Bus {
    pub(super) fn new(config: MemoryConfig) -> Result<Arc<Self>> {
        config.check()?;
        let limit = Usage { messages: config.max_messages, bytes: config.max_bytes };
        Ok(Arc::new(Self {
            capabilities: capabilities(&config),
            servers: Servers::default(),
            state: Mutex::new(State::new(limit)),
            next_id: AtomicU64::new(1),
            config,
        }))
    }

    /// Returns the bus called `name`, or creates it with `config` when no connection has it open.
    pub(super) fn named(name: &str, config: MemoryConfig) -> Result<Arc<Self>> {
        let mut named = lock(&NAMED);
        named.retain(|_, bus| bus.strong_count() > 0);
        if let Some(bus) = named.get(name).and_then(Weak::upgrade) {
            if bus.config != config {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("`memory:{name}` is open with other options; use the same ones or another name"),
                ));
            }
            return Ok(bus);
        }
        let bus = Self::new(config)?;
        named.insert(name.to_owned(), Arc::downgrade(&bus));
        Ok(bus)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Returns a number that is unique on this bus.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

fn capabilities(config: &MemoryConfig) -> Capabilities {
    let mut capabilities = Capabilities::new("memory");
    capabilities.max_payload = config.max_payload;
    capabilities.dedup_window = config.dedup_window;
    capabilities.delayed = true;
    capabilities.expiry = true;
    capabilities.replay = true;
    capabilities.cross_topic = true;
    capabilities.keyed_members = usize::MAX;
    capabilities
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The messages are omitted because they are user data.
        f.debug_struct("Bus").field("config", &self.config).finish_non_exhaustive()
    }
}
