//! What every request asks of the state, kept in memory.
//!
//! Drive rows, the KEK registry, the defaults and the origin of EEDKs are
//! asked for by each request and change rarely. What is changed through this
//! layer counts at once. What another process changes counts when the age of
//! what is remembered is over; with SQLite there is no other process while a
//! server runs, with PostgreSQL there are the other servers.

mod approvals;
mod backups;
mod evidence;
mod kek_life;
mod rekeys;
mod servers;
mod sightings;
mod sync;
mod tables;
mod volumes;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::{
    Birth, Certificates, Defaults, Drive, EedkDigest, FailedOpening, Forgiven, Issuance, Issued,
    KekStates, Opening, Origin, Partner, RegisteredKek, RequestKey, Store, StoreError, VolumeKey,
};
use crate::copies::KekCopy;
use crate::drive::DriveSerial;
use crate::key::{DataKeyId, KekHash, KeyLabel};
use crate::tls::PeerId;
use crate::volser::Volser;

/// Origins of EEDKs that are remembered at least, and half of those at most.
const ORIGINS: usize = 8 * 1024;

/// A store that remembers.
#[derive(Debug)]
pub struct Remembered<S> {
    store: S,
    age: Duration,
    memory: Mutex<Memory>,
}

/// What was read, and when it was asked for: what another process changes later need not be in it.
#[derive(Clone, Debug)]
struct Read<T> {
    value: T,
    at: Instant,
}

/// A look that found nothing remembered, before the store is asked.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// The count of changes then.
    changes: u64,
    at: Instant,
}

#[derive(Debug, Default)]
struct Memory {
    drives: HashMap<DriveSerial, Read<Drive>>,
    keks: Option<Read<Arc<[RegisteredKek]>>>,
    certificates: Option<Read<Arc<Certificates>>>,
    copies: Option<Read<Arc<[KekCopy]>>>,
    defaults: Option<Read<Defaults>>,
    states: Option<Read<Arc<KekStates>>>,
    unstored: Option<Read<bool>>,
    origins: Origins,
    // Begun and not yet ended; what is read meanwhile may be old or new.
    changing: usize,
    // One more at each begin and end of a change.
    changes: u64,
}

impl Memory {
    /// Forgets what can change.
    fn forget(&mut self) {
        self.drives.clear();
        self.defaults = None;
        self.states = None;
        self.unstored = None;
        outdate(&mut self.keks);
        outdate(&mut self.certificates);
        outdate(&mut self.copies);
        self.changes += 1;
    }
}

/// A list stays, so that one that is the same again is the same pointer, but it
/// is never given out again as it is.
fn outdate<T>(read: &mut Option<Read<T>>) {
    if let Some(known) = read
        && let Some(long_ago) = known.at.checked_sub(FORGOTTEN)
    {
        known.at = long_ago;
    } else {
        *read = None;
    }
}

/// Older than any age.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// Where EEDKs come from. Rows of the history never change, so that only the
/// number of entries is bounded: the older half goes when the newer is full.
#[derive(Debug, Default)]
struct Origins {
    newer: HashMap<EedkDigest, Origin>,
    older: HashMap<EedkDigest, Origin>,
}

impl Origins {
    fn get(&self, digest: &EedkDigest) -> Option<Origin> {
        self.newer
            .get(digest)
            .or_else(|| self.older.get(digest))
            .copied()
    }

    fn put(&mut self, digest: EedkDigest, origin: Origin) {
        if self.newer.len() >= ORIGINS {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(digest, origin);
    }
}

/// A change that is under way; nothing that is read meanwhile is kept.
struct Change<'a>(&'a Mutex<Memory>);

impl<'a> Change<'a> {
    fn begin(memory: &'a Mutex<Memory>) -> Self {
        let mut held = hold(memory);
        held.changing += 1;
        held.forget();
        Self(memory)
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut held = hold(self.0);
        held.changing -= 1;
        held.forget();
    }
}

