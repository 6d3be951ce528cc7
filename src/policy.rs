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

mod copies;
mod drive_key;
mod grant;
mod rules;

use std::collections::HashSet;

use time::OffsetDateTime;

use crate::bridge::faults::Fault;
use crate::bridge::message::{Custody, Recipient};
use crate::drive::DriveSerial;
use crate::key::{Eedk, KekId, KekRef, KeyLabel, SedkForm};
use crate::keystore::{Directory, KekError, KnownKek, WrapKek};
use crate::store::{Defaults, Drive, DriveKey, DriveState, Origin};
use crate::tls::{PeerId, Role};

pub use drive_key::{KeyClaim, SessionKeyClaim, certified};
pub use grant::{CreateGrant, GrantedKek, Readable, RekeyGrant, ResolveGrant};
pub use rules::{AcceptUnknown, ExpiredKeks, PeerRule, PolicyConfig, RequireCopy, UnprovedKeks};

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
        "drive {serial} waits for an operator; compare its key's fingerprint and run: ekm drive mod {serial} --accept"
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
    /// No EEDK of the cartridge can be opened here.
    #[error("no EEDK of the cartridge can be opened here: {0}")]
    Unreadable(String),
    /// None of what the cartridge holds is an EEDK.
    #[error(
        "{0}; the cartridge memory may be damaged, or the cartridge was keyed by another product"
    )]
    NoEedk(String),
    /// An EEDK was not issued here and the rules want it to be.
    #[error("data key {0}: the EEDK is not used: {1}")]
    NotIssued(String, &'static str),
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
    Ok(RekeyGrant {
        custody,
        keks,
        readable,
        unreadable,
    })
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

/// The KEKs to write under, each fit for it.
fn write_keks(
    known: Known<'_>,
    labels: [Option<&KekRef>; 2],
    custody: Custody,
) -> Result<Vec<GrantedKek>, Refusal> {
    let mut keks: Vec<GrantedKek> = Vec::new();
    let mut chosen: Vec<&KnownKek> = Vec::new();
    for label in labels.into_iter().flatten() {
        let kek = known.directory.by_label(&label.label)?;
        let provable = fit(known, kek, custody)?;
        let granted = GrantedKek {
            kek: WrapKek {
                label: kek.label.clone(),
                encoding: label.encoding,
                hash: kek.hash,
                spki: kek.spki.clone(),
            },
            provable,
            sealed: kek.partner.is_some(),
            registered: kek.registered,
        };
        if !keks.contains(&granted) {
            keks.push(granted);
            chosen.push(kek);
        }
    }
    if !keks.iter().any(|granted| granted.provable) {
        let labels: Vec<String> = keks
            .iter()
            .map(|granted| granted.kek.label.to_string())
            .collect();
        return Err(Refusal::KekUnfit {
            label: labels.join(" and "),
            reason: "no token here holds a private half, so nobody here could read the cartridge"
                .to_owned(),
        });
    }
    copies::required(known.config.require_copy, &chosen)?;
    Ok(keks)
}

/// Whether an EEDK under this KEK can be proved; or why it may not be written.
fn fit(known: Known<'_>, kek: &KnownKek, custody: Custody) -> Result<bool, Refusal> {
    let config = known.config;
    let unfit = |reason: String| Refusal::KekUnfit {
        label: kek.label.to_string(),
        reason,
    };
    if let Some(partner) = &kek.partner
        && !known.sealed.contains(&partner.digest)
    {
        return Err(Refusal::Unverified {
            label: kek.label.clone(),
        });
    }
    let expired = kek.validity.and_then(|validity| validity.fault(known.now));
    if let (Some(fault), ExpiredKeks::Refuse) = (expired, config.expired_keks) {
        return Err(unfit(expired_words(kek, &fault)));
    }
    if kek.tokens.is_empty() {
        if let Some((token, reason)) = kek.refused.first() {
            return Err(unfit(format!("token {token} holds it, but {reason}")));
        }
        if kek.partner.is_some() {
            return Ok(false);
        }
        return match config.unproved_keks {
            UnprovedKeks::Allow => Ok(false),
            UnprovedKeks::Refuse => Err(unfit(
                "its private half is not on any token here, so the EEDK cannot be proved"
                    .to_owned(),
            )),
        };
    }
    if kek.custody == Some(Custody::Host) && custody == Custody::Token {
        return Err(unfit(
            "it was made for custody host, and the drive is not enrolled for that".to_owned(),
        ));
    }
    if let Some(provenance) = kek.provenance
        && !config.write_provenance.contains(&provenance)
    {
        return Err(unfit(format!(
            "its provenance is {provenance}, and policy.write_provenance does not list that"
        )));
    }
    Ok(true)
}

/// An expired KEK reads for ever; who wants to write has three ways.
fn expired_words(kek: &KnownKek, fault: &str) -> String {
    let label = &kek.label;
    let renew = if kek.partner.is_some() {
        format!("ask the partner for a new one (ekm kek partner remove {label}, then add)")
    } else {
        format!("give it a new one (ekm kek cert import {label} FILE)")
    };
    format!(
        "{fault}; cartridges under it are still read; {renew}, write under another KEK, or set policy.expired_keks = \"allow\""
    )
}

/// Which EEDKs can be tried, and what is wrong with the others. One that can
/// is enough.
fn open_by(
    known: Known<'_>,
    presented: &[Presented],
    purpose: Purpose,
) -> Result<(Vec<Readable>, Vec<Fault>), Refusal> {
    // Where the two are of different data keys, the one issued here is believed.
    let dki = presented
        .iter()
        .filter(|one| one.origin.is_some())
        .chain(presented)
        .find_map(|one| one.eedk.as_ref().ok().map(Eedk::dki));
    let Some(dki) = dki else {
        let reasons: Vec<&str> = presented
            .iter()
            .filter_map(|one| one.eedk.as_ref().err().map(String::as_str))
            .collect();
        return Err(Refusal::NoEedk(reasons.join("; ")));
    };
    let mut readable = Vec::new();
    let mut unreadable = Vec::new();
    let mut forbidden = None;
    for (index, one) in presented.iter().enumerate() {
        let not_tried = |reason: String| Fault::NotTried {
            number: index + 1,
            reason,
        };
        let eedk = match &one.eedk {
            Ok(eedk) if eedk.dki() == dki => eedk,
            Ok(eedk) => {
                unreadable.push(not_tried(format!(
                    "it is of data key {}, not {dki}",
                    eedk.dki()
                )));
                continue;
            }
            Err(reason) => {
                unreadable.push(not_tried(reason.clone()));
                continue;
            }
        };
        if let Err(reason) = may_open(known.config, one.origin, purpose) {
            forbidden = Some(reason);
            unreadable.push(not_tried(reason.to_owned()));
            continue;
        }
        match opener(known.directory, eedk) {
            Ok(kek) => readable.push(Readable {
                index,
                eedk: eedk.clone(),
                kek: kek.hash,
            }),
            Err(fault) => unreadable.push(fault),
        }
    }
    if !readable.is_empty() {
        return Ok((readable, unreadable));
    }
    if let Some(reason) = forbidden {
        return Err(Refusal::NotIssued(dki.to_string(), reason));
    }
    let reasons: Vec<String> = unreadable.iter().map(ToString::to_string).collect();
    Err(Refusal::Unreadable(reasons.join("; ")))
}

/// Anyone with a KEK's public key can make an EEDK that opens, so one that
/// was not issued here, or holds a data key that was not made here, is read
/// at most.
fn may_open(
    config: &PolicyConfig,
    origin: Option<Origin>,
    purpose: Purpose,
) -> Result<(), &'static str> {
    match (purpose, origin) {
        (Purpose::Read, Some(_))
        | (Purpose::Append | Purpose::Rekey { .. }, Some(Origin::Ours)) => Ok(()),
        (Purpose::Append, Some(Origin::Foreign) | None) => {
            Err("its data key was not made here; it may be read, but nothing is appended under it")
        }
        (
            Purpose::Rekey {
                known: Some(Origin::Ours),
            },
            None,
        ) => Err("it was never issued here and yet names a data key made here; it may be forged"),
        (Purpose::Read | Purpose::Rekey { .. }, _) if config.read_unissued_eedks => Ok(()),
        (Purpose::Read | Purpose::Rekey { .. }, _) => {
            Err("it was never issued here, and policy.read_unissued_eedks forbids reading it")
        }
    }
}

fn opener<'a>(directory: &'a Directory, eedk: &Eedk) -> Result<&'a KnownKek, Fault> {
    let missing = |kek: String| Fault::NoKek { token: None, kek };
    let kek = match eedk.kek() {
        KekId::Label(label) => directory.by_label(label).map_err(|error| match error {
            KekError::Unknown { label } => missing(label),
            KekError::Ambiguous { .. } | KekError::Changed { .. } => Fault::Refused {
                token: "of any name".to_owned(),
                label: label.to_string(),
                reason: error.to_string(),
            },
        })?,
        KekId::Hash(hash) => directory
            .by_hash(hash)
            .ok_or_else(|| missing(format!("with public-key hash {hash}")))?,
    };
    if kek.tokens.is_empty() {
        return Err(match kek.refused.first() {
            Some((token, reason)) => Fault::Refused {
                token: token.clone(),
                label: kek.label.to_string(),
                reason: reason.clone(),
            },
            None => missing(kek.label.to_string()),
        });
    }
    Ok(kek)
}

#[cfg(test)]
mod tests;
