//! Reserves free loopback ports, which stay reserved while a server is down.

use crate::{Error, ErrorKind, Result};
use std::fs::{File, TryLockError};
use std::net::TcpListener;
use std::path::Path;

/// Below the range of outgoing connections (32768 and up on Linux), above the ports of daemons.
const RANGE: std::ops::Range<u16> = 15_000..32_000;

/// A port that no other process with this crate takes until this is dropped, whether or not a server listens
/// on it.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _reserved: File,
}

impl Port {
    /// Reserves a port that is free now. `locks` is the folder in which all processes keep their
    /// reservations.
    pub(crate) fn free(locks: &Path) -> Result<Self> {
        for _ in 0..1000 {
            let number = fastrand::u16(RANGE);
            let path = locks.join(number.to_string());
            let file = File::create(&path)
                .map_err(|e| Error::system(format!("cannot reserve a port in {}", path.display()), e))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(e)) => {
                    return Err(Error::system(format!("cannot lock {}", path.display()), e));
                }
            }
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Ok(Self { number, _reserved: file });
            }
        }
        Err(Error::new(ErrorKind::System, format!("no free loopback port in {RANGE:?} after 1000 tries")))
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}
