//! Volumes: found, given up; and what a KEK's loss would cost.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Reply, conflict, event, record, stored};
use crate::drive::DriveSerial;
use crate::key::{DataKeyId, KekHash, KeyLabel};
use crate::keystore::Directory;
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::store::{
    DataKeySets, KekState, KekStates, OnMedium, VolumeKey, VolumeQuery, VolumeSet, VolumesFound,
    WriteOff,
};
use crate::volser::Volser;

/// Most volumes in one answer.
pub const MOST_VOLUMES: usize = 10_000;

/// Most sets of EEDKs in one answer with all that is in them.
const MOST_LISTED: usize = 20_000;

/// Rows of the history that are looked at in one step: others have their turn in between.
const STEP: usize = 512;

/// What of the history an operator wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeFilter {
    /// The cartridge.
    pub volser: Option<Volser>,
    /// A KEK that one of the EEDKs is under.
    pub kek: Option<KeyLabel>,
    /// The data key.
    pub dki: Option<DataKeyId>,
    /// The drive.
    pub drive: Option<DriveSerial>,
    /// Made then or later.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    /// Made before.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub until: Option<OffsetDateTime>,
}

/// A volume that has an EEDK under a KEK.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Affected {
    /// The cartridge.
    pub volser: Volser,
    /// Its data key.
    pub dki: DataKeyId,
    /// Whether the cartridge has an EEDK under the KEK.
    pub medium: OnMedium,
    /// Whether the catalog's EEDKs have one.
    pub catalog: bool,
    /// Another KEK here that opens what is on the cartridge.
    pub medium_other: Option<KeyLabel>,
    /// Another KEK here that opens what is in the catalog.
    pub catalog_other: Option<KeyLabel>,
}

impl Affected {
    /// Whether nothing else here opens it.
    #[must_use]
    pub const fn dies(&self) -> bool {
        self.medium_other.is_none() && self.catalog_other.is_none()
    }
}

/// What depends on a KEK.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Impact {
    /// The KEK's label.
    pub label: KeyLabel,
    /// Its public key's hash.
    pub hash: KekHash,
    /// Its state.
    pub state: KekState,
    /// Volumes that have an EEDK under it, on the cartridge or in the catalog.
    pub volumes: u64,
    /// Those whose cartridge has one, or may have.
    pub on_medium: u64,
    /// Those whose catalog's EEDKs have one.
    pub in_catalog: u64,
    /// Those that only this KEK opens.
    pub only: u64,
    /// Volumes that were given up; they are none of the others.
    pub written_off: u64,
    /// Why there may be more that the history does not know of.
    #[serde(default)]
    pub elsewhere: Option<String>,
    /// The first of them, oldest first, those that were given up left out.
    pub list: Vec<Affected>,
}

impl Impact {
    /// Why the KEK may not go, where that is so.
    pub(super) fn refusal(&self, verb: &str) -> Result<(), Problem> {
        if self.volumes == 0 {
            return Ok(());
        }
        let first: Vec<String> = self
            .list
            .iter()
            .take(3)
            .map(|affected| affected.volser.to_string())
            .collect();
        Err(conflict(
            EkmCode::EE30,
            format!(
                "KEK {0} cannot be {verb}: {1} an EEDK under it ({2} on the cartridge, {3} in the catalog; {4} that nothing else opens), the first {5}; rekey them (ekm volume rekey --from-kek {0} --kek1 NEW --all-of) and mount those whose cartridge still has it, or give each up by name (ekm volume write-off VOLSER --reason …)",
                self.label,
                volumes_have(self.volumes),
                self.on_medium,
                self.in_catalog,
                self.only,
                first.join(", ")
            ),
        ))
    }
}

fn volumes_have(count: u64) -> String {
    match count {
        1 => "1 volume has".to_owned(),
        count => format!("{count} volumes have"),
    }
}

/// A generation of EEDKs as a list shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeListed {
    /// The EEDKs.
    #[serde(flatten)]
    pub key: VolumeKey,
    /// Whether the volume was given up since they were made.
    #[serde(default)]
    pub written_off: Option<WriteOff>,
}

