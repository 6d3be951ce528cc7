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

mod drive_key;
mod grant;
mod rules;

use crate::bridge::faults::Fault;
use crate::bridge::message::{Custody, Recipient};
use crate::drive::DriveSerial;
use crate::key::{Eedk, KekId, KekRef, SedkForm};
use crate::keystore::{Directory, KekError, KnownKek, WrapKek};
use crate::store::{Defaults, Drive, DriveKey, DriveState};
use crate::tls::{PeerId, Role};

pub use drive_key::{KeyClaim, SessionKeyClaim, certified};
pub use grant::{CreateGrant, GrantedKek, Readable, RekeyGrant, ResolveGrant};
pub use rules::{AcceptUnknown, PeerRule, PolicyConfig, UnprovedKeks};

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
    /// No EEDK of the cartridge can be opened here.
    #[error("no EEDK of the cartridge can be opened here: {0}")]
    Unreadable(String),
    /// The EEDKs do not belong together.
    #[error("the EEDKs do not belong together: {0}")]
    Mismatch(String),
    /// An EEDK was not issued here and the rules want it to be.
    #[error("an EEDK of this cartridge was never issued here ({0}); {1}")]
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

/// Judges a resolve. `issued` says of each EEDK whether it was issued here.
///
/// # Errors
/// Why not.
pub fn authorize_resolve(
    known: Known<'_>,
    peer: &PeerId,
    claim: &DriveClaim,
    eedks: &[Eedk],
    issued: &[bool],
    append: bool,
) -> Result<ResolveGrant, Refusal> {
    let (drive, recipient) = receiver(known, peer, claim)?;
    let (readable, unreadable) = open_by(known, eedks, issued, append)?;
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
    labels: (&KekRef, Option<&KekRef>),
    eedks: &[Eedk],
    issued: &[bool],
) -> Result<RekeyGrant, Refusal> {
    for label in [Some(labels.0), labels.1].into_iter().flatten() {
        known.config.may_rekey_to(peer, &label.label)?;
    }
    let custody = known.drive.map_or(Custody::Token, |drive| drive.custody);
    let (readable, unreadable) = open_by(known, eedks, issued, false)?;
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
    for label in labels.into_iter().flatten() {
        let kek = known.directory.by_label(&label.label)?;
        let provable = fit(known.config, kek, custody)?;
        let granted = GrantedKek {
            kek: WrapKek {
                label: kek.label.clone(),
                encoding: label.encoding,
                hash: kek.hash,
                spki: kek.spki.clone(),
            },
            provable,
        };
        if !keks.contains(&granted) {
            keks.push(granted);
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
    Ok(keks)
}

/// Whether an EEDK under this KEK can be proved; or why it may not be written.
fn fit(config: &PolicyConfig, kek: &KnownKek, custody: Custody) -> Result<bool, Refusal> {
    let unfit = |reason: String| Refusal::KekUnfit {
        label: kek.label.to_string(),
        reason,
    };
    if kek.tokens.is_empty() {
        if let Some((token, reason)) = kek.refused.first() {
            return Err(unfit(format!("token {token} holds it, but {reason}")));
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

/// Which EEDKs can be tried, and what is wrong with the others.
fn open_by(
    known: Known<'_>,
    eedks: &[Eedk],
    issued: &[bool],
    append: bool,
) -> Result<(Vec<Readable>, Vec<Fault>), Refusal> {
    let Some(first) = eedks.first() else {
        return Err(Refusal::Mismatch("there is none".to_owned()));
    };
    if let Some(other) = eedks.iter().find(|eedk| eedk.dki() != first.dki()) {
        return Err(Refusal::Mismatch(format!(
            "one is of data key {}, the other of {}",
            first.dki(),
            other.dki()
        )));
    }
    let foreign = issued.iter().any(|issued| !issued);
    if foreign && append {
        return Err(Refusal::NotIssued(
            first.dki().to_string(),
            "it may be read, but nothing is appended under it",
        ));
    }
    if foreign && !known.config.read_unissued_eedks {
        return Err(Refusal::NotIssued(
            first.dki().to_string(),
            "policy.read_unissued_eedks forbids reading it",
        ));
    }
    let mut readable = Vec::new();
    let mut unreadable = Vec::new();
    for (index, eedk) in eedks.iter().enumerate() {
        match opener(known.directory, eedk) {
            Ok(kek) => readable.push(Readable {
                index,
                eedk: eedk.clone(),
                kek: kek.hash,
            }),
            Err(fault) => unreadable.push(fault),
        }
    }
    if readable.is_empty() {
        let reasons: Vec<String> = unreadable.iter().map(ToString::to_string).collect();
        return Err(Refusal::Unreadable(reasons.join("; ")));
    }
    Ok((readable, unreadable))
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
