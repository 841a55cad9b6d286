//! Reads the CPU time, the memory and the wake-ups of a process.

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

/// Returns the present memory of this process without pages of files, in bytes. The pages of the program itself are read
/// when their code runs for the first time, and would count as growth.
pub fn own_memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    Ok(field(&text, "RssAnon:")? * 1024)
}

/// Returns how often the threads of this process have waited for an event so far, ended threads included.
pub fn own_wake_ups() -> Result<u64> {
    Ok(own()?.voluntary_context_switches() as u64)
}

/// Returns how often the present threads of another process have waited for an event so far.
pub fn wake_ups_of(process: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may have ended since the folder was read.
        if let Ok(text) = std::fs::read_to_string(thread?.path().join("status")) {
            sum += field(&text, "voluntary_ctxt_switches:")?;
        }
    }
    Ok(sum)
}

/// Returns the number behind `name` in a `status` file of `/proc`.
fn field(status: &str, name: &str) -> Result<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name));
    let number =
        rest.and_then(|rest| rest.split_whitespace().next()).with_context(|| format!("no {name}"))?;
    Ok(number.parse()?)
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
