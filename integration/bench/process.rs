//! CPU time and memory of processes, from /proc (proc(5)).

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::sample::float;

/// Length of a tick of `/proc/PID/stat`: USER_HZ is 100 on every Linux that there is.
const TICK: Duration = Duration::from_millis(10);

/// CPU time by who took it, user and system: microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Cpu {
    /// This program: the load generator.
    pub(crate) load_us: f64,
    /// `ekm serve`.
    pub(crate) server_us: f64,
    /// Its bridges, or the bare loop: the token's work included where it is in process.
    pub(crate) bridges_us: f64,
}

impl Cpu {
    /// What has been taken up to now.
    pub(crate) fn now(server: Option<u32>) -> Self {
        let us = |pid: u32| taken(pid).as_secs_f64() * 1e6;
        Self {
            load_us: us(std::process::id()),
            server_us: server.map_or(0.0, us),
            bridges_us: children(server.unwrap_or_else(std::process::id))
                .into_iter()
                .map(us)
                .sum(),
        }
    }

    /// What one process that works on the token has taken up to now.
    pub(crate) fn of_token(pid: u32) -> Self {
        Self {
            bridges_us: taken(pid).as_secs_f64() * 1e6,
            ..Self::default()
        }
    }

    /// What each of `count` took since.
    pub(crate) fn since(self, before: Self, count: f64) -> Self {
        let each = |after: f64, before: f64| {
            if count > 0.0 {
                (after - before) / count
            } else {
                0.0
            }
        };
        Self {
            load_us: each(self.load_us, before.load_us),
            server_us: each(self.server_us, before.server_us),
            bridges_us: each(self.bridges_us, before.bridges_us),
        }
    }
}

/// Fields of `/proc/PID/stat` after the program's name, which may hold blanks.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split(' ').map(str::to_owned).collect())
}

fn taken(pid: u32) -> Duration {
    let Some(stat) = stat(pid) else {
        return Duration::ZERO;
    };
    // utime and stime are fields 14 and 15; the first one here is field 3.
    let ticks = stat
        .iter()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u32>().ok());
    TICK * ticks.sum()
}

/// The bridges of a process: its children that are named so.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let parent_of = stat(*pid).and_then(|stat| stat.get(1)?.parse::<u32>().ok());
            let bridge = std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.split(|byte| *byte == 0).nth(1) == Some(b"bridge"));
            parent_of == Some(parent) && bridge
        })
        .collect()
}

/// Proportional set size in bytes: what a process holds, shared pages by share.
///
/// # Errors
/// Another user's process, or one that forbids to be looked into, is read by root only.
pub(crate) fn pss(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {path}: run this as root"))?;
    text.lines()
        .find_map(|line| {
            let kib = line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?;
            Some(kib.parse::<u64>().ok()? * 1024)
        })
        .with_context(|| format!("{path} has no Pss"))
}

/// A size, in MiB.
pub(crate) fn mib(bytes: u64) -> f64 {
    float(usize::try_from(bytes / 1024).unwrap_or(usize::MAX)) / 1024.0
}

/// The machine, in a line.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores of {model}, Linux {}", kernel.trim())
}
