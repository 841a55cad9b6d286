//! Reads the broker's greeting before a connection is opened: its product and its version.
//!
//! The client library does not expose the greeting, so it is read before each connection, on a separate one. An older
//! broker may silently ignore a feature that it does not support, so its version must be known beforehand.

use std::time::Duration;

use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::tcp::{AMQPUriTcpExt, OwnedTLSConfig};
use lapin::types::AMQPValue;
use lapin::types::parsing::parse_field_table;
use lapin::uri::{AMQPScheme, AMQPUri};
use tokio::time::timeout;

use event_transport::error::{Error, ErrorKind, Result};

/// Protocol header of AMQP 0.9.1.
const HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// Start of a frame: a method, channel 0.
const FRAME: [u8; 3] = [1, 0, 0];
/// The method `connection.start`, of protocol 0.9.
const START: [u8; 6] = [0, 10, 0, 10, 0, 9];
/// Maximum size of a greeting in bytes.
const LARGEST: usize = 64 * 1024;
/// How long the second try reads from a server that closed a TLS connection, before it sends anything.
const LISTEN: Duration = Duration::from_secs(1);

/// Version of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u32, u32);

impl Version {
    /// The oldest version with the features that groups need: quorum queues with a time to live, dead-lettering at
    /// least once.
    const OLDEST: Self = Self(3, 10);

    /// Whether a message that was returned by `nack` is not counted as delivered, and keeps its place.
    pub(super) fn returns_uncounted(self) -> bool {
        self >= Self(4, 3)
    }

    /// Whether a consumer may set how long it may hold a delivery (`x-consumer-timeout`).
    pub(super) fn lets_consumers_hold(self) -> bool {
        self >= Self(3, 12)
    }

    /// Whether quorum queues survive a full disk: it was observed to leave gaps in their log with 3.10, and not with
    /// 4.3.
    pub(super) fn survives_full_disks(self) -> bool {
        self >= Self(4, 3)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RabbitMQ {}.{}", self.0, self.1)
    }
}

/// Reads the version of the broker at `uri`.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a server that is not RabbitMQ or is too old, [`ErrorKind::Unavailable`] when there is
/// no greeting.
pub(super) async fn version(uri: &AMQPUri, tls: &OwnedTLSConfig) -> Result<Version> {
    let greeting = match read(uri, tls, None).await {
        // With TLS 1.3, the server refuses a client certificate after the client already considers itself connected.
        // The server closes without reading the data that the client sent meanwhile, so TCP answers with a reset, which
        // can overtake the TLS alert. A client that sends nothing receives the alert.
        Err(error) if error.kind() == ErrorKind::Unavailable && uri.scheme == AMQPScheme::AMQPS => {
            read(uri, tls, Some(LISTEN)).await?
        }
        greeting => greeting?,
    };
    let properties = match parse_field_table(greeting.as_slice()) {
        Ok((_, table)) => table,
        Err(_) => return Err(Error::new(ErrorKind::Unsupported, "the server's greeting cannot be read")),
    };
    let text = |name: &str| match properties.inner().get(name) {
        Some(AMQPValue::LongString(text)) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        _ => String::new(),
    };
    judge(&text("product"), &text("version"))
}

fn judge(product: &str, version: &str) -> Result<Version> {
    let oldest = format!("RabbitMQ {}.{} or later is needed", Version::OLDEST.0, Version::OLDEST.1);
    let refused = |text: String| Err(Error::new(ErrorKind::Unsupported, text));
    if product != "RabbitMQ" {
        return refused(format!("the server is {product:?}; {oldest}"));
    }
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if Version(major, minor) >= Version::OLDEST => Ok(Version(major, minor)),
        _ => refused(format!("the server is RabbitMQ {version}; {oldest}")),
    }
}

/// The error of a connection that could not be opened, or broke. A certificate that either side refuses will be refused
/// again, so that error is `Denied`.
fn failed(error: std::io::Error) -> Error {
    let certificates = error.to_string().to_ascii_lowercase().contains("certificate");
    let (kind, text) = if certificates {
        (ErrorKind::Denied, "a TLS certificate is refused: see the options ca, cert and key")
    } else {
        (ErrorKind::Unavailable, "the connection to the broker failed")
    };
    Error::new(kind, text).because(error)
}

/// Returns the server properties of the greeting as raw bytes. With `silence`, it first reads that long without
/// sending.
async fn read(uri: &AMQPUri, tls: &OwnedTLSConfig, silence: Option<Duration>) -> Result<Vec<u8>> {
    let stranger = || Error::new(ErrorKind::Unsupported, "the server does not speak AMQP 0.9.1");
    let runtime = lapin::runtime::default_runtime().map_err(super::error::amqp)?;
    let mut stream = uri.connect_with_config_async(tls.as_ref(), &runtime).await.map_err(failed)?;
    let mut start = [0; 7];
    if let Some(silence) = silence
        && let Ok(heard) = timeout(silence, stream.read_exact(&mut start[..1])).await
    {
        return Err(heard.map_or_else(failed, |()| stranger()));
    }
    stream.write_all(HEADER).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    stream.read_exact(&mut start).await.map_err(failed)?;
    let size = u32::from_be_bytes([start[3], start[4], start[5], start[6]]) as usize;
    if start[..3] != FRAME || !(START.len()..LARGEST).contains(&size) {
        return Err(stranger());
    }
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload).await.map_err(failed)?;
    if payload[..START.len()] != START {
        return Err(stranger());
    }
    Ok(payload.split_off(START.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_brokers_and_others_are_refused_by_name() {
        for (product, version, want) in
            [("RabbitMQ", "3.10.8", Version(3, 10)), ("RabbitMQ", "4.3.6-rc.1", Version(4, 3))]
        {
            assert_eq!(judge(product, version).unwrap(), want);
        }
        for (product, version) in [("RabbitMQ", "3.9.29"), ("RabbitMQ", "odd"), ("LavinMQ", "4.0.0")] {
            let error = judge(product, version).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("RabbitMQ 3.10 or later"), "{error}");
        }
        assert!(Version(4, 3).returns_uncounted() && !Version(4, 2).returns_uncounted());
    }
}
