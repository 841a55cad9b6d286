//! Reads the CPU time and the memory of a process.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};

/// Returns the user and system time of this process.
pub fn own_cpu() -> Result<Duration> {
    let usage = own()?;
    let sum = usage.user_time() + usage.system_time();
    Ok(Duration::new(sum.tv_sec() as u64, sum.tv_usec() as u32 * 1000))
}

/// Returns the peak memory of this process, in bytes.
pub fn own_peak() -> Result<u64> {
    Ok(own()?.max_rss() as u64 * 1024)
}

fn own() -> Result<Usage> {
    Ok(getrusage(UsageWho::RUSAGE_SELF)?)
}

/// Returns the user and system time of another process, in hundredths of a second.
pub fn cpu_of(process: u32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is a name in parentheses, which may contain any character.
    let rest = text.rsplit_once(") ").context("no name in stat")?.1;
    let mut times = rest.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let mut next = || times.next().context("no times in stat")?.map_err(anyhow::Error::from);
    let ticks = next()? + next()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100) as f64;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second))
}
