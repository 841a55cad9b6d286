//! Runs a future on its own thread and runtime, because task functions may keep the main runtime's threads busy.

use crate::{Error, ErrorKind, Result};

/// Runs `work` to completion on a new thread.
pub(crate) fn run(name: &str, work: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Unavailable, format!("cannot start thread {name}")).because(error)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || runtime.block_on(work))
        .map_err(failed)?;
    Ok(())
}
