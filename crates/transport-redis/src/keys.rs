//! Names of keys and channels. All keys of one topic contain it as their hash tag, so that one script may use them in a
//! cluster, too.
//!
//! | key | holds |
//! |---|---|
//! | `NS:{TOPIC}` | stream: the topic's log |
//! | `NS:{TOPIC}:delayed` | sorted set: delayed messages by due time |
//! | `NS:{TOPIC}:id:ID` | string with TTL: a dedup id |
//! | `NS:{TOPIC}:g:GROUP` | hash: the group's settings on this topic |
//! | `NS:{TOPIC}:g:GROUP:due`, `…:notes` | sorted set and hash: entries that wait for their next attempt |
//! | `NS:{TOPIC}:g:GROUP:owner` | string with TTL: the active member of a keyed group |
//! | `NS:{TOPIC}:g:GROUP:replay` (`:due`, `:notes`) | stream: replayed dead letters of this group |
//! | `NS:{TOPIC}:g:GROUP:dlq` | stream: its dead letters |
//! | `NS:{TOPIC}:dlqs` | set: groups with dead letters |
//! | `NS:{TOPIC}:floors` | hash: for each group, the id up to which it is known to have settled everything; its restart point if the group is removed |
//! | `NS:topics` | set: every topic |
//! | `NS:{groups}`, `NS:{groups}:m:GROUP` | hash of groups; sorted set of a group's live members |
//! | `NS:{rpc:SUBJECT}`, `…:servers` | list with TTL: waiting requests; sorted set of live servers |

use std::io::Write;
use std::sync::Arc;

use redis::{RedisWrite, ToRedisArgs};
use smol_str::{SmolStr, format_smolstr};

/// The keys of one namespace.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    namespace: SmolStr,
    /// Redis channels are not separated by database, so the database number is part of their names.
    channels: SmolStr,
}

/// The source of deliveries: a topic's log, or a group's replayed dead letters on that topic.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) topic: SmolStr,
    pub(super) replay: bool,
    pub(super) stream: String,
    pub(super) due: String,
    pub(super) notes: String,
}

/// The key of a topic's log.
pub(super) struct LogKey<'a> {
    namespace: &'a str,
    topic: &'a str,
}

impl ToRedisArgs for LogKey<'_> {
    fn write_redis_args<W: RedisWrite + ?Sized>(&self, out: &mut W) {
        let mut key = out.writer_for_next_arg();
        for part in [self.namespace, ":{", self.topic, "}"] {
            // A write into memory cannot fail.
            let _ = key.write_all(part.as_bytes());
        }
    }
}

impl Keys {
    pub(super) fn new(namespace: &SmolStr, db: i64) -> Self {
        let channels = if db == 0 { namespace.clone() } else { format_smolstr!("{namespace}@{db}") };
        Self { namespace: namespace.clone(), channels }
    }

    pub(super) fn log(&self, topic: &str) -> String {
        format!("{}:{{{topic}}}", self.namespace)
    }

    /// [`log`](Self::log) as a command argument, written directly into the command.
    pub(super) fn log_argument<'a>(&'a self, topic: &'a str) -> LogKey<'a> {
        LogKey { namespace: &self.namespace, topic }
    }

    pub(super) fn delayed(&self, topic: &str) -> String {
        format!("{}:{{{topic}}}:delayed", self.namespace)
    }

    pub(super) fn dedup(&self, topic: &str, id: &str) -> String {
        format!("{}:{{{topic}}}:id:{id}", self.namespace)
    }

    pub(super) fn settings(&self, topic: &str, group: &str) -> String {
        format!("{}:{{{topic}}}:g:{group}", self.namespace)
    }

    pub(super) fn owner(&self, topic: &str, group: &str) -> String {
        format!("{}:{{{topic}}}:g:{group}:owner", self.namespace)
    }

    pub(super) fn dead(&self, topic: &str, group: &str) -> String {
        format!("{}:{{{topic}}}:g:{group}:dlq", self.namespace)
    }

    pub(super) fn dead_groups(&self, topic: &str) -> String {
        format!("{}:{{{topic}}}:dlqs", self.namespace)
    }

    pub(super) fn janitor(&self, topic: &str) -> String {
        format!("{}:{{{topic}}}:janitor", self.namespace)
    }

    pub(super) fn floors(&self, topic: &str) -> String {
        format!("{}:{{{topic}}}:floors", self.namespace)
    }

    pub(super) fn topics(&self) -> String {
        format!("{}:topics", self.namespace)
    }

    pub(super) fn groups(&self) -> String {
        format!("{}:{{groups}}", self.namespace)
    }

    pub(super) fn members(&self, group: &str) -> String {
        format!("{}:{{groups}}:m:{group}", self.namespace)
    }

    /// A key that exists for one day after a group was deleted: it distinguishes a deleted group from a lost one.
    pub(super) fn tombstone(&self, group: &str) -> String {
        format!("{}:{{groups}}:x:{group}", self.namespace)
    }

    pub(super) fn queue(&self, subject: &str) -> String {
        format!("{}:{{rpc:{subject}}}", self.namespace)
    }

    pub(super) fn servers(&self, subject: &str) -> String {
        format!("{}:{{rpc:{subject}}}:servers", self.namespace)
    }

    /// Channel: announces new topics and delayed messages.
    pub(super) fn system(&self) -> SmolStr {
        format_smolstr!("{}:sys", self.channels)
    }

    /// Channel: announces changes to a group.
    pub(super) fn wake(&self, group: &str) -> SmolStr {
        format_smolstr!("{}:wake:{group}", self.channels)
    }

    /// Channel: frames for the callers and credit for the responders of one bus.
    pub(super) fn inbox(&self, client: &str) -> SmolStr {
        format_smolstr!("{}:inbox:{client}", self.channels)
    }

    /// Channel: announces callers of a subject that no longer wait.
    pub(super) fn cancels(&self, subject: &str) -> SmolStr {
        format_smolstr!("{}:rpc:{subject}", self.channels)
    }

    pub(super) fn source(&self, topic: &str, group: &str, replay: bool) -> Arc<Source> {
        let settings = self.settings(topic, group);
        let stem = if replay { format!("{settings}:replay") } else { settings };
        Arc::new(Source {
            topic: topic.into(),
            replay,
            stream: if replay { stem.clone() } else { self.log(topic) },
            due: format!("{stem}:due"),
            notes: format!("{stem}:notes"),
        })
    }
}
