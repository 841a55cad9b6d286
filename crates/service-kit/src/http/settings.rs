//! Settings of the HTTP listener.

use serde::Deserialize;

/// Address and port to listen on, and the allowed hosts and origins.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Name or address of the interface; default `127.0.0.1`, so that no other machine can connect unless this is
    /// set.
    pub host: String,
    /// TCP port; default 5000; 0 selects any free port.
    pub port: u16,
    /// Whether to listen on addresses other than loopback although this server requires no password or token: every
    /// client that can connect can read and change everything. Default false: [`bind`](super::bind) then refuses such an address.
    pub allow_unauthenticated: bool,
    /// Host names that clients may send in `Host`, in addition to `localhost`, addresses, and [`host`](Self::host); a
    /// port is ignored, `*` allows every name. Default: none.
    pub allowed_hosts: Vec<String>,
    /// Origins, such as `https://ops.example:8443`, whose pages may send changes and open WebSockets, in addition to
    /// the server's own. Default: none.
    pub allowed_origins: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 5000,
            allow_unauthenticated: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
        }
    }
}
