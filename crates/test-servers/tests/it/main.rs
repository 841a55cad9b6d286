//! The servers themselves: they start, keep their data, refuse strangers, and die with their test.

mod life;
