//! Ports for programs that must be told one.

use std::net::TcpListener;

/// A loopback TCP port that was free a moment ago.
///
/// Another process may take it before the program under test does: where a program accepts port 0 and prints
/// the address it got, use that instead.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port can be bound");
    listener.local_addr().expect("a bound socket has an address").port()
}
