//! Who may have which key: the only place that makes a grant.
//!
//! - Who asks is not who receives: a data key goes only to the public key
//!   that an operator pinned for the drive, or that the drive CA vouches for.
//! - Labels: the first level that names any label (request, then drive, then
//!   global) supplies both; levels never mix. One label gives one EEDK.
//! - A peer may name KEKs, speak for other drives or rekey only where the
//!   configuration says so.
//!
//! Nothing here does I/O: what the drive table, the registry and the tokens
//! say comes in [`Known`].

mod backups;
mod copies;
mod drive_key;
mod grant;
mod open;
mod rules;
mod write;

use std::collections::HashSet;

use time::OffsetDateTime;

use crate::bridge::message::{Custody, Recipient};
use crate::drive::DriveSerial;
use crate::key::{DataKeyId, Eedk, KekRef, KeyLabel, SedkForm};
use crate::keystore::{Directory, KekError};
use crate::store::{Defaults, Drive, DriveKey, DriveState, KekStates, Origin};
use crate::tls::{PeerId, Role};

use open::open_by;
use write::write_keks;

pub use drive_key::{KeyClaim, SessionKeyClaim, certified};
pub use grant::{CreateGrant, GrantedKek, Readable, RekeyGrant, ResolveGrant};
pub use rules::{
    AcceptUnknown, BackupBeforeServing, ExpiredKeks, PeerRule, Pkcs1V15Eedks, PolicyConfig,
    RequireCopy, UnprovedKeks,
};

/// What is known when a request is judged.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The rules.
    pub config: &'a PolicyConfig,
    /// The drive's row, where there is one.
    pub drive: Option<&'a Drive>,
    /// The KEKs.
    pub directory: &'a Directory,
    /// The global labels.
    pub defaults: &'a Defaults,
    /// Certificates of the drive CA, PEM.
    pub drive_ca: Option<&'a [u8]>,
    /// The rows of partners whose seal was verified, by what it is over.
    pub sealed: &'a HashSet<[u8; 32]>,
    /// What operators said of KEKs.
    pub states: &'a KekStates,
    /// The time by which certificates are judged.
    pub now: OffsetDateTime,
}

/// An EEDK as a request presents it. One that is damaged says nothing about the other.
#[derive(Clone, Debug)]
pub struct Presented {
    /// The EEDK, or what is wrong with it.
    pub eedk: Result<Eedk, String>,
    /// Where its data key comes from, if this EEDK was issued here.
    pub origin: Option<Origin>,
}

/// What EEDKs are opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The cartridge is read.
    Read,
    /// More is written under the same data key.
    Append,
    /// The data key goes under other KEKs.
    Rekey {
        /// Where the data key of that name comes from, if it is known here.
        known: Option<Origin>,
    },
}

/// The part of a request that is about the drive.
#[derive(Clone, Debug)]
pub struct DriveClaim {
    /// Its serial.
    pub serial: DriveSerial,
    /// The key that it shows.
    pub key: KeyClaim,
}

