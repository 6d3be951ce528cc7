//! Public keys that a token's security officer has blessed (`CKA_TRUSTED`).
//!
//! A data key that is `CKA_WRAP_WITH_TRUSTED` is wrapped under such keys only
//! (PKCS#11 v2.40, 4.9 and 4.10): the KEKs' public halves and the drives'
//! keys. Only the officer (`CKU_SO`) can bless, so he does it in a bridge of
//! his own, which serves nobody ([`Office`]); an application has one login,
//! and his process is another application than the bridges that serve.
//!
//! | object | label |
//! |---|---|
//! | a drive's public key | `ekm-drive-SERIAL` |
//! | a KEK's public half, once more | `ekm-kek-LABEL`: no token lets `CKA_TRUSTED` be set on a key that is there |
//!
//! Whose key it is says its modulus; the label is for people, and for taking
//! away what is no longer in the drive table.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cryptoki_sys as ck;
use serde::{Deserialize, Serialize};

use super::faults::{Fault, ckr_name};
use super::host;
use super::pin::ledger::{self, Ledger};
use super::pin::{Pin, PinError, Sourced};
use super::pkcs11::{Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Office, TokenInfo};
use super::profile::CountLow;
use super::token::import_template;
use super::uri::TokenUri;
use super::which::Which;
use crate::drive::DriveSerial;
use crate::key::{KekHash, KeyLabel};

/// What the label of a blessed drive's key begins with.
const DRIVE: &str = "ekm-drive-";

/// What the label of a KEK's blessed public half begins with.
const KEK: &str = "ekm-kek-";

/// Whether a label is one of the officer's, and so none of a KEK.
#[must_use]
pub fn reserved(label: &str) -> bool {
    let label = label.to_ascii_lowercase();
    [DRIVE, KEK].iter().any(|prefix| label.starts_with(prefix))
}

/// The label of a drive's blessed key.
#[must_use]
pub fn drive_label(serial: &DriveSerial) -> String {
    format!("{DRIVE}{serial}")
}

/// The label of a KEK's blessed public half: the KEK's, or where that would be
/// longer than a label may be, the beginning of its hash.
#[must_use]
pub fn kek_label(label: &KeyLabel, hash: &KekHash) -> String {
    let whole = format!("{KEK}{label}");
    if KeyLabel::try_from(whole.clone()).is_ok() {
        return whole;
    }
    let hash: String = hash.to_string().chars().take(32).collect();
    format!("{KEK}{hash}")
}

/// A public key and the label that its blessed object has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blessing {
    /// [`drive_label`] or [`kek_label`].
    pub label: String,
    /// `SubjectPublicKeyInfo`, DER.
    pub spki: Vec<u8>,
}

/// What the officer is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trust {
    /// Which token.
    pub token: TokenUri,
    /// The serials that it may have, in order of preference.
    pub serials: Vec<String>,
    /// The officer's PIN.
    pub so_pin: Pin,
    /// To be blessed.
    pub bless: Vec<Blessing>,
    /// The drives in the table, by label of their object and hash of their
    /// key. What is blessed as a drive and is not among them is taken away.
    pub drives: Vec<(String, KekHash)>,
}

/// What he did, by label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trusted {
    /// Blessed now.
    pub blessed: Vec<String>,
    /// Blessed before.
    pub already: Vec<String>,
    /// Taken away: drives that are no longer in the table, or have another key.
    pub removed: Vec<String>,
}

/// Does it: one login as `CKU_SO`, and out again.
pub(super) fn run(
    name: &str,
    office: &Office,
    trust: &Trust,
    ledgers: &Path,
    under_way: &Mutex<()>,
) -> Result<Trusted, Fault> {
    let which = Which {
        uri: trust.token.clone(),
        serials: trust.serials.clone(),
    };
    let (slot, info) = which.find(name, office.module())?;
    let session = office
        .module()
        .open_session(slot)
        .map_err(|error| Fault::call(name, error, "opening the security officer's session"))?;
    let counted = which.counted(&info);
    log_in(
        name,
        office,
        session,
        &counted,
        &trust.so_pin,
        ledgers,
        under_way,
    )?;
    let done = Bless {
        name,
        office,
        session,
    }
    .all(trust);
    // The process ends in any case; a token that counts sessions is told so at once.
    let _ = office.module().logout(session);
    done
}

