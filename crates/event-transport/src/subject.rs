//! Names: subjects of messages, patterns of subscriptions, and consumer groups.

use std::fmt;

use smol_str::SmolStr;

use crate::error::{Error, ErrorKind, Result};

/// Longest subject, pattern or group name in bytes: it fits into a RabbitMQ routing key and leaves room for a prefix.
pub const MAX_NAME: usize = 200;
/// The highest number of tokens in a subject.
pub const MAX_TOKENS: usize = 8;

/// A valid subject such as `orders.placed.v1`: dot-separated tokens of `[a-z0-9_-]`.
///
/// The first token is the **topic**, the unit of storage and of order.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(SmolStr);

impl Subject {
    /// Checks `name` and makes a subject of it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] for a name that is empty or too long, or that has an invalid token.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        check(name, false)?;
        Ok(Self(SmolStr::new(name)))
    }

    /// The subject as text.
    #[inline]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first token: the unit of storage and of order.
    #[inline]
    pub fn topic(&self) -> &str {
        self.0.split('.').next().unwrap_or_default()
    }
}

/// The subjects that a subscription receives: one subject, or NATS-style wildcards.
///
/// `*` matches exactly one token, `>` matches one or more tokens at the end: `orders.>` does not match `orders`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern(SmolStr);

impl Pattern {
    /// Checks `pattern` and makes a pattern of it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] for an empty or too long text, an invalid token, or `>` before the end.
    pub fn new(pattern: impl AsRef<str>) -> Result<Self> {
        let pattern = pattern.as_ref();
        check(pattern, true)?;
        Ok(Self(SmolStr::new(pattern)))
    }

    /// The pattern as text.
    #[inline]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has no wildcard and so matches one subject only.
    #[inline]
    pub fn is_exact(&self) -> bool {
        !self.0.contains(['*', '>'])
    }

    /// The topic, when the first token is not a wildcard.
    #[inline]
    pub fn topic(&self) -> Option<&str> {
        self.0.split('.').next().filter(|token| !matches!(*token, "*" | ">"))
    }

    /// Whether `subject` matches the pattern.
    #[inline]
    pub fn matches(&self, subject: &Subject) -> bool {
        let mut tokens = subject.as_str().split('.');
        for want in self.0.split('.') {
            match (want, tokens.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (want, Some(token)) if want == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }
}

impl From<&Subject> for Pattern {
    fn from(subject: &Subject) -> Self {
        Self(subject.0.clone())
    }
}

/// The name of a durable consumer group. Every group receives each event, and one member of the group handles it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group(SmolStr);

impl Group {
    /// Checks `name` and makes a group name of it; the rules are those of a subject.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] as for a subject.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        check(name, false)?;
        Ok(Self(SmolStr::new(name)))
    }

    /// The group name as text.
    #[inline]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(name: &str, wildcards: bool) -> Result<()> {
    let refuse = |what: &str| {
        let what = format!(
            "{what}; use 1 to {MAX_TOKENS} dot-separated tokens of a-z 0-9 _ - in at most {MAX_NAME} bytes, such as `orders.placed.v1`"
        );
        Err(Error::new(ErrorKind::InvalidName, what)
            .with("name", format!("{:?}", &name[..name.floor_char_boundary(80)])))
    };
    if name.is_empty() || name.len() > MAX_NAME {
        return refuse("the name is empty or too long");
    }
    let mut count = 0;
    let mut ended = false;
    for token in name.split('.') {
        count += 1;
        if ended {
            return refuse("`>` is only allowed at the end");
        }
        match token {
            "" => return refuse("the name has an empty token"),
            "*" if wildcards => {}
            ">" if wildcards => ended = true,
            _ if token.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')) => {}
            _ => return refuse("the name has a character that is not allowed"),
        }
    }
    if count > MAX_TOKENS { refuse("the name has too many tokens") } else { Ok(()) }
}

macro_rules! text {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{:?}", self.0.as_str()) }
        }
        impl std::str::FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> { Self::new(text) }
        }
    )*};
}
text!(Subject Pattern Group);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, subject: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(&Subject::new(subject).unwrap())
    }

    #[test]
    fn wildcard_truth_table() {
        for (pattern, subject, want) in [
            ("orders.placed", "orders.placed", true),
            ("orders.placed", "orders.placed.v1", false),
            ("orders.*", "orders.placed", true),
            ("orders.*", "orders", false),
            ("orders.*", "orders.placed.v1", false),
            ("orders.>", "orders", false),
            ("orders.>", "orders.placed", true),
            ("orders.>", "orders.placed.v1", true),
            ("*.placed.>", "orders.placed.v1", true),
            (">", "orders", true),
        ] {
            assert_eq!(matches(pattern, subject), want, "{pattern} against {subject}");
        }
    }

    #[test]
    fn bad_names_are_refused_with_the_rule() {
        for name in ["", ".", "a..b", "Orders", "a b", "a.>", "ä", &"x".repeat(201), "a.b.c.d.e.f.g.h.i"] {
            let error = Subject::new(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidName);
            assert!(error.to_string().contains("orders.placed.v1"), "{error}");
        }
        assert!(Pattern::new("a.>.b").is_err());
    }

    proptest! {
        #[test]
        fn a_subject_matches_itself_and_everything(name in "[a-z0-9_-]{1,8}(\\.[a-z0-9_-]{1,8}){0,7}") {
            prop_assert!(matches(&name, &name));
            prop_assert!(matches(">", &name));
        }

        #[test]
        fn checking_never_panics(name in ".*") {
            let _ = Subject::new(&name);
            let _ = Pattern::new(&name);
        }
    }
}