/// Why a request gets no grant.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The drive is not in the drive table.
    #[error(
        "drive {serial} is not in the drive table; add it with: ekm drive add {serial} --key PEM"
    )]
    UnknownDrive {
        /// The drive.
        serial: DriveSerial,
    },
    /// The drive waits for an operator.
    #[error(
        "drive {serial} waits for an operator; compare its key's fingerprint with the drive's own and run: ekm drive accept {serial} --fingerprint F"
    )]
    PendingDrive {
        /// The drive.
        serial: DriveSerial,
    },
    /// The peer may not ask for that drive.
    #[error(
        "{peer} may not speak for drive {serial}; allow it with: ekm drive mod {serial} --speaker {peer}"
    )]
    NotItsDrive {
        /// The peer.
        peer: PeerId,
        /// The drive.
        serial: DriveSerial,
    },
    /// The key shown is not the one that the table trusts.
    #[error("drive {serial}: {reason}")]
    DriveKey {
        /// The drive.
        serial: DriveSerial,
        /// What is wrong with it.
        reason: String,
    },
    /// The drive's row is not complete.
    #[error("drive {serial}: {reason}")]
    DriveTable {
        /// The drive.
        serial: DriveSerial,
        /// What is missing.
        reason: String,
    },
    /// The peer may not name that KEK.
    #[error(
        "{peer} may not {verb} KEK {label}; list it under {key} of [[policy.peers]] in the configuration"
    )]
    NotItsKek {
        /// The peer.
        peer: PeerId,
        /// What it wanted.
        verb: &'static str,
        /// The configuration key.
        key: &'static str,
        /// The label.
        label: String,
    },
    /// No level names a label.
    #[error(
        "no key label: neither the request nor drive {serial} nor the defaults name one; set one with: ekm kek default --kek1 LABEL"
    )]
    NoLabel {
        /// The drive.
        serial: DriveSerial,
    },
    /// A label does not name one KEK.
    #[error(transparent)]
    Kek(#[from] KekError),
    /// A KEK may not be written under.
    #[error("KEK {label} cannot be written under: {reason}")]
    KekUnfit {
        /// The label.
        label: String,
        /// Why.
        reason: String,
    },
    /// An operator has revoked a KEK.
    #[error(
        "KEK {label} is not used: it was {words}; nothing is read or written under it any more (ekm kek activate {label} takes that back)"
    )]
    Revoked {
        /// The label.
        label: KeyLabel,
        /// When, by whom, why.
        words: String,
    },
    /// A KEK may not be written under as it is known now, and a token that was never up since the
    /// start may hold it otherwise.
    #[error(
        "KEK {label} cannot be written under now: {reason}; but {} not been up since the start, and may hold it (ekm token status)",
        tokens(.away)
    )]
    OutOfReach {
        /// The label.
        label: String,
        /// Why not.
        reason: String,
        /// The tokens.
        away: Vec<String>,
    },
    /// The seal of a partner's row was not verified yet.
    #[error("the seal of the partner's KEK {label} was not verified")]
    Unverified {
        /// The label.
        label: KeyLabel,
    },
    /// One token's loss would be the cartridge's.
    #[error(
        "nothing is written under {labels}: policy.require_copy = \"{rule}\", and {why}; {advice}"
    )]
    NoCopy {
        /// The KEKs' labels.
        labels: String,
        /// The rule.
        rule: RequireCopy,
        /// What there is of copies.
        why: String,
        /// What to do.
        advice: &'static str,
    },
    /// A KEK was never backed up.
    #[error(
        "nothing is written under {labels}: policy.backup_before_serving = \"require\", and it was never backed up or copied since it is here (ekm backup status); make a backup (ekm backup FILE), or, where the HSM is backed up by its maker's means, say so with ekm kek copy confirm LABEL"
    )]
    NoBackup {
        /// The KEKs' labels.
        labels: String,
    },
    /// No EEDK of the cartridge can be opened here.
    #[error("no EEDK of the cartridge can be opened here: {0}")]
    Unreadable(String),
    /// None of what the cartridge holds is an EEDK.
    #[error(
        "{0}; the cartridge memory may be damaged, or the cartridge was keyed by another product"
    )]
    NoEedk(String),
    /// The request names a data key, shows no EEDK of it, and the history does not know it.
    #[error(
        "the data key {0} is not in this server's history, and the cartridge shows no EEDK of it; ask the server that made it (ekm volume list)"
    )]
    UnknownDataKey(DataKeyId),
    /// An EEDK was not issued here and the rules want it to be.
    #[error("data key {0}: the EEDK is not used: {1}")]
    NotIssued(String, &'static str),
}

fn tokens(names: &[String]) -> String {
    match names {
        [only] => format!("token {only} has"),
        many => format!("tokens {} have", many.join(", ")),
    }
}

/// Judges a create.
///
/// # Errors
/// Why not.
pub fn authorize_create(
    known: Known<'_>,
    peer: &PeerId,
    claim: &DriveClaim,
    labels: (Option<&KekRef>, Option<&KekRef>),
) -> Result<CreateGrant, Refusal> {
    let (drive, recipient) = receiver(known, peer, claim)?;
    let row = (drive.kek1.as_ref(), drive.kek2.as_ref());
    let global = (known.defaults.kek1.as_ref(), known.defaults.kek2.as_ref());
    let named = [labels, row, global]
        .into_iter()
        .find(|(first, second)| first.is_some() || second.is_some());
    let Some((first, second)) = named else {
        return Err(Refusal::NoLabel {
            serial: claim.serial.clone(),
        });
    };
    if labels.0.is_some() || labels.1.is_some() {
        for label in [first, second].into_iter().flatten() {
            known.config.may_create_under(peer, &label.label)?;
        }
    }
    let keks = write_keks(known, [first, second], drive.custody)?;
    Ok(CreateGrant {
        drive: recipient,
        custody: drive.custody,
        keks,
    })
}

/// Judges a resolve.
///
/// # Errors
/// Why not.
pub fn authorize_resolve(
    known: Known<'_>,
    peer: &PeerId,
    claim: &DriveClaim,
    presented: &[Presented],
    purpose: Purpose,
) -> Result<ResolveGrant, Refusal> {
    let (drive, recipient) = receiver(known, peer, claim)?;
    let (readable, unreadable) = open_by(known, presented, purpose)?;
    Ok(ResolveGrant {
        drive: recipient,
        custody: drive.custody,
        readable,
        unreadable,
    })
}

