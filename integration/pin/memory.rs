//! A look into another process's memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

/// Bytes that are looked at together. What stands across two of them is seen
/// too: the second begins a little before the end of the first.
const PIECE: u64 = 1 << 20;
const OVERLAP: u64 = 4096;

/// Shows all memory of the process that can be read, piece by piece.
pub(super) fn search(pid: u32, mut look: impl FnMut(&[u8])) {
    let memory = match File::open(format!("/proc/{pid}/mem")) {
        Ok(memory) => memory,
        Err(error) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI must be able to read the memory of a process: {error}"
            );
            eprintln!("WARNING: SKIPPED, the memory of a process cannot be read here: {error}");
            return;
        }
    };
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut seen = 0_usize;
    for line in maps.lines().filter(|line| !line.contains("[v")) {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with('r') {
            continue;
        }
        let (begin, end) = range.split_once('-').unwrap();
        let (mut at, end) = (address(begin), address(end));
        while at < end {
            let mut piece = vec![0; usize::try_from(PIECE.min(end - at)).unwrap()];
            // A page may have gone since the list was read.
            if let Ok(length) = memory.read_at(&mut piece, at) {
                look(&piece[..length]);
                seen += length;
            }
            at += (PIECE - OVERLAP).min(end - at);
        }
    }
    assert!(seen > 1 << 20, "only {seen} bytes of memory were seen");
}

fn address(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap()
}
