//! Findings of the server check: version, limits, durability, security and clock of the server behind a transport.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use smol_str::SmolStr;

/// The largest harmless difference between the server's clock and the local clock; a larger one makes delays, leases
/// and ages noticeably wrong.
const SKEW: Duration = Duration::from_secs(1);

/// The result of one check, with the remedy if something should be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The name of the check, in one or two words: `version`.
    pub check: SmolStr,
    /// The severity. Serialized as `verdict`.
    #[serde(rename = "verdict")]
    pub severity: Severity,
    /// The observation, and the remedy.
    pub text: String,
}

/// The severity of a [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing to change.
    Good,
    /// It works, but should be changed for production.
    Advice,
    /// Something fails or will fail soon.
    Bad,
}

impl Finding {
    /// A finding with [`Severity::Good`].
    pub fn good(check: impl Into<SmolStr>, text: impl Into<String>) -> Self {
        Self { check: check.into(), severity: Severity::Good, text: text.into() }
    }

    /// A finding with [`Severity::Advice`].
    pub fn advice(check: impl Into<SmolStr>, text: impl Into<String>) -> Self {
        Self { check: check.into(), severity: Severity::Advice, text: text.into() }
    }

    /// A finding with [`Severity::Bad`].
    pub fn bad(check: impl Into<SmolStr>, text: impl Into<String>) -> Self {
        Self { check: check.into(), severity: Severity::Bad, text: text.into() }
    }
}

/// Judges the server's clock; `server` was read between the local times `before` and `after`.
pub fn clock(before: Timestamp, server: Timestamp, after: Timestamp) -> Finding {
    let off = if server < before {
        before.duration_since(server)
    } else if server > after {
        server.duration_since(after)
    } else {
        jiff::SignedDuration::ZERO
    };
    let text =
        format!("the server's clock differs from the local clock by {:.0} ms", off.as_secs_f64() * 1e3);
    if off.unsigned_abs() > SKEW {
        Finding::bad("clock", format!("{text}: retries, delays and ages are wrong by this; run NTP on both"))
    } else {
        Finding::good("clock", text)
    }
}

/// Judges a limited resource by its use: from nine tenths of the limit on it is bad. `None` where there is no limit.
pub fn room(check: &'static str, what: &str, used: u64, limit: Option<u64>, remedy: &str) -> Option<Finding> {
    let limit = limit.filter(|limit| *limit > 0)?;
    let text = format!("{what}: {used} of {limit} used");
    Some(if used >= limit / 10 * 9 {
        Finding::bad(check, format!("{text}; {remedy}"))
    } else {
        Finding::good(check, text)
    })
}

/// Judges a connection to `hosts` without TLS; `None` when it is encrypted or stays on this machine.
pub fn plain_text<'a>(
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
    let text = format!("messages and credentials are sent unencrypted to {}; {remedy}", far.join(", "));
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
