//! The source of a value, so that an error can name the place where the value has to be changed.

use std::fmt;

/// The source of one value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The built-in defaults of the program.
    Default,
    /// A configuration file: path and line.
    File(String, usize),
    /// An environment variable.
    Variable(String),
    /// A command-line flag.
    Flag(String),
}

impl Origin {
    /// Returns whether the source contains only text, so that numbers and booleans have to be parsed.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self, Self::Variable(_) | Self::Flag(_))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the built-in defaults"),
            Self::File(path, line) => write!(f, "{path}:{line}"),
            Self::Variable(name) => write!(f, "the variable {name}"),
            Self::Flag(name) => write!(f, "the flag {name}"),
        }
    }
}
