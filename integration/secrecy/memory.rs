//! A look into another process: everything of it that can be read.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::wait_for;

use super::needles::{Found, Needles};

/// A process that stands still; it goes on when this is dropped.
pub(super) struct Paused(Pid);

impl Paused {
    pub(super) fn new(pid: u32) -> Self {
        let paused = Self(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap());
        kill_process(paused.0, Signal::STOP).unwrap();
        wait_for("the stop of every thread", Duration::from_secs(10), || {
            tasks(pid).iter().all(|task| {
                let stat = fs::read_to_string(format!("{task}/stat")).unwrap_or_default();
                // The name, in parentheses, may hold anything.
                stat.rsplit(") ")
                    .next()
                    .is_some_and(|rest| rest.starts_with('T'))
            })
        });
        paused
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // Of no use where it has ended already.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// The processes that this one started.
pub(super) fn children(pid: u32) -> Vec<u32> {
    tasks(pid)
        .iter()
        .filter_map(|task| fs::read_to_string(format!("{task}/children")).ok())
        .flat_map(|list| {
            list.split_whitespace()
                .map(|child| child.parse().unwrap())
                .collect::<Vec<u32>>()
        })
        .collect()
}

fn tasks(pid: u32) -> Vec<String> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|task| task.unwrap().path().display().to_string())
        .collect()
}

/// What the readable maps of a process held at one time, without pages of zeros.
pub(super) struct Image {
    runs: Vec<Vec<u8>>,
    maps: usize,
    unread: Vec<String>,
}

const PAGE: usize = 4096;

impl Image {
    /// Reads the memory of a process.
    ///
    /// # Errors
    /// This process may not read it.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let mut image = Self {
            runs: Vec::new(),
            maps: 0,
            unread: Vec::new(),
        };
        for line in maps.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [range, rights, ..] = fields.as_slice() else {
                panic!("{line}");
            };
            if !rights.starts_with('r') {
                continue;
            }
            let (begin, end) = range.split_once('-').unwrap();
            let begin = u64::from_str_radix(begin, 16).unwrap();
            let end = u64::from_str_radix(end, 16).unwrap();
            let name = fields.get(5..).unwrap_or_default().join(" ");
            // The kernel's own pages, clocks and entry points, which it shows to nobody but the process.
            if ["[vvar]", "[vvar_vclock]", "[vsyscall]"].contains(&name.as_str()) {
                continue;
            }
            image.maps += 1;
            image.read(&memory, begin, end, &name);
        }
        Ok(image)
    }

    fn read(&mut self, memory: &File, begin: u64, end: u64, name: &str) {
        let mut bytes = vec![0; usize::try_from(end - begin).unwrap()];
        if memory.read_exact_at(&mut bytes, begin).is_err() {
            // Some page of it cannot be read, past the end of a file perhaps.
            for (index, page) in bytes.chunks_mut(PAGE).enumerate() {
                let at = begin + u64::try_from(index * PAGE).unwrap();
                if let Err(error) = memory.read_exact_at(page, at) {
                    self.unread.push(format!("{at:x} {name}: {error}"));
                }
            }
        }
        // A key that reached into a page of zeros would have to end in zeros.
        self.runs
            .extend(written(&bytes).into_iter().map(<[u8]>::to_vec));
    }

    /// Bytes that are to be searched.
    pub(super) fn len(&self) -> usize {
        self.runs.iter().map(Vec::len).sum()
    }

    /// Number of maps that were read.
    pub(super) const fn maps(&self) -> usize {
        self.maps
    }

    /// Pages that could not be read.
    pub(super) fn unread(&self) -> &[String] {
        &self.unread
    }

    /// What of the keys it holds.
    pub(super) fn find(&self, needles: &Needles) -> Found {
        let mut found = Found::new();
        for run in &self.runs {
            needles.find(run, &mut found);
        }
        found
    }
}

/// Runs of pages that are not all zeros.
fn written(bytes: &[u8]) -> Vec<&[u8]> {
    let zeros = [0; PAGE];
    let mut runs = Vec::new();
    let mut begin = None;
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        let at = index * PAGE;
        match (page == &zeros[..page.len()], begin) {
            (false, None) => begin = Some(at),
            (true, Some(from)) => {
                runs.push(&bytes[from..at]);
                begin = None;
            }
            (false, Some(_)) | (true, None) => {}
        }
    }
    runs.extend(begin.map(|from| &bytes[from..]));
    runs
}
