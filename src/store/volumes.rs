//! The history by volume: searched, and what of it counts now.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{EedkState, StoreError, VolumeKey};
use crate::drive::DriveSerial;
use crate::key::{DataKeyId, KekHash};
use crate::volser::Volser;

/// What of the history is wanted; each that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeQuery {
    /// The cartridge.
    pub volser: Option<Volser>,
    /// A KEK that one of the EEDKs is under.
    pub kek: Option<KekHash>,
    /// The data key.
    pub dki: Option<DataKeyId>,
    /// The drive that it was made for.
    pub drive: Option<DriveSerial>,
    /// Made then or later.
    #[serde(with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    /// Made before.
    #[serde(with = "time::serde::rfc3339::option")]
    pub until: Option<OffsetDateTime>,
}

/// A generation of a data key's EEDKs, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// When it was made, microseconds since 1970.
    pub made: i64,
    /// The data key.
    pub dki: DataKeyId,
    /// The generation.
    pub generation: u32,
}

/// Whether EEDKs are on their cartridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMedium {
    /// A drive has confirmed them, and nothing newer.
    Yes,
    /// A drive was given them, and did not say what became of them.
    Perhaps,
    /// They were never stored, or others took their place.
    No,
}

/// A volume that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteOff {
    /// The cartridge.
    pub volser: Volser,
    /// Why.
    pub reason: String,
    /// Who said so.
    pub operator: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

impl WriteOff {
    /// When, by whom and why, in words.
    #[must_use]
    pub fn words(&self) -> String {
        format!(
            "given up on {} by {}: {}",
            self.at.date(),
            self.operator,
            self.reason
        )
    }
}

/// A generation of EEDKs, and what it is worth now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSet {
    /// The EEDKs.
    #[serde(flatten)]
    pub key: VolumeKey,
    /// Whether they are on the cartridge.
    pub medium: OnMedium,
    /// Whether they are the catalog's: the newest that count.
    pub catalog: bool,
    /// Whether they were made without the cartridge.
    pub pending: bool,
    /// Whether the volume was given up since they were made.
    pub written_off: Option<WriteOff>,
}

impl VolumeSet {
    /// Whether the cartridge's data may have to be read by these EEDKs.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.catalog || self.medium != OnMedium::No
    }

    /// Whether one of the EEDKs is under that KEK.
    #[must_use]
    pub fn is_under(&self, kek: &KekHash) -> bool {
        self.key.eedks.iter().any(|stored| stored.kek_hash == *kek)
    }

    /// Where they are, in few words.
    #[must_use]
    pub const fn place(&self) -> &'static str {
        match (self.medium, self.catalog) {
            (OnMedium::Yes, true) => "medium, catalog",
            (OnMedium::Yes, false) => "medium",
            (OnMedium::Perhaps, true) => "medium?, catalog",
            (OnMedium::Perhaps, false) => "medium?",
            (OnMedium::No, true) => "catalog",
            (OnMedium::No, false) => "-",
        }
    }
}

/// All generations of one data key, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataKeySets {
    /// The data key.
    pub dki: DataKeyId,
    /// Its generations.
    pub sets: Vec<VolumeSet>,
}

impl DataKeySets {
    /// Those that count.
    pub fn current(&self) -> impl Iterator<Item = &VolumeSet> {
        self.sets.iter().filter(|set| set.counts())
    }

    /// The catalog's.
    #[must_use]
    pub fn catalog(&self) -> Option<&VolumeSet> {
        self.sets.iter().find(|set| set.catalog)
    }

