//! The exam that every transport passes
