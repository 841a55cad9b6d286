//! The bus that connections share, and the registry that finds a bus by its name.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use slab::Slab;
use tokio_util::sync::CancellationToken;

use super::MemoryConfig;
use super::admin::DeadLetters;
use super::group::GroupState;
use super::log::{Log, Usage};
use super::publish::{Dedup, Routes, Schedule};
use super::requests::Rpc;
use super::subscribe::Listeners;
use crate::error::{Error, ErrorKind, Result};
use crate::subject::Group;
use crate::transport::Provision;

/// Buses that at least one connection in this process uses, by name.
static NAMED: LazyLock<Mutex<HashMap<String, Weak<Bus>>>> = LazyLock::new(Mutex::default);

/// The state that all connections to one bus share.
pub(super) struct Bus {
    pub(super) config: MemoryConfig,
    state: Mutex<State>,
    pub(super) calls: Rpc,
    next_id: AtomicU64,
}

/// The data behind the lock. The parts are separate structs so that one can be read while another is changed.
pub(super) struct State {
    pub(super) log: Log,
    pub(super) schedule: Schedule,
    pub(super) dedup: Dedup,
    pub(super) routes: Routes,
    pub(super) groups: Slab<GroupState>,
    pub(super) names: HashMap<Group, usize>,
    pub(super) listeners: Listeners,
    pub(super) dead: DeadLetters,
}

/// The slot of a durable group in [`State::groups`]. It is valid as long as the group exists.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupRef {
    pub(super) place: usize,
    pub(super) uid: u64,
}

/// One open connection to a bus.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) bus: Arc<Bus>,
    pub(super) id: u64,
    /// Whether this connection may create or change groups.
    pub(super) provision: Provision,
    pub(super) closed: CancellationToken,
}

impl Bus {
    pub(super) fn new(config: MemoryConfig) -> Result<Arc<Self>> {
        config.check()?;
        let limit = Usage { messages: config.max_messages, bytes: config.max_bytes };
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                log: Log::new(limit),
                schedule: Schedule::default(),
                dedup: Dedup::default(),
                routes: Routes::default(),
                groups: Slab::new(),
                names: HashMap::new(),
                listeners: Listeners::default(),
                dead: DeadLetters::default(),
            }),
            calls: Rpc::default(),
            next_id: AtomicU64::new(1),
            config,
        }))
    }

    /// Returns the bus called `name`, or creates it with `config` when no connection has it open.
    pub(super) fn named(name: &str, config: MemoryConfig) -> Result<Arc<Self>> {
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
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
        // A poisoned lock means a panic in this crate, which is a defect. An error here would stop every other user
        // of the bus too.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a number that is unique on this bus.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The messages are omitted because they are user data.
        f.debug_struct("Bus").field("config", &self.config).finish_non_exhaustive()
    }
}

impl State {
    pub(super) fn group(&mut self, at: GroupRef) -> Option<&mut GroupState> {
        self.groups.get_mut(at.place).filter(|group| group.uid == at.uid)
    }
}

impl Connection {
    pub(super) fn open(bus: Arc<Bus>, provision: Provision) -> Arc<Self> {
        Arc::new(Self { id: bus.next_id(), bus, provision, closed: CancellationToken::new() })
    }

    /// Returns an error when the connection is closed.
    pub(super) fn check(&self) -> Result<()> {
        if self.closed.is_cancelled() { Err(closed()) } else { Ok(()) }
    }

    /// Releases the unsettled deliveries of this connection and ends all its waits. A second call has no effect.
    pub(super) fn close(&self) {
        let mut state = self.bus.lock();
        // Cancelled under the lock, so that no member joins after the loop below has evicted the members.
        self.closed.cancel();
        for (_, group) in &mut state.groups {
            while let Some(member) = group.members.iter().find(|member| member.connection == self.id) {
                let member = member.id;
                group.evict(member);
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this connection to the bus has been closed")
}