    /// Says of each generation what it is worth. The newest that a drive confirmed is on the
    /// cartridge; one that is newer may be, as a drive was given it. The catalog's own, where it was
    /// made without the cartridge, counts in any case. Of a data key whose cartridge holds another
    /// one by now, none counts.
    #[must_use]
    pub fn settled(dki: DataKeyId, mut sets: Vec<VolumeSet>) -> Self {
        // Numbers are of the server that gave them; what another server gave is among them by its time.
        sets.sort_by_key(|set| (set.key.created, set.key.generation));
        let confirmed = sets
            .iter()
            .rposition(|set| set.key.state == EedkState::Confirmed);
        let gone = confirmed.is_none()
            && sets
                .iter()
                .any(|set| set.key.state == EedkState::Superseded);
        let mut newest = None;
        for (index, set) in sets.iter_mut().enumerate() {
            let newer = confirmed.is_none_or(|confirmed| index > confirmed);
            set.catalog = false;
            set.medium = match set.key.state {
                // There may be two, where another server's history came in: either may be there.
                EedkState::Confirmed => OnMedium::Yes,
                EedkState::Issued if newer && !gone => OnMedium::Perhaps,
                _ => OnMedium::No,
            };
            if set.medium != OnMedium::No {
                newest = Some(index);
            }
        }
        if let Some(set) = newest.and_then(|index| sets.get_mut(index)) {
            set.catalog = true;
            if set.pending && set.medium == OnMedium::Perhaps {
                set.medium = OnMedium::No;
            }
        }
        Self { dki, sets }
    }
}

/// A page of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumesFound {
    /// Newest first.
    pub volumes: Vec<VolumeSet>,
    /// Whether there are more.
    pub more: bool,
}

/// The history by volume.
#[async_trait]
pub trait Volumes: Send + Sync {
    /// What is wanted of the history, newest first, so many at most.
    async fn find_volumes(
        &self,
        query: &VolumeQuery,
        limit: usize,
    ) -> Result<VolumesFound, StoreError>;
    /// Generations that are wanted, oldest first, behind that one; so many at most.
    async fn walk_volumes(
        &self,
        query: &VolumeQuery,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<Place>, StoreError>;
    /// How many there are, counted no further than `most`.
    async fn count_volumes(&self, query: &VolumeQuery, most: usize) -> Result<usize, StoreError>;
    /// All generations of these data keys, each data key once.
    async fn data_keys(&self, dkis: &[DataKeyId]) -> Result<Vec<DataKeySets>, StoreError>;
    /// Gives a volume up: what was made for it until now.
    async fn write_off(&self, volume: &WriteOff) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::message::Custody;

    fn sets(states: &[(EedkState, bool)]) -> DataKeySets {
        let dki = DataKeyId::from_random([1; 9]);
        let sets = (1..)
            .zip(states)
            .map(|(generation, (state, pending))| VolumeSet {
                key: VolumeKey {
                    volser: "VOL001".parse().unwrap(),
                    dki,
                    generation,
                    state: *state,
                    drive: "000000000001".parse().unwrap(),
                    token: "main".to_owned(),
                    custody: Custody::Token,
                    created: OffsetDateTime::UNIX_EPOCH,
                    server: String::new(),
                    job: None,
                    eedks: Vec::new(),
                },
                medium: OnMedium::No,
                catalog: false,
                pending: *pending,
                written_off: None,
            });
        DataKeySets::settled(dki, sets.collect())
    }

    #[track_caller]
    fn places(states: &[(EedkState, bool)], expected: &[&str]) {
        let sets = sets(states);
        let places: Vec<&str> = sets.sets.iter().map(VolumeSet::place).collect();
        assert_eq!(places, expected);
    }

    #[test]
    fn what_counts_follows_from_the_states() {
        use EedkState::{Abandoned, Confirmed, Issued, Superseded};
        places(&[(Issued, false)], &["medium?, catalog"]);
        places(&[(Confirmed, false)], &["medium, catalog"]);
        places(
            &[(Confirmed, false), (Issued, true)],
            &["medium", "catalog"],
        );
        places(
            &[(Confirmed, false), (Issued, true), (Issued, true)],
            &["medium", "medium?", "catalog"],
        );
        places(
            &[(Superseded, false), (Confirmed, true)],
            &["-", "medium, catalog"],
        );
        places(&[(Issued, false), (Issued, true)], &["medium?", "catalog"]);
        places(
            &[(Confirmed, false), (Abandoned, false)],
            &["medium, catalog", "-"],
        );
        // The cartridge holds another data key.
        places(&[(Superseded, false), (Issued, true)], &["-", "-"]);
    }
}
