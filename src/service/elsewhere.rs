//! Cartridges that may need a KEK and are not in the history: what impact cannot count.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;

use super::{Service, unstored};
use crate::bridge::message::Provenance;
use crate::config::Config;
use crate::key::{KekHash, KeyLabel};
use crate::migrate::history;
use crate::problem::Problem;
use crate::sync::Writes;
use crate::volser::Volser;

/// By then a job has said whether it wrote, also where its proxy could not reach a server for days.
const JOB: time::Duration = time::Duration::days(7);

/// Volumes that are named at most.
const SHOWN: usize = 4;

/// What a server knows of them.
#[derive(Debug)]
pub(super) struct Elsewhere {
    // Where records of EKM 2.1 are kept.
    state: PathBuf,
    // KEKs that the state has on record already, as far as this server put them there.
    noted: Mutex<HashSet<KekHash>>,
}

impl Elsewhere {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            state: config.state.clone(),
            noted: Mutex::default(),
        }
    }

    /// Whether it was not noted yet; from now on it is.
    fn first(&self, kek: KekHash) -> bool {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.insert(kek)
    }

    fn not_noted(&self, kek: &KekHash) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.remove(kek);
    }
}

impl Service {
    /// A KEK has opened an EEDK that was not issued here. The first time is kept.
    pub(super) async fn note_foreign(&self, kek: &KekHash, volser: Option<&Volser>) {
        if !self.elsewhere.first(*kek) {
            return;
        }
        if let Err(error) = self.store.note_foreign(kek, volser).await {
            tracing::warn!(%error, %kek, "that a KEK opens what was not issued here is not kept yet");
            self.elsewhere.not_noted(kek);
        }
    }

    /// Why cartridges may need a KEK that the history does not know of; nothing where it was made
    /// for what was issued here, has never opened anything else, and no server beside this one may
    /// have written under it since its history was last taken over.
    ///
    /// # Errors
    /// The state, or the records of EKM 2.1, cannot be read.
    pub(crate) async fn needed_elsewhere(
        &self,
        label: &KeyLabel,
        kek: &KekHash,
    ) -> Result<Option<String>, Problem> {
        let mut reasons = Vec::new();
        let registry = self.store.keks().await;
        let registry = registry.map_err(|error| unstored(&error))?;
        let row = registry.iter().find(|row| row.hash == *kek);
        match row.map(|row| row.provenance) {
            Some(
                provenance @ (Provenance::Imported | Provenance::Restored | Provenance::Software),
            ) => {
                reasons.push(format!("it was not made here ({provenance})"));
            }
            Some(Provenance::Born | Provenance::Copied) | None => {}
        }
        let seen = self.store.foreign_keks().await;
        let seen = seen.map_err(|error| unstored(&error))?;
        if let Some((_, first)) = seen.iter().find(|(seen, _)| seen == kek) {
            reasons.push(format!(
                "it has opened EEDKs that were not issued here, {first}"
            ));
        }
        let state = self.elsewhere.state.clone();
        let read = tokio::task::spawn_blocking(move || history::read(&state)).await;
        let records = match read {
            Ok(Ok(records)) => records,
            Ok(Err(error)) => return Err(Problem::internal(error.to_string())),
            Err(error) => return Err(Problem::internal(error.to_string())),
        };
        let named = |alias: &str| alias.eq_ignore_ascii_case(label.as_str());
        let volumes: HashSet<&str> = records
            .iter()
            .filter(|used| named(&used.alias1) || named(&used.alias2))
            .map(|used| used.volser.as_str())
            .collect();
        if !volumes.is_empty() {
            reasons.push(format!(
                "EKM 2.1 keyed {} cartridge(s) under it, by the records that were taken over",
                volumes.len()
            ));
        }
        let since = OffsetDateTime::now_utc() - JOB;
        let overwritten = self.store.overwritten_since(kek, since, SHOWN).await;
        let overwritten = overwritten.map_err(|error| unstored(&error))?;
        if !overwritten.is_empty() {
            let names: Vec<String> = overwritten.iter().map(ToString::to_string).collect();
            reasons.push(format!(
                "volume(s) {} were given other keys within a week, and hold the former one still where that job writes nothing after all",
                names.join(", ")
            ));
        }
        for (peer, writes) in self.peers.writes(kek) {
            match writes {
                Writes::Nothing => {}
                Writes::Active => reasons.push(format!(
                    "it is active on {peer}, which may write under it: retire it there, too, and sync again (ekm sync --from {peer} --what all)"
                )),
                Writes::Unknown => reasons.push(format!(
                    "what {peer} wrote under it is not known: its history was not read to the end within the last quarter of an hour (ekm sync --from {peer} --what all)"
                )),
            }
        }
        Ok((!reasons.is_empty()).then(|| reasons.join("; ")))
    }
}