/// Judges a rekey. No drive gets a key by it.
///
/// # Errors
/// Why not.
pub fn authorize_rekey(
    known: Known<'_>,
    peer: &PeerId,
    serial: &DriveSerial,
    labels: (&KekRef, Option<&KekRef>),
    presented: &[Presented],
    purpose: Purpose,
) -> Result<RekeyGrant, Refusal> {
    for label in [Some(labels.0), labels.1].into_iter().flatten() {
        known.config.may_rekey_to(peer, &label.label)?;
    }
    // Whoever names a drive borrows its custody, so he must be allowed to speak for it.
    let custody = match (known.drive, peer.role()) {
        (Some(drive), Role::Operator) => drive.custody,
        // A drive that was removed keeps its certificate for a while.
        (Some(_), _) | (None, Role::Drive) => known_drive(known, peer, serial)?.custody,
        (None, _) => Custody::Token,
    };
    let (readable, unreadable) = open_by(known, presented, purpose)?;
    let keks = write_keks(known, [Some(labels.0), labels.1], custody)?;
    // What a token has is not opened beside it to be written anew.
    let mut readable = readable;
    for one in &mut readable {
        one.software = open::may_rekey_in_software(known, &one.kek);
    }
    Ok(RekeyGrant {
        custody,
        keks,
        readable,
        unreadable,
    })
}

/// Whether these KEKs may be written under for a drive of that custody.
///
/// # Errors
/// Why not.
pub fn may_write(
    known: Known<'_>,
    labels: [Option<&KekRef>; 2],
    custody: Custody,
) -> Result<(), Refusal> {
    write_keks(known, labels, custody).map(drop)
}

/// Whether the peer may tell what became of that drive's keys.
///
/// # Errors
/// Why not.
pub fn authorize_confirm(
    known: Known<'_>,
    peer: &PeerId,
    serial: &DriveSerial,
) -> Result<(), Refusal> {
    // Who may rekey may also say that it is done.
    if peer.role() == Role::Operator {
        return Ok(());
    }
    known_drive(known, peer, serial).map(drop)
}

/// The drive's row, if this peer may speak for it.
fn known_drive<'a>(
    known: Known<'a>,
    peer: &PeerId,
    serial: &DriveSerial,
) -> Result<&'a Drive, Refusal> {
    let Some(drive) = known.drive else {
        return Err(Refusal::UnknownDrive {
            serial: serial.clone(),
        });
    };
    let itself = peer.role() == Role::Drive && peer.name() == drive.serial.as_str();
    if !itself && !drive.speakers.contains(peer) && !known.config.speaks_for(peer, &drive.serial) {
        return Err(Refusal::NotItsDrive {
            peer: peer.clone(),
            serial: drive.serial.clone(),
        });
    }
    match drive.state {
        DriveState::Active => Ok(drive),
        DriveState::Pending => Err(Refusal::PendingDrive {
            serial: drive.serial.clone(),
        }),
    }
}

/// The drive's row, and the key that a data key may go to.
fn receiver<'a>(
    known: Known<'a>,
    peer: &PeerId,
    claim: &DriveClaim,
) -> Result<(&'a Drive, Recipient), Refusal> {
    let drive = known_drive(known, peer, &claim.serial)?;
    let table = |reason: &str| Refusal::DriveTable {
        serial: drive.serial.clone(),
        reason: reason.to_owned(),
    };
    let spki = match (&drive.key, drive.form) {
        (DriveKey::None, SedkForm::T10Plain) => Vec::new(),
        (DriveKey::None, _) => {
            return Err(table(
                "its row has no public key; compare the drive's fingerprint and pin it with: ekm drive mod SERIAL --key PEM",
            ));
        }
        (key, _) => drive_key::trusted(key, claim, known.drive_ca)?,
    };
    if drive.form == SedkForm::T10Plain && drive.custody != Custody::Host {
        return Err(table(
            "form t10-00h is the key in clear, which needs --custody host",
        ));
    }
    if drive.form == SedkForm::T10Wrapped && drive.wwn.is_none() {
        return Err(table(
            "form t10-02h binds the key to the drive's WWN, and its row has none (ekm drive mod SERIAL --wwn W)",
        ));
    }
    Ok((
        drive,
        Recipient {
            form: drive.form,
            spki,
            wwn: drive.wwn,
        },
    ))
}

#[cfg(test)]
mod tests;