/// All of the history, where an answer holds it.
pub(super) async fn list(service: &Service, volser: Option<&Volser>) -> Result<Reply, Problem> {
    let query = VolumeQuery {
        volser: volser.cloned(),
        ..VolumeQuery::default()
    };
    let store = service.store();
    if stored(store.count_volumes(&query, MOST_LISTED + 1).await)? > MOST_LISTED {
        return Err(conflict(
            EkmCode::EE0F,
            format!(
                "the history has more than {MOST_LISTED} sets of EEDKs, which is more than one answer holds; ekm volume find looks for some of them, ekm export --what history writes all to a file"
            ),
        ));
    }
    let keys = stored(store.volumes(volser).await)?;
    let mut dkis: Vec<DataKeyId> = keys.iter().map(|key| key.dki).collect();
    dkis.sort_unstable();
    dkis.dedup();
    let mut given_up = HashMap::new();
    for part in dkis.chunks(STEP) {
        for set in stored(store.data_keys(part).await)?
            .into_iter()
            .flat_map(|key| key.sets)
        {
            if let Some(volume) = set.written_off {
                given_up.insert((set.key.dki, set.key.generation), volume);
            }
        }
    }
    let listed = keys.into_iter().map(|key| VolumeListed {
        written_off: given_up.get(&(key.dki, key.generation)).cloned(),
        key,
    });
    Ok(Reply::VolumesListed(listed.collect()))
}

pub(super) async fn find(
    service: &Service,
    filter: &VolumeFilter,
    limit: usize,
) -> Result<Reply, Problem> {
    if limit == 0 {
        return Err(conflict(
            EkmCode::EE30,
            "no line is asked for: say --limit 1 or more".to_owned(),
        ));
    }
    let query = query(service, filter).await?;
    let limit = limit.min(MOST_VOLUMES);
    stored(service.store().find_volumes(&query, limit).await).map(Reply::Found)
}

/// With the KEK's label looked up.
pub(super) async fn query(
    service: &Service,
    filter: &VolumeFilter,
) -> Result<VolumeQuery, Problem> {
    let VolumeFilter {
        volser,
        kek,
        dki,
        drive,
        since,
        until,
    } = filter.clone();
    let kek = match kek {
        Some(label) => Some(named(service, &label).await?.1),
        None => None,
    };
    Ok(VolumeQuery {
        volser,
        kek,
        dki,
        drive,
        since,
        until,
    })
}

/// The KEK of that label, also one that no token has any more, or of a partner that was removed.
pub(super) async fn named(
    service: &Service,
    label: &KeyLabel,
) -> Result<(KeyLabel, KekHash), Problem> {
    let registry = stored(service.store().keks().await)?;
    if let Some(row) = registry.iter().find(|row| row.label.same_as(label)) {
        return Ok((row.label.clone(), row.hash));
    }
    let directory = service.directory().await?;
    match directory.by_label(label) {
        Ok(kek) => Ok((kek.label.clone(), kek.hash)),
        Err(error) => {
            let tables = stored(service.store().dump_tables().await)?;
            let mut removed = tables.partners.into_iter().flatten();
            removed
                .find(|row| row.label.same_as(label))
                .map(|row| (row.label, row.hash))
                .ok_or_else(|| conflict(EkmCode::EE31, error.to_string()))
        }
    }
}

/// That the history has the volume.
pub(super) async fn in_history(service: &Service, volser: &Volser) -> Result<(), Problem> {
    let query = VolumeQuery {
        volser: Some(volser.clone()),
        ..VolumeQuery::default()
    };
    match stored(service.store().count_volumes(&query, 1).await)? {
        0 => Err(unknown(volser)),
        _ => Ok(()),
    }
}

fn unknown(volser: &Volser) -> Problem {
    Problem::new(
        EkmCode::EE32,
        404,
        format!("volume {volser} is not in the history (ekm volume find)"),
    )
}

/// How a volume was given up of which nothing was made since. Only what was is given up again: a slip
/// must not put another's name and reason in the place of the first.
fn given_up(found: &VolumesFound) -> Option<&WriteOff> {
    let mut sets = found.volumes.iter();
    if found.more || sets.any(|set| set.written_off.is_none()) {
        return None;
    }
    found.volumes.first()?.written_off.as_ref()
}

