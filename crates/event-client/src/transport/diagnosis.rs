//! What a transport says of the server behind it: versions, limits, durability, safety.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use smol_str::SmolStr;

/// How far the server's clock may be from ours before delays, leases and ages are felt to be wrong.
const SKEW: Duration = Duration::from_secs(1);

/// One thing that was looked at, and what to change where it is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at, in one or two words: `version`.
    pub check: SmolStr,
    /// How serious it is. Serialized as `verdict`.
    #[serde(rename = "verdict")]
    pub severity: Severity,
    /// What was seen, and what to do about it.
    pub text: String,
}

/// What is thought of a [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// As it should be.
    Good,
    /// It works; in production it should be otherwise.
    Advice,
    /// Something fails, or is about to.
    Bad,
}

impl Finding {
    /// All is well.
    pub fn good(check: impl Into<SmolStr>, text: impl Into<String>) -> Self {
        Self { check: check.into(), severity: Severity::Good, text: text.into() }
    }

    /// It works and could be better.
    pub fn advice(check: impl Into<SmolStr>, text: impl Into<String>) -> Self {
        Self { check: check.into(), severity: Severity::Advice, text: text.into() }
    }

    /// Something is wrong.
    pub fn bad(check: impl Into<SmolStr>, text: impl Into<String>) -> Self {
        Self { check: check.into(), severity: Severity::Bad, text: text.into() }
    }
}

/// What to think of the server's clock, which was read between `before` and `after` of ours.
pub(super) fn clock(before: Timestamp, server: Timestamp, after: Timestamp) -> Finding {
    let off = if server < before {
        before.duration_since(server)
    } else if server > after {
        server.duration_since(after)
    } else {
        jiff::SignedDuration::ZERO
    };
    let text = format!("the server's clock is {:.0} ms off ours", off.as_secs_f64() * 1e3);
    if off.unsigned_abs() > SKEW {
        Finding::bad("clock", format!("{text}: retries, delays and ages are off by as much; run NTP on both"))
    } else {
        Finding::good("clock", text)
    }
}

/// What to think of a budget that is used so far; `None` where there is no limit.
pub(super) fn room(
    check: &'static str,
    what: &str,
    used: u64,
    limit: Option<u64>,
    remedy: &str,
) -> Option<Finding> {
    let limit = limit.filter(|limit| *limit > 0)?;
    let text = format!("{what}: {used} of {limit} used");
    Some(if used >= limit / 10 * 9 {
        Finding::bad(check, format!("{text}; {remedy}"))
    } else {
        Finding::good(check, text)
    })
}

/// What to think of a connection to these hosts without TLS; `None` when it is encrypted or stays on this machine.
pub(super) fn plain_text<'a>(
    encrypted: bool,
    hosts: impl IntoIterator<Item = &'a str>,
    remedy: &str,
) -> Option<Finding> {
    if encrypted {
        return None;
    }
    let local = |host: &&str| {
        matches!(*host, "localhost" | "::1" | "[::1]") || host.starts_with("127.") || host.starts_with('/')
    };
    let far: Vec<_> = hosts.into_iter().filter(|host| !local(host)).collect();
    if far.is_empty() {
        return None;
    }
    let text = format!("messages and credentials travel in the clear to {}; {remedy}", far.join(", "));
    Some(Finding::advice("encryption", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_judged_by_what_lies_outside_the_question() {
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        assert_eq!(clock(at(10), at(12), at(14)).severity, Severity::Good);
        assert_eq!(clock(at(10_000), at(9_500), at(10_001)).severity, Severity::Good);
        for server in [at(1_000), at(20_000)] {
            let finding = clock(at(10_000), server, at(10_100));
            assert_eq!(finding.severity, Severity::Bad, "{finding:?}");
        }
        assert!(clock(at(10_000), at(1_000), at(10_100)).text.contains("9000 ms"));
    }

    #[test]
    fn nine_tenths_of_a_budget_are_too_many() {
        assert_eq!(room("x", "x", 5, None, ""), None);
        assert_eq!(room("x", "x", 5, Some(0), ""), None);
        assert_eq!(room("x", "x", 899, Some(1_000), "").unwrap().severity, Severity::Good);
        assert_eq!(room("x", "x", 900, Some(1_000), "").unwrap().severity, Severity::Bad);
    }

    #[test]
    fn only_what_leaves_the_machine_needs_tls() {
        assert_eq!(plain_text(true, ["far"], ""), None);
        assert_eq!(plain_text(false, ["localhost", "127.0.0.1", "[::1]", "/run/x"], ""), None);
        let text = plain_text(false, ["127.0.0.1", "far"], "use tls://").unwrap().text;
        assert!(text.contains("to far; use tls://"), "{text}");
    }
}
