//! The Lua scripts: each is an operation that the server must run in one step.

use std::sync::LazyLock;

use redis::{Cmd, Pipeline, Script};

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)*) => {
        $($(#[$doc])* pub(super) static $name: LazyLock<Lua> =
            LazyLock::new(|| Lua::new(concat!(include_str!("scripts/prelude.lua"), include_str!(concat!("scripts/", $file)))));)*

        static ALL: [&LazyLock<Lua>; [$($file),*].len()] = [$(&$name),*];
    };
}

scripts! {
    PUBLISH = "publish.lua";
    TOPIC = "topic.lua";
    DUE = "due.lua";
    JOIN = "join.lua";
    BEAT = "beat.lua";
    ENSURE = "ensure.lua";
    SURVEY = "survey.lua";
    TAKE = "take.lua";
    PARK = "park.lua";
    ACK = "ack.lua";
    REJECT = "reject.lua";
    RENEW = "renew.lua";
    SKIP = "skip.lua";
    ACQUIRE = "acquire.lua";
    FETCH = "fetch.lua";
    HAND = "hand.lua";
    OWN = "own.lua";
    LEAVE = "leave.lua";
    MOVE = "move.lua";
    REPLAY = "replay.lua";
    STATUS = "status.lua";
    SCAN = "scan.lua";
    TRIM = "trim.lua";
    CALL = "call.lua";
    QUEUED = "queued.lua";
    UNSERVE = "unserve.lua";
}

/// A script and the SHA-1 hash under which the server stores it.
pub(super) struct Lua {
    body: &'static str,
    sha: String,
}

impl Lua {
    fn new(body: &'static str) -> Self {
        Self { body, sha: Script::new(body).get_hash().to_owned() }
    }

    /// Returns a call with `keys`; the caller appends the arguments.
    pub(super) fn on(&self, keys: &[&str]) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.sha).arg(keys.len()).arg(keys);
        command
    }
}

/// Returns the commands that load every script into the server.
pub(super) fn load() -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(ALL.len());
    for script in ALL {
        pipeline.cmd("SCRIPT").arg("LOAD").arg(script.body);
    }
    pipeline
}
