//! The topics and groups that services require of a bus, and the differences from the existing ones.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::{Mode, Start, Subscribe};
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};
use crate::subject::{Group, Pattern, Subject};

/// The topics and groups that services require. A service returns its own (`Service::topology`), and
/// `backbone topology plan|apply` reads them as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Topics in addition to those of the groups, for example topics that services only publish to: `orders`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<SmolStr>,
    /// The durable groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupNeed>,
}

/// A durable group that a service requires.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupNeed {
    /// Its name: `billing.orders.placed`.
    pub group: SmolStr,
    /// The patterns that it receives.
    pub filters: Vec<SmolStr>,
    /// Whether the group handles the messages of one key in order, one at a time.
    #[serde(default)]
    pub keyed: bool,
    /// The lease in milliseconds, for brokers that store it with the group.
    #[serde(default = "default_lease")]
    pub lease_ms: u64,
}

fn default_lease() -> u64 {
    bounds::millis(Subscribe::DEFAULT_LEASE)
}

impl Topology {
    /// Adds the group of `spec`; a broadcast needs no group.
    pub fn add(&mut self, spec: &Subscribe) {
        let Mode::Group(group) = &spec.mode else { return };
        self.groups.push(GroupNeed {
            group: group.as_str().into(),
            filters: spec.filters.iter().map(|filter| filter.as_str().into()).collect(),
            keyed: spec.keyed,
            lease_ms: bounds::millis(spec.lease),
        });
    }

    /// The groups as subscriptions that start with new messages.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] for a topic, pattern or group that breaks the rules, [`ErrorKind::Config`] for a
    /// group without filters.
    pub fn subscriptions(&self) -> Result<Vec<Subscribe>> {
        for topic in &self.topics {
            if Subject::new(topic)?.topic() != topic {
                return Err(Error::new(ErrorKind::InvalidName, "a topic is one token, such as `orders`")
                    .with("topic", topic));
            }
        }
        self.groups
            .iter()
            .map(|need| {
                if need.filters.is_empty() {
                    return Err(Error::new(ErrorKind::Config, "a group needs at least one filter")
                        .with("group", &need.group));
                }
                let filters = need.filters.iter().map(Pattern::new).collect::<Result<Vec<_>>>()?;
                let spec = Subscribe {
                    keyed: need.keyed,
                    lease: Duration::from_millis(need.lease_ms),
                    start: Start::New,
                    ..Subscribe::group(Group::new(&need.group)?, filters)
                };
                spec.checked().map_err(|error| error.with("group", &need.group))
            })
            .collect()
    }
}

/// One object that is missing or differs from the required one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Change {
    /// The object in the broker's terms: `stream EVT_orders`.
    pub object: String,
    /// The action that `apply` takes.
    pub action: Action,
    /// The settings that differ; all settings for an object to create.
    pub differences: Vec<Difference>,
}

/// The action that `apply` takes for an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Action {
    /// It is missing and is created.
    Create,
    /// It differs and is changed in place.
    Update,
    /// It differs in a setting that cannot be changed: an operator must delete it first, and then `apply` creates it.
    Blocked,
}

/// The change that `spec` requires of its group. `is` has the group's patterns and its `keyed` setting, or is `None`
/// for a missing group. Returns `None` when nothing differs. For transports that store only these two settings with a
/// group.
pub fn compare_group(spec: &Subscribe, is: Option<(&[Pattern], bool)>) -> Option<Change> {
    let Mode::Group(group) = &spec.mode else { return None };
    let words = |patterns: &[Pattern]| patterns.iter().map(Pattern::as_str).collect::<Vec<_>>().join(" ");
    let difference = |setting: &str, is: Option<String>, wanted: String| {
        (is.as_ref() != Some(&wanted)).then(|| Difference::new(setting, is, wanted))
    };
    let differences: Vec<_> = [
        difference("filters", is.map(|(filters, _)| words(filters)), words(&spec.filters)),
        difference("keyed", is.map(|(_, keyed)| keyed.to_string()), spec.keyed.to_string()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let action = if is.is_some() { Action::Update } else { Action::Create };
    (!differences.is_empty()).then(|| Change::new(format!("group {group}"), action, differences))
}

/// One setting of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The name of the setting at the broker.
    pub setting: String,
    /// The existing value; `None` when there is none.
    pub is: Option<String>,
    /// The required value.
    pub wanted: String,
}

impl Difference {
    /// A setting whose value differs from the required one.
    pub fn new(setting: impl Into<String>, is: Option<String>, wanted: impl Into<String>) -> Self {
        Self { setting: setting.into(), is, wanted: wanted.into() }
    }
}

impl Change {
    /// A change to `object`.
    pub fn new(object: impl Into<String>, action: Action, differences: Vec<Difference>) -> Self {
        Self { object: object.into(), action, differences }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.is {
            Some(is) => write!(f, "{}: {is} -> {}", self.setting, self.wanted),
            None => write!(f, "{}: {}", self.setting, self.wanted),
        }
    }
}

/// Writes `stream EVT_orders (max_age: 0 -> 7d)`, for an error or a log line.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.object)?;
        for (at, difference) in self.differences.iter().enumerate() {
            write!(f, "{}{difference}", if at == 0 { "" } else { ", " })?;
        }
        f.write_str(")")
    }
}
