//! The bus that connections share, and the names under which they find it.

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

/// Buses that somebody in this process still uses, by name.
static NAMED: LazyLock<Mutex<HashMap<String, Weak<Bus>>>> = LazyLock::new(Mutex::default);

/// Everything that the connections of one name share.
pub(super) struct Bus {
    pub(super) config: MemoryConfig,
    state: Mutex<State>,
    pub(super) calls: Rpc,
    next_id: AtomicU64,
}

/// What the lock guards. Parts are separate structs so that one can be read while another is changed.
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

/// A durable group's place in [`State::groups`], valid as long as the group lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupRef {
    pub(super) place: usize,
    pub(super) uid: u64,
}

/// One opened handle on a bus.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) bus: Arc<Bus>,
    pub(super) id: u64,
    /// What it may do to groups.
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

    /// The bus called `name`, made with `config` when nobody has it open.
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
        // A panic of ours is a defect; stopping every other user of the bus would only spread it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that nothing else on this bus has.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its messages are the users' data.
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

    /// Refuses work on a closed connection.
    pub(super) fn check(&self) -> Result<()> {
        if self.closed.is_cancelled() { Err(closed()) } else { Ok(()) }
    }

    /// Hands back what is unsettled and ends everything that waits. Once is enough.
    pub(super) fn close(&self) {
        let mut state = self.bus.lock();
        // Under the lock, so that nothing joins after the members were counted.
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