/// `C_Login` as `CKU_SO`, under a guard like that of the user PIN: one ledger
/// of its own, and a PIN that was refused is not sent again.
fn log_in(
    name: &str,
    office: &Office,
    session: CK_SESSION_HANDLE,
    info: &TokenInfo,
    pin: &Pin,
    ledgers: &Path,
    under_way: &Mutex<()>,
) -> Result<(), Fault> {
    let operator = |reason: String| Fault::Operator {
        token: name.to_owned(),
        reason,
    };
    let held = |error: PinError| {
        operator(format!(
            "no login as security officer: {error}; give the right PIN in a file that was written anew, or type it"
        ))
    };
    if info.so_pin_locked() {
        return Err(operator(
            "the security officer's PIN is locked (CKF_SO_PIN_LOCKED); the vendor's tools may help"
                .to_owned(),
        ));
    }
    if info.so_pin_final_try() {
        return Err(operator(
            "the next wrong PIN locks the security officer out (CKF_SO_PIN_FINAL_TRY), so ekm sends none; log in once with the vendor's own tool"
                .to_owned(),
        ));
    }
    let folder = ledgers.join("officer");
    crate::files::private_dir(&folder).map_err(|source| {
        held(PinError::Ledger {
            path: folder.clone(),
            source,
        })
    })?;
    let leader = Ledger::of(&folder, info)
        .lead(ledger::PATIENCE)
        .map_err(held)?;
    let Sourced { pin, generation } = pin.read(name).map_err(held)?;
    let Some(pin) = pin else {
        return Err(operator(
            "the security officer's PIN cannot be given on a PIN pad; name a file with --so-pin-file"
                .to_owned(),
        ));
    };
    let under_way = under_way.lock().unwrap_or_else(PoisonError::into_inner);
    // The flags of the user's PIN say nothing of his, and his own were looked at.
    let unflagged = TokenInfo {
        flags: 0,
        ..info.clone()
    };
    let login = leader
        .begin(&unflagged, generation, CountLow::Unknown)
        .map_err(held)?;
    let outcome = office.login(session, &pin);
    login.end(outcome, false).map_err(held)?;
    drop(under_way);
    outcome.map_err(|error| {
        operator(format!(
            "C_Login as CKU_SO answered {}; that PIN is not sent again",
            ckr_name(error.rv)
        ))
    })
}

/// A session that is logged in as `CKU_SO`.
struct Bless<'a> {
    name: &'a str,
    office: &'a Office,
    session: CK_SESSION_HANDLE,
}

/// A blessed key, or one that looks like it.
struct There {
    object: CK_OBJECT_HANDLE,
    label: String,
    hash: Option<KekHash>,
    trusted: bool,
}

