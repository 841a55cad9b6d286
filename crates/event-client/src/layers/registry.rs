//! A registry that holds one value for each name, such as a circuit or a set of counters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use smol_str::SmolStr;

use event_transport::sync::lock;

/// The most names whose values are kept. Names are event types and subjects, so normal use never reaches this number.
const MOST: usize = 4096;

/// Values by name, shared by clones. Each clone also keeps the value that it used last, so the common case takes no
/// lock.
#[derive(Debug)]
pub(super) struct Registry<V> {
    all: Arc<Mutex<HashMap<SmolStr, Arc<V>>>>,
    last: Option<(SmolStr, Arc<V>)>,
}

impl<V> Registry<V> {
    /// Returns the value of `name`; creates it on first use.
    pub(super) fn get(&mut self, name: &str, make: impl FnOnce() -> V) -> &Arc<V> {
        if self.last.as_ref().is_none_or(|(last, _)| last != name) {
            let mut all = lock(&self.all);
            let (name, value) = match all.get_key_value(name) {
                Some((name, value)) => (name.clone(), value.clone()),
                None => {
                    let (name, value) = (SmolStr::new(name), Arc::new(make()));
                    if all.len() < MOST {
                        all.insert(name.clone(), value.clone());
                    }
                    (name, value)
                }
            };
            drop(all);
            self.last = Some((name, value));
        }
        &self.last.as_ref().expect("set above").1
    }

    /// Returns the value of `name`, if there is one.
    pub(super) fn find(&self, name: &str) -> Option<Arc<V>> {
        lock(&self.all).get(name).cloned()
    }
}

impl<V> Clone for Registry<V> {
    fn clone(&self) -> Self {
        Self { all: self.all.clone(), last: self.last.clone() }
    }
}

impl<V> Default for Registry<V> {
    fn default() -> Self {
        Self { all: Arc::default(), last: None }
    }
}
