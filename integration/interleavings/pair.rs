//! The two tokens, which all cases share.

use std::sync::atomic::{AtomicUsize, Ordering};

use ekm::config::TokenConfig;

use crate::faulty::Faulty;
use crate::several::altered;
use crate::support::{Hsm, Kind, pkcs8_key};

/// KEKs that both tokens hold; a rotation moves the defaults to the next one.
pub(super) const KEKS: usize = 4;

/// Two tokens with the same KEKs, each behind the faulty module.
pub(super) struct Pair {
    hsms: [Hsm; 2],
    pub(super) faulty: [Faulty; 2],
    pub(super) names: [&'static str; 2],
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
        Self {
            hsms,
            faulty,
            names: ["main", "second"],
            made: AtomicUsize::new(0),
        }
    }

    /// Both in a configuration. A call that hangs is given up after seconds.
    pub(super) fn tokens(&self) -> Vec<TokenConfig> {
        let sooner = [("deadline_seconds = 30", "deadline_seconds = 8")];
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
