//! Finds ports for programs that need a port number as a setting.

use std::net::TcpListener;

/// Returns a loopback TCP port that was free a moment ago.
///
/// Another process may take it before the program under test does: where a program accepts port 0 and prints
/// its address, use that instead.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port can be bound");
    listener.local_addr().expect("a bound socket has an address").port()
}