impl Bless<'_> {
    fn all(&self, trust: &Trust) -> Result<Trusted, Fault> {
        let mut done = Trusted::default();
        let mut there = self.there()?;
        for old in &there {
            let rightful =
                |(label, hash): &(String, KekHash)| *label == old.label && Some(*hash) == old.hash;
            if old.label.starts_with(DRIVE) && !trust.drives.iter().any(rightful) {
                self.remove(old)?;
                done.removed.push(old.label.clone());
            }
        }
        there.retain(|old| !done.removed.contains(&old.label));
        for Blessing { label, spki } in &trust.bless {
            let hash = Some(KekHash::of_spki(spki));
            let mut is_there = false;
            for old in there.iter().filter(|old| old.label == *label) {
                if old.hash == hash && old.trusted {
                    is_there = true;
                } else {
                    self.remove(old)?;
                }
            }
            if is_there {
                done.already.push(label.clone());
            } else {
                self.bless(label, spki)?;
                done.blessed.push(label.clone());
            }
        }
        Ok(done)
    }

    /// The public keys on the token that have a label of the officer's.
    fn there(&self) -> Result<Vec<There>, Fault> {
        let module = self.office.module();
        let fail = |error| Fault::call(self.name, error, "looking for keys that are trusted");
        let template = [
            Attr::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
            Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
            Attr::flag(ck::CKA_TOKEN, true),
        ];
        let mut there = Vec::new();
        for object in module.find(self.session, &template).map_err(fail)? {
            let get = |kind| {
                module
                    .attribute(self.session, object, kind)
                    .map(|value| value.map(|value| value.to_vec()).unwrap_or_default())
                    .map_err(fail)
            };
            let label = String::from_utf8(get(ck::CKA_LABEL)?).unwrap_or_default();
            if !reserved(&label) {
                continue;
            }
            let numbers = host::spki(&get(ck::CKA_MODULUS)?, &get(ck::CKA_PUBLIC_EXPONENT)?);
            there.push(There {
                object,
                label,
                hash: numbers.ok().map(|(spki, _)| KekHash::of_spki(&spki)),
                trusted: self.is_trusted(object)?,
            });
        }
        Ok(there)
    }

    fn bless(&self, label: &str, spki: &[u8]) -> Result<(), Fault> {
        let module = self.office.module();
        let unsupported = |reason: String| Fault::Unsupported {
            token: self.name.to_owned(),
            reason,
        };
        let numbers =
            host::numbers(spki).map_err(|error| unsupported(format!("{label}: {error}")))?;
        let mut template = import_template(&numbers);
        template.retain(|attr| !attr.is(ck::CKA_TOKEN));
        template.push(Attr::flag(ck::CKA_TOKEN, true));
        template.push(Attr::bytes(ck::CKA_LABEL, label));
        template.push(Attr::flag(ck::CKA_TRUSTED, true));
        let object = module
            .create_object(self.session, &template)
            .map_err(|error| {
                Fault::call(
                    self.name,
                    error,
                    format!("blessing {label} (CKA_TRUSTED); ekm slot doctor says whether this token can"),
                )
            })?;
        if self.is_trusted(object)? {
            return Ok(());
        }
        let _ = module.destroy(self.session, object);
        Err(unsupported(format!(
            "it took the public key {label} and did not make it CKA_TRUSTED, so it cannot be blessed here"
        )))
    }

    fn is_trusted(&self, object: CK_OBJECT_HANDLE) -> Result<bool, Fault> {
        let flag = self
            .office
            .module()
            .flag(self.session, object, ck::CKA_TRUSTED);
        flag.map(|flag| flag == Some(true))
            .map_err(|error| Fault::call(self.name, error, "reading CKA_TRUSTED"))
    }

    fn remove(&self, old: &There) -> Result<(), Fault> {
        self.office
            .module()
            .destroy(self.session, old.object)
            .map_err(|error| {
                Fault::call(
                    self.name,
                    error,
                    format!("taking the trust from {}", old.label),
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_officers_labels_are_no_labels_of_keks() {
        let serial: DriveSerial = "000001234567".parse().unwrap();
        assert!(reserved(&drive_label(&serial)));
        let hash = KekHash::of_spki(b"a key");
        let short = kek_label(&"TAPE2026".parse().unwrap(), &hash);
        assert!(reserved(&short) && short.ends_with("TAPE2026"));
        let long = kek_label(&"T".repeat(64).parse().unwrap(), &hash);
        assert!(reserved(&long));
        KeyLabel::try_from(long).unwrap();
        assert!(reserved("EKM-Drive-000001234567"));
        assert!(!reserved("TAPE2026") && !reserved("ekm"));
    }
}
