//! What services need to stand on a bus, and what is missing there.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::{Mode, Start, Subscribe};
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};
use crate::subject::{Group, Pattern, Subject};

/// The topics and groups that services need, as data: a service [tells its own](crate::service::Service::topology),
/// `backbone topology plan|apply` reads it as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Topics beside those of the groups, such as the ones only published to: `orders`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<SmolStr>,
    /// The durable groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupNeed>,
}

/// A durable group that a service needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupNeed {
    /// Its name: `billing.orders-placed`.
    pub group: SmolStr,
    /// The patterns that it receives.
    pub filters: Vec<SmolStr>,
    /// In order per key.
    #[serde(default)]
    pub keyed: bool,
    /// The lease in milliseconds; brokers that keep it with the group need to know it.
    #[serde(default = "default_lease")]
    pub lease_ms: u64,
}

fn default_lease() -> u64 {
    bounds::millis(Subscribe::DEFAULT_LEASE)
}

impl Topology {
    /// What `spec` needs; nothing for a broadcast.
    pub fn add(&mut self, spec: &Subscribe) {
        let Mode::Group(group) = &spec.mode else { return };
        self.groups.push(GroupNeed {
            group: group.as_str().into(),
            filters: spec.filters.iter().map(|filter| filter.as_str().into()).collect(),
            keyed: spec.keyed,
            lease_ms: bounds::millis(spec.lease),
        });
    }

    /// The groups as subscriptions that start with what is new.
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

/// One object that differs from what is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Change {
    /// What it is, in the broker's own words: `stream EVT_orders`.
    pub object: String,
    /// What is to be done.
    pub action: Action,
    /// The settings concerned; all of them for an object to create.
    pub differences: Vec<Difference>,
}

/// What is to be done with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Action {
    /// It is missing.
    Create,
    /// It differs and can be changed where it stands.
    Update,
    /// It differs in what cannot be changed: an operator must delete it first, and then it is created anew.
    Blocked,
}

/// What a group lacks of what `spec` asks, where `is` has its patterns and whether it is keyed; `None` when nothing.
/// For transports that keep just these two with a group.
pub(crate) fn compare_group(spec: &Subscribe, is: Option<(&[Pattern], bool)>) -> Option<Change> {
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
    /// Its name, as the broker spells it.
    pub setting: String,
    /// What it is; `None` when there is none.
    pub is: Option<String>,
    /// What it should be.
    pub wanted: String,
}

impl Difference {
    /// A setting that is not what it should be.
    pub fn new(setting: impl Into<String>, is: Option<String>, wanted: impl Into<String>) -> Self {
        Self { setting: setting.into(), is, wanted: wanted.into() }
    }
}

impl Change {
    /// A change of `object`.
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

/// `stream EVT_orders (max_age: 0 -> 7d)`, for an error or a log line.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.object)?;
        for (at, difference) in self.differences.iter().enumerate() {
            write!(f, "{}{difference}", if at == 0 { "" } else { ", " })?;
        }
        f.write_str(")")
    }
}
