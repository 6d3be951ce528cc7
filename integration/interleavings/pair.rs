//! The two tokens and the drives, which all cases share.

use std::sync::atomic::{AtomicUsize, Ordering};

use ekm::config::TokenConfig;
use tempfile::TempDir;

use super::steps::DRIVES;
use crate::faulty::Faulty;
use crate::several::altered;
use crate::support::{Hsm, Kind, TestDrive, drive, pkcs8_key};

/// KEKs that both tokens hold; a rotation moves the defaults to the next one.
pub(super) const KEKS: usize = 4;

/// Longest time for an exchange, seconds.
pub(super) const DEADLINE: u64 = 8;

/// Two tokens with the same KEKs, each behind the faulty module.
pub(super) struct Pair {
    hsms: [Hsm; 2],
    pub(super) faulty: [Faulty; 2],
    pub(super) names: [&'static str; 2],
    pub(super) drives: Vec<TestDrive>,
    _directory: TempDir,
    made: AtomicUsize,
}

impl Pair {
    pub(super) async fn new() -> Self {
        let hsms = [
            Hsm::new(Kind::SofthsmInProcess, "one").await,
            Hsm::new(Kind::SofthsmInProcess, "two").await,
        ];
        for kek in 0..KEKS {
            let key = pkcs8_key();
            for hsm in &hsms {
                let file = hsm.directory.path().join("kek.der");
                std::fs::write(&file, &key).unwrap();
                hsm.hand(&["import-private", &label(kek), &file.display().to_string()]);
            }
        }
        let faulty = hsms.each_ref().map(Faulty::before);
        let directory = tempfile::tempdir().unwrap();
        let drives = (1..=u32::try_from(DRIVES).unwrap())
            .map(|n| drive(directory.path(), n, Kind::SofthsmInProcess.form()))
            .collect();
        Self {
            hsms,
            faulty,
            names: ["main", "second"],
            drives,
            _directory: directory,
            made: AtomicUsize::new(0),
        }
    }

    /// Both in a configuration.
    pub(super) fn tokens(&self) -> Vec<TokenConfig> {
        let deadline = format!("deadline_seconds = {DEADLINE}");
        let sooner = [("deadline_seconds = 30", deadline.as_str())];
        self.hsms
            .iter()
            .zip(&self.faulty)
            .zip(self.names)
            .map(|((hsm, faulty), name)| faulty.through(altered(hsm, name, &sooner)))
            .collect()
    }

    /// A label that no KEK on these tokens has.
    pub(super) fn next_label(&self) -> String {
        format!("MADE{}", self.made.fetch_add(1, Ordering::Relaxed))
    }
}

pub(super) fn label(kek: usize) -> String {
    format!("KEK{kek}")
}