fn hold(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Store> Remembered<S> {
    /// A store that remembers what it read for so long at most.
    #[must_use]
    pub fn new(store: S, age: Duration) -> Self {
        Self {
            store,
            age: age.min(FORGOTTEN),
            memory: Mutex::default(),
        }
    }

    fn fresh<T: Clone>(&self, read: Option<&Read<T>>) -> Option<T> {
        read.filter(|read| read.at.elapsed() < self.age)
            .map(|read| read.value.clone())
    }

    /// What is remembered, or where nothing is, what there was before the store is asked.
    fn look<T>(&self, remembered: impl FnOnce(&Memory) -> Option<T>) -> Result<T, Asked> {
        let memory = hold(&self.memory);
        remembered(&memory).ok_or_else(|| Asked {
            changes: memory.changes,
            at: Instant::now(),
        })
    }

    /// Keeps what was read, unless something has changed since it was asked for.
    fn keep(&self, asked: Asked, keep: impl FnOnce(&mut Memory, Instant)) {
        let mut memory = hold(&self.memory);
        if memory.changing == 0 && memory.changes == asked.changes {
            // Its age begins with the question: the database may have answered from before a
            // change, and been long about it.
            keep(&mut memory, asked.at);
        }
    }
}

#[async_trait]
impl<S: Store> Store for Remembered<S> {
    async fn drive(&self, serial: &DriveSerial) -> Result<Option<Drive>, StoreError> {
        match self.look(|memory| self.fresh(memory.drives.get(serial))) {
            Ok(drive) => Ok(Some(drive)),
            Err(asked) => {
                let drive = self.store.drive(serial).await?;
                if let Some(drive) = &drive {
                    self.keep(asked, |memory, at| {
                        let value = drive.clone();
                        memory.drives.insert(serial.clone(), Read { value, at });
                    });
                }
                Ok(drive)
            }
        }
    }

    async fn drives(&self) -> Result<Vec<Drive>, StoreError> {
        self.store.drives().await
    }

    async fn put_drive(&self, drive: &Drive) -> Result<(), StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.put_drive(drive).await
    }

    async fn change_drive(&self, before: Option<&Drive>, drive: &Drive) -> Result<(), StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.change_drive(before, drive).await
    }

    async fn discover_drive(&self, drive: &Drive) -> Result<bool, StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.discover_drive(drive).await
    }

    async fn delete_drive(&self, serial: &DriveSerial) -> Result<bool, StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.delete_drive(serial).await
    }

    async fn keks(&self) -> Result<Arc<[RegisteredKek]>, StoreError> {
        match self.look(|memory| self.fresh(memory.keks.as_ref())) {
            Ok(keks) => Ok(keks),
            Err(asked) => {
                let mut keks = self.store.keks().await?;
                self.keep(asked, |memory, at| {
                    // The same list is the same pointer, for those who compare it.
                    if let Some(known) = memory.keks.as_ref().filter(|known| known.value == keks) {
                        keks = Arc::clone(&known.value);
                    }
                    let value = Arc::clone(&keks);
                    memory.keks = Some(Read { value, at });
                });
                Ok(keks)
            }
        }
    }

    async fn register_kek(&self, kek: &RegisteredKek) -> Result<(), StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.register_kek(kek).await
    }

    async fn certificates(&self) -> Result<Arc<Certificates>, StoreError> {
        match self.look(|memory| self.fresh(memory.certificates.as_ref())) {
            Ok(certificates) => Ok(certificates),
            Err(asked) => {
                let mut all = self.store.certificates().await?;
                self.keep(asked, |memory, at| {
                    // The same is the same pointer, for those who compare it.
                    let known = memory.certificates.as_ref();
                    if let Some(known) = known.filter(|known| known.value == all) {
                        all = Arc::clone(&known.value);
                    }
                    let value = Arc::clone(&all);
                    memory.certificates = Some(Read { value, at });
                });
                Ok(all)
            }
        }
    }

    async fn kek_copies(&self) -> Result<Arc<[KekCopy]>, StoreError> {
        match self.look(|memory| self.fresh(memory.copies.as_ref())) {
            Ok(copies) => Ok(copies),
            Err(asked) => {
                let mut copies = self.store.kek_copies().await?;
                self.keep(asked, |memory, at| {
                    // The same list is the same pointer, for those who compare it.
                    if let Some(known) =
                        memory.copies.as_ref().filter(|known| known.value == copies)
                    {
                        copies = Arc::clone(&known.value);
                    }
                    let value = Arc::clone(&copies);
                    memory.copies = Some(Read { value, at });
                });
                Ok(copies)
            }
        }
    }

    async fn add_partner(&self, partner: &Partner) -> Result<(), StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.add_partner(partner).await
    }

    async fn delete_partner(&self, label: &KeyLabel) -> Result<bool, StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.delete_partner(label).await
    }

    async fn set_certificate(
        &self,
        kek: &KekHash,
        certificate: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.set_certificate(kek, certificate).await
    }

    async fn add_kek_copy(&self, copy: &KekCopy) -> Result<(), StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.add_kek_copy(copy).await
    }

    async fn births(&self) -> Result<Vec<Birth>, StoreError> {
        self.store.births().await
    }

    async fn begin_birth(&self, birth: &Birth) -> Result<(), StoreError> {
        self.store.begin_birth(birth).await
    }

    async fn end_birth(&self, ceremony: &uuid::Uuid) -> Result<(), StoreError> {
        self.store.end_birth(ceremony).await
    }

    async fn defaults(&self) -> Result<Defaults, StoreError> {
        match self.look(|memory| self.fresh(memory.defaults.as_ref())) {
            Ok(defaults) => Ok(defaults),
            Err(asked) => {
                let defaults = self.store.defaults().await?;
                self.keep(asked, |memory, at| {
                    let value = defaults.clone();
                    memory.defaults = Some(Read { value, at });
                });
                Ok(defaults)
            }
        }
    }

    async fn set_defaults(&self, defaults: &Defaults) -> Result<(), StoreError> {
        let _change = Change::begin(&self.memory);
        self.store.set_defaults(defaults).await
    }

    // The history only grows, so nothing that is remembered becomes wrong by it.
    async fn issue(&self, issuance: &Issuance) -> Result<Issued, StoreError> {
        let issued = self.store.issue(issuance).await?;
        // Of another's data key it says nothing, whatever a rekey of it gave.
        if issued == Issued::Now && issuance.new {
            let mut memory = hold(&self.memory);
            for stored in &issuance.eedks {
                memory.origins.put(stored.eedk.digest(), issuance.origin);
            }
        }
        Ok(issued)
    }

    async fn answered(
        &self,
        request: &RequestKey,
    ) -> Result<Option<([u8; 32], VolumeKey)>, StoreError> {
        self.store.answered(request).await
    }

    async fn issued(&self, eedk_sha256: &EedkDigest) -> Result<Option<Origin>, StoreError> {
        if let Some(origin) = hold(&self.memory).origins.get(eedk_sha256) {
            return Ok(Some(origin));
        }
        let origin = self.store.issued(eedk_sha256).await?;
        if let Some(origin) = origin {
            hold(&self.memory).origins.put(*eedk_sha256, origin);
        }
        Ok(origin)
    }

    async fn origin(&self, dki: &DataKeyId) -> Result<Option<Origin>, StoreError> {
        self.store.origin(dki).await
    }

    async fn confirm(
        &self,
        request: &str,
        dki: &DataKeyId,
        drive: &DriveSerial,
        stored: bool,
        peer: &PeerId,
    ) -> Result<Option<VolumeKey>, StoreError> {
        self.store.confirm(request, dki, drive, stored, peer).await
    }

    async fn data_key(&self, dki: &DataKeyId) -> Result<Option<VolumeKey>, StoreError> {
        self.store.data_key(dki).await
    }

    async fn note_opening(&self, opening: &Opening) -> Result<(), StoreError> {
        self.store.note_opening(opening).await
    }

    async fn failed_openings(&self) -> Result<Vec<FailedOpening>, StoreError> {
        self.store.failed_openings().await
    }

    async fn forgive_openings(&self, whose: &Forgiven) -> Result<(), StoreError> {
        self.store.forgive_openings(whose).await
    }

    async fn guard_secret(&self) -> Result<[u8; 32], StoreError> {
        self.store.guard_secret().await
    }

    async fn volumes(&self, volser: Option<&Volser>) -> Result<Vec<VolumeKey>, StoreError> {
        self.store.volumes(volser).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DriveKey, DriveState, Sql};
    use super::*;
    use crate::bridge::message::Custody;
    use crate::key::SedkForm;

    fn drive(custody: Custody) -> Drive {
        Drive {
            serial: "000000000001".parse().unwrap(),
            wwn: None,
            kek1: None,
            kek2: None,
            key: DriveKey::None,
            form: SedkForm::T10Plain,
            custody,
            speakers: Vec::new(),
            state: DriveState::Active,
        }
    }

    struct Two {
        _directory: tempfile::TempDir,
        /// What another process would be.
        beside: Sql,
        remembered: Remembered<Sql>,
    }

    async fn two(age: Duration) -> Two {
        let directory = tempfile::tempdir().unwrap();
        let beside = Sql::sqlite(directory.path()).await.unwrap();
        Two {
            remembered: Remembered::new(beside.clone(), age),
            beside,
            _directory: directory,
        }
    }

    #[tokio::test]
    async fn a_row_is_read_once_while_it_is_fresh() {
        let two = two(Duration::from_secs(60)).await;
        let (first, other) = (drive(Custody::Host), drive(Custody::Token));
        two.remembered.put_drive(&first).await.unwrap();
        assert_eq!(
            two.remembered.drive(&first.serial).await.unwrap(),
            Some(first.clone())
        );
        two.beside.put_drive(&other).await.unwrap();
        assert_eq!(
            two.remembered.drive(&first.serial).await.unwrap(),
            Some(first)
        );
    }

    #[tokio::test]
    async fn what_another_process_changed_counts_when_the_age_is_over() {
        let two = two(Duration::ZERO).await;
        let (first, other) = (drive(Custody::Host), drive(Custody::Token));
        two.remembered.put_drive(&first).await.unwrap();
        two.remembered.drive(&first.serial).await.unwrap();
        two.beside.put_drive(&other).await.unwrap();
        assert_eq!(
            two.remembered.drive(&first.serial).await.unwrap(),
            Some(other)
        );
    }

    #[tokio::test]
    async fn a_drive_that_was_deleted_is_gone_at_once() {
        let two = two(Duration::from_secs(60)).await;
        let row = drive(Custody::Host);
        two.remembered.put_drive(&row).await.unwrap();
        two.remembered.drive(&row.serial).await.unwrap();
        two.remembered.delete_drive(&row.serial).await.unwrap();
        assert_eq!(two.remembered.drive(&row.serial).await.unwrap(), None);
    }

    #[tokio::test]
    async fn defaults_that_were_set_count_at_once() {
        let two = two(Duration::from_secs(60)).await;
        assert_eq!(
            two.remembered.defaults().await.unwrap(),
            Defaults::default()
        );
        let new = Defaults {
            kek1: Some("KEK1".parse().unwrap()),
            kek2: None,
        };
        two.remembered.set_defaults(&new).await.unwrap();
        assert_eq!(two.remembered.defaults().await.unwrap(), new);
    }

    #[tokio::test]
    async fn a_registry_that_reads_the_same_is_the_same() {
        let two = two(Duration::ZERO).await;
        let first = two.remembered.keks().await.unwrap();
        two.remembered
            .set_defaults(&Defaults::default())
            .await
            .unwrap();
        let second = two.remembered.keks().await.unwrap();
        assert!(Arc::ptr_eq(&first, &second));
    }

    #[tokio::test]
    async fn what_was_read_under_a_change_is_not_kept() {
        let two = two(Duration::from_secs(60)).await;
        let row = drive(Custody::Host);
        two.beside.put_drive(&row).await.unwrap();
        let change = Change::begin(&two.remembered.memory);
        two.remembered.drive(&row.serial).await.unwrap();
        drop(change);
        assert!(hold(&two.remembered.memory).drives.is_empty());

        // Asked for before the change, answered after it.
        let asked = two
            .remembered
            .look(|memory| memory.drives.get(&row.serial).cloned())
            .unwrap_err();
        drop(Change::begin(&two.remembered.memory));
        two.remembered.keep(asked, |memory, at| {
            let value = row.clone();
            memory.drives.insert(row.serial.clone(), Read { value, at });
        });
        assert!(hold(&two.remembered.memory).drives.is_empty());
    }

    #[tokio::test]
    async fn the_age_of_what_a_slow_read_gave_begins_when_it_was_asked_for() {
        let two = two(Duration::from_millis(20)).await;
        let row = drive(Custody::Host);
        let asked = two
            .remembered
            .look(|memory| memory.drives.get(&row.serial).cloned())
            .unwrap_err();
        tokio::time::sleep(Duration::from_millis(30)).await;
        let answered = Instant::now();
        two.remembered.keep(asked, |memory, at| {
            let value = row.clone();
            memory.drives.insert(row.serial.clone(), Read { value, at });
        });
        let kept = hold(&two.remembered.memory)
            .drives
            .get(&row.serial)
            .cloned()
            .unwrap();
        assert!(kept.at < answered);
        // What another process has changed meanwhile is seen at once.
        assert!(two.remembered.fresh(Some(&kept)).is_none());
    }

    #[test]
    fn the_origins_that_are_remembered_are_bounded() {
        let mut origins = Origins::default();
        for number in 0..u64::try_from(ORIGINS * 5).unwrap() {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_be_bytes());
            origins.put(digest, Origin::Ours);
            assert_eq!(origins.get(&digest), Some(Origin::Ours));
        }
        assert!(origins.newer.len() + origins.older.len() <= ORIGINS * 2);
    }
}
