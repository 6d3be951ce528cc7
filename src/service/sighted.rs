//! What unknown drives show, and drives that show another key than the one that is trusted: noted
//! for the operator who has to judge them, at most once a second for each.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::Service;
use crate::drive::DriveSerial;
use crate::key::KekHash;
use crate::policy::{DriveClaim, Refusal};
use crate::store::{Drive, DriveKey, Sighting};
use crate::tls::PeerId;

tokio::task_local! {
    /// Where the request comes from that this task works on.
    static FROM: IpAddr;
}

/// Shortest time between two notes of one drive.
const AGAIN: Duration = Duration::from_secs(1);

/// Drives whose last note is remembered.
const REMEMBERED: usize = 1024;

/// Works on a request that comes from there.
pub(crate) async fn from<T>(address: IpAddr, verb: impl Future<Output = T>) -> T {
    FROM.scope(address, verb).await
}

fn address() -> String {
    FROM.try_with(IpAddr::to_string)
        .unwrap_or_else(|_| "-".to_owned())
}

/// When drives were last noted, with their own key and with another, and how often they were seen
/// so since.
#[derive(Debug, Default)]
pub(super) struct Sighted(Mutex<HashMap<(DriveSerial, bool), (Instant, u32)>>);

impl Sighted {
    /// How many sightings are to be noted now; none where that can wait.
    fn due(&self, serial: &DriveSerial, other: bool) -> Option<u32> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED {
            all.clear();
        }
        let now = Instant::now();
        match all.get_mut(&(serial.clone(), other)) {
            Some((last, since)) if last.elapsed() < AGAIN => {
                *since = since.saturating_add(1);
                None
            }
            Some((last, since)) => {
                *last = now;
                Some(std::mem::take(since).saturating_add(1))
            }
            None => {
                all.insert((serial.clone(), other), (now, 0));
                Some(1)
            }
        }
    }
}

/// The key that a request shows.
pub(super) fn shown(claim: &DriveClaim) -> Option<KekHash> {
    let wrapping = claim.key.wrapping.as_deref();
    wrapping.map(KekHash::of_spki)
}

impl Service {
    pub(super) fn sighting(&self, peer: &PeerId, claim: &DriveClaim, times: u32) -> Sighting {
        Sighting {
            serial: claim.serial.clone(),
            key: shown(claim),
            peer: peer.clone(),
            address: address(),
            at: OffsetDateTime::now_utc(),
            times,
        }
    }

    /// Notes what a drive showed that is refused because it waits, or because of its key. That it
    /// cannot be noted changes nothing for the drive.
    pub(super) async fn note_refused(
        &self,
        peer: &PeerId,
        claim: &DriveClaim,
        row: &Drive,
        refusal: &Refusal,
    ) {
        let trusted = match &row.key {
            DriveKey::Pinned(spki) => Some(KekHash::of_spki(spki)),
            DriveKey::Certified | DriveKey::None => None,
        };
        let other = shown(claim).is_some() && shown(claim) != trusted;
        let noted = match refusal {
            Refusal::PendingDrive { .. } => true,
            Refusal::DriveKey { .. } => other,
            Refusal::UnknownDrive { .. }
            | Refusal::NotItsDrive { .. }
            | Refusal::DriveTable { .. }
            | Refusal::NotItsKek { .. }
            | Refusal::NoLabel { .. }
            | Refusal::Kek(_)
            | Refusal::KekUnfit { .. }
            | Refusal::OutOfReach { .. }
            | Refusal::Unverified { .. }
            | Refusal::NoCopy { .. }
            | Refusal::NoBackup { .. }
            | Refusal::Revoked { .. }
            | Refusal::Unreadable(_)
            | Refusal::NoEedk(_)
            | Refusal::UnknownDataKey(_)
            | Refusal::NotIssued(..) => false,
        };
        if !noted {
            return;
        }
        let Some(times) = self.sighted.due(&claim.serial, other) else {
            return;
        };
        let sighting = self.sighting(peer, claim, times);
        if let Err(error) = self.store.note_sighting(&sighting, other).await {
            tracing::warn!(%error, drive = %claim.serial, "what the drive showed was not noted");
        }
    }
}
