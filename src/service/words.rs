//! What the verbs have in common: their records, and the words for what fails.

use super::Service;
use super::gates::unheard;
use crate::audit::{AuditError, Event, Kind, Outcome, Pending};
use crate::drive::DriveSerial;
use crate::key::{Eedk, KekHash};
use crate::policy::GrantedKek;
use crate::problem::Problem;
use crate::store::{RequestKey, StoreError, StoredEedk, VolumeKey};
use crate::tls::PeerId;

pub(super) fn event(
    action: &str,
    peer: &PeerId,
    request: &uuid::Uuid,
    drive: Option<&DriveSerial>,
) -> Event {
    let mut event = Event::new(Kind::Runtime, action, Outcome::Success);
    event.peer = Some(peer.to_string());
    event.request = Some(request.to_string());
    event.drive = drive.map(ToString::to_string);
    event
}

impl Service {
    /// Queues the record of what is about to be done. It is needed when the token has answered.
    pub(super) async fn intend(&self, event: &Event) -> Pending {
        let intent = Event {
            outcome: Outcome::Intent,
            ..event.clone()
        };
        self.audit.submit_ahead(intent, self.tokens.usual()).await
    }
}

pub(super) fn labels_of(key: &VolumeKey) -> Vec<String> {
    let labels = key.eedks.iter().map(|stored| stored.kek_label.to_string());
    labels.collect()
}

pub(super) fn request_key(peer: &PeerId, id: &uuid::Uuid) -> RequestKey {
    RequestKey {
        peer: peer.clone(),
        id: id.to_string(),
    }
}

pub(super) fn fingerprint(spki: &[u8]) -> Option<String> {
    (!spki.is_empty()).then(|| KekHash::of_spki(spki).to_string())
}

pub(super) fn stored(eedks: &[Eedk], keks: &[GrantedKek], proved: &[bool]) -> Vec<StoredEedk> {
    eedks
        .iter()
        .zip(keks)
        .zip(proved)
        .map(|((eedk, granted), proved)| StoredEedk {
            eedk: eedk.clone(),
            kek_label: granted.kek.label.clone(),
            kek_hash: granted.kek.hash,
            proved: *proved,
        })
        .collect()
}

pub(super) fn note_unproved(event: &mut Event, keks: &[GrantedKek], proved: &[bool]) {
    for (granted, proved) in keks.iter().zip(proved) {
        if *proved {
            continue;
        }
        let why = if granted.sealed {
            format!(
                "the EEDK under {} was not proved: it is a partner's KEK, whose seal was verified",
                granted.kek.label
            )
        } else {
            "an EEDK was not proved: its private half is not here, and policy.unproved_keks allows that".to_owned()
        };
        event.detail = joined(event.detail.take(), Some(why));
    }
}

pub(super) fn failures(faults: &[crate::keystore::Fault]) -> Option<String> {
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| format!("another EEDK does not open: {}", texts.join("; ")))
}

/// Says of an answer that nobody gets it, where its client is no longer there.
pub(super) fn note_unheard(event: &mut Event) {
    if let Some(why) = unheard() {
        event.detail = joined(event.detail.take(), Some(why.to_owned()));
    }
}

pub(super) fn joined(one: Option<String>, other: Option<String>) -> Option<String> {
    match (one, other) {
        (Some(one), Some(other)) => Some(format!("{one}; {other}")),
        (one, other) => one.or(other),
    }
}

pub(super) fn unstored(error: &StoreError) -> Problem {
    if !matches!(error, StoreError::KekClosed { .. }) {
        tracing::error!(%error, "the state cannot be read or written");
    }
    unstored_as_told(error)
}

/// The same where the log has it already.
pub(super) fn unstored_as_told(error: &StoreError) -> Problem {
    if let StoreError::KekClosed { .. } = error {
        return Problem::unavailable(error.to_string());
    }
    if let StoreError::Outage { what, .. } = error {
        return Problem::unavailable(format!(
            "the key service cannot answer now: its state database is out of reach, and this needs it ({what}); the server's log says why"
        ));
    }
    Problem::unavailable("the key manager's state cannot be read or written; its log says why")
}

pub(super) fn unrecorded(error: &AuditError) -> Problem {
    tracing::error!(%error, "no audit record, so no answer");
    Problem::unavailable(
        "the audit record cannot be written, so no key is served; the server's log says why",
    )
}
