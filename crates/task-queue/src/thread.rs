//! Work that must go on while task functions keep the runtime's threads busy: a thread with a runtime of its own.

use crate::{Error, ErrorKind, Result};

/// Runs `work` to its end on a new thread.
pub(crate) fn run(name: &str, work: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Unavailable, format!("starting thread {name}")).with(error)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || runtime.block_on(work))
        .map_err(failed)?;
    Ok(())
}
