//! The backbone binary: everything in one process, and the tools to look inside
fn main() {}