pub(super) async fn write_off(
    service: &Service,
    operator: &str,
    volser: &Volser,
    reason: String,
) -> Result<Reply, Problem> {
    let reason = reason.trim().to_owned();
    if reason.is_empty() {
        return Err(conflict(
            EkmCode::EE30,
            format!("say why volume {volser} is given up: --reason"),
        ));
    }
    let query = VolumeQuery {
        volser: Some(volser.clone()),
        ..VolumeQuery::default()
    };
    let found = stored(service.store().find_volumes(&query, MOST_VOLUMES).await)?;
    if found.volumes.is_empty() {
        return Err(unknown(volser));
    }
    if let Some(before) = given_up(&found) {
        return Err(conflict(
            EkmCode::EE30,
            format!(
                "volume {volser} is given up already, and nothing was written on it since: {}",
                before.words()
            ),
        ));
    }
    let mut event = event("volume-write-off", operator);
    event.volser = Some(volser.to_string());
    event.detail = Some(reason.clone());
    record(service, event).await?;
    let volume = WriteOff {
        volser: volser.clone(),
        reason,
        operator: operator.to_owned(),
        at: OffsetDateTime::now_utc(),
    };
    stored(service.store().write_off(&volume).await)?;
    stored(service.store().find_volumes(&query, MOST_VOLUMES).await).map(Reply::Found)
}

pub(super) async fn impact(
    service: &Service,
    label: &KeyLabel,
    limit: usize,
) -> Result<Impact, Problem> {
    let (label, hash) = named(service, label).await?;
    let states = stored(service.store().kek_states().await)?;
    let directory = service.directory().await?;
    let query = VolumeQuery {
        kek: Some(hash),
        ..VolumeQuery::default()
    };
    let elsewhere = service.needed_elsewhere(&label, &hash).await?;
    let mut impact = Impact {
        label,
        hash,
        state: states.state(&hash),
        volumes: 0,
        on_medium: 0,
        in_catalog: 0,
        only: 0,
        written_off: 0,
        elsewhere,
        list: Vec::new(),
    };
    let mut after = None;
    loop {
        let page = stored(
            service
                .store()
                .walk_volumes(&query, after.as_ref(), STEP)
                .await,
        )?;
        let Some(last) = page.last() else {
            return Ok(impact);
        };
        after = Some(*last);
        let dkis: Vec<DataKeyId> = page.iter().map(|place| place.dki).collect();
        for key in stored(service.store().data_keys(&dkis).await)? {
            // A data key with several generations under the KEK counts at the last that counts.
            let last = key.current().filter(|set| set.is_under(&hash)).last();
            let here = last.is_some_and(|set| {
                page.iter()
                    .any(|place| (place.dki, place.generation) == (key.dki, set.key.generation))
            });
            if here {
                impact.add(&key, &states, &directory, limit);
            }
        }
    }
}

impl Impact {
    fn add(&mut self, key: &DataKeySets, states: &KekStates, directory: &Directory, limit: usize) {
        let under: Vec<&VolumeSet> = key
            .current()
            .filter(|set| set.is_under(&self.hash))
            .collect();
        let Some(newest) = under.last() else {
            return;
        };
        // Given up by name is what was made until then; what was made since is not.
        let standing: Vec<&&VolumeSet> = under
            .iter()
            .filter(|set| set.written_off.is_none())
            .collect();
        if standing.is_empty() {
            self.written_off += 1;
            return;
        }
        let other = |set: &VolumeSet| {
            let mut others = set.key.eedks.iter();
            others
                .find(|stored| {
                    stored.kek_hash != self.hash
                        && states.state(&stored.kek_hash) < KekState::Revoked
                        && directory
                            .by_hash(&stored.kek_hash)
                            .is_some_and(|kek| !kek.tokens.is_empty() || !kek.away.is_empty())
                })
                .map(|stored| stored.kek_label.clone())
        };
        let on_medium = |wanted: OnMedium| key.current().find(|set| set.medium == wanted);
        let medium = on_medium(OnMedium::Yes).or_else(|| on_medium(OnMedium::Perhaps));
        let affected = Affected {
            volser: newest.key.volser.clone(),
            dki: key.dki,
            medium: [OnMedium::Yes, OnMedium::Perhaps]
                .into_iter()
                .find(|medium| standing.iter().any(|set| set.medium == *medium))
                .unwrap_or(OnMedium::No),
            catalog: standing.iter().any(|set| set.catalog),
            medium_other: medium.and_then(other),
            catalog_other: key.catalog().and_then(other),
        };
        self.volumes += 1;
        self.on_medium += u64::from(affected.medium != OnMedium::No);
        self.in_catalog += u64::from(affected.catalog);
        self.only += u64::from(affected.dies());
        if self.list.len() < limit {
            self.list.push(affected);
        }
    }
}
