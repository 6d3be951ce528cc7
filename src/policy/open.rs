//! Which EEDKs of a cartridge may be opened, and what for.

use super::{Known, Pkcs1V15Eedks, PolicyConfig, Presented, Purpose, Readable, Refusal};
use crate::bridge::faults::Fault;
use crate::bridge::message::Provenance;
use crate::key::{Eedk, KekHash, KekId};
use crate::keystore::{Directory, KekError, KnownKek};
use crate::store::{KekStanding, KekState, Origin};

/// Why an EEDK that is wrapped by PKCS#1 v1.5 is not even tried.
const V15_OFF: &str = "it is wrapped by RSAES-PKCS1-v1_5, and policy.pkcs1_v15_eedks = \"refuse\"";

/// Which EEDKs can be tried, and what is wrong with the others. One that can
/// is enough.
pub(super) fn open_by(
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
    let mut revoked = None;
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
        let v15 = eedk.wrap().is_v15();
        if v15 && known.config.pkcs1_v15_eedks == Pkcs1V15Eedks::Refuse {
            unreadable.push(not_tried(V15_OFF.to_owned()));
            continue;
        }
        // What was issued here has the padding that we gave it.
        let guarded = v15 && one.origin.is_none();
        if let Err(reason) = may_open(known.config, one.origin, purpose, guarded) {
            forbidden = Some(reason);
            unreadable.push(not_tried(reason.to_owned()));
            continue;
        }
        match opener(known.directory, eedk) {
            Ok(kek) if known.states.state(&kek.hash) >= KekState::Revoked => {
                let words = known.states.of(&kek.hash).map(KekStanding::words);
                let words = words.unwrap_or_default();
                unreadable.push(not_tried(format!("its KEK {} was {words}", kek.label)));
                revoked.get_or_insert(Refusal::Revoked {
                    label: kek.label.clone(),
                    words,
                });
            }
            Ok(kek) => readable.push(Readable {
                index,
                eedk: eedk.clone(),
                kek: kek.hash,
                software: true,
                guarded,
            }),
            Err(fault) => unreadable.push(fault),
        }
    }
    // One that gives a key in any case comes last, and a second one could only be tried for what
    // came of the first.
    readable.sort_by_key(|readable| readable.guarded);
    let mut first = true;
    for second in readable.extract_if(.., |one| one.guarded && !std::mem::take(&mut first)) {
        unreadable.push(Fault::NotTried {
            number: second.index + 1,
            reason: "of the EEDKs that are wrapped by RSAES-PKCS1-v1_5 and were not issued here only the first is tried".to_owned(),
        });
    }
    if !readable.is_empty() {
        return Ok((readable, unreadable));
    }
    if let Some(reason) = forbidden {
        return Err(Refusal::NotIssued(dki.to_string(), reason));
    }
    if let Some(refusal) = revoked {
        return Err(refusal);
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
    guarded: bool,
) -> Result<(), &'static str> {
    match (purpose, origin) {
        (Purpose::Rekey { .. }, None) if guarded => Err(
            "it is wrapped by RSAES-PKCS1-v1_5 and was never issued here; such an EEDK may be read, and not rekeyed, as nobody may learn whether it opens",
        ),
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
    // One that is out of reach is waited for, for a while.
    if kek.tokens.is_empty() && kek.away.is_empty() {
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

/// Whether a software keystore may open an EEDK of this KEK to put its data key under others:
/// where the rules let it write, or nobody else has the KEK, as where a site moves away from it.
pub(super) fn may_rekey_in_software(known: Known<'_>, kek: &KekHash) -> bool {
    let software = Provenance::Software;
    known.config.write_provenance.contains(&software)
        || known.directory.by_hash(kek).is_none_or(|kek| {
            let mut holders = kek.holders.iter();
            kek.away.is_empty() && holders.all(|holder| holder.provenance == software)
        })
}
