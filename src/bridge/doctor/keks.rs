//! The KEKs that are on the token: attributes, provenance, labels that are on
//! two keys, and whether each opens an EEDK.

use std::collections::{BTreeMap, BTreeSet};

use cryptoki_sys as ck;

use super::examiner::{Examiner, mechanism, template};
use super::findings::{KekSeen, Keks, Outcome, Sent};
use crate::bridge::catalog::Catalog;
use crate::bridge::faults::Fault;
use crate::bridge::message::{Custody, KekOnToken, PrivateHalf};
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, Call};
use crate::key::OaepHash;

/// KEKs that are tried; on a token with more, the first ones say enough of it.
const TRIED: usize = 32;

pub(super) fn examine(examiner: &mut Examiner) -> Result<Keks, Fault> {
    let host_only = examiner.data_keys().fits.is_none();
    let profile = &examiner.token.profile;
    let catalog = Catalog::read(examiner.module(), examiner.session, host_only, profile)
        .map_err(|error| Fault::call(&examiner.token.name, error, "reading the KEKs"))?;
    let mut keks = Vec::new();
    for kek in &catalog.keks {
        let private = catalog
            .kek(&kek.hash)
            .and_then(|(_, handles)| handles.private);
        let opens = match (&kek.private, private) {
            _ if keks.len() >= TRIED => {
                Outcome::untried("there are many, the first ones were tried")
            }
            (PrivateHalf::Serves { custody, .. }, Some(private)) => {
                opens(examiner, kek, *custody, private)
            }
            (PrivateHalf::Refused { .. }, _) => Outcome::untried("it may not serve"),
            _ => Outcome::untried("its private half is not here"),
        };
        keks.push(KekSeen {
            kek: kek.clone(),
            opens,
        });
    }
    Ok(Keks {
        ambiguous: ambiguous(&keks),
        keks,
    })
}

/// Labels that two different keys have.
fn ambiguous(keks: &[KekSeen]) -> Vec<String> {
    let mut hashes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for KekSeen { kek, .. } in keks {
        let of_label = hashes.entry(kek.label.folded()).or_default();
        of_label.insert(kek.hash.to_string());
    }
    hashes.retain(|_, hashes| hashes.len() > 1);
    hashes.into_keys().collect()
}

/// Whether an EEDK that the host makes opens under the KEK.
fn opens(
    examiner: &mut Examiner,
    kek: &KekOnToken,
    custody: Custody,
    private: CK_OBJECT_HANDLE,
) -> Outcome {
    let found = examiner.data_keys();
    let decrypts = found.oaep.iter().find(|oaep| oaep.decrypt.works());
    let hash = match custody {
        Custody::Token => found.opened_with,
        Custody::Host => decrypts.map(|oaep| oaep.hash),
    };
    let Some(hash) = hash else {
        return Outcome::untried("no way of opening was found");
    };
    match custody {
        Custody::Token => unwrap(examiner, kek, private, hash, found.fits).into(),
        Custody::Host => decrypt(examiner, kek, private, hash).into(),
    }
}

fn unwrap(
    examiner: &Examiner,
    kek: &KekOnToken,
    private: CK_OBJECT_HANDLE,
    hash: OaepHash,
    sent: Option<Sent>,
) -> Call<Outcome> {
    let (Some(sent), Some(wrapped)) = (sent, examiner.drive.wrap(&kek.spki, hash, &[])) else {
        return Ok(Outcome::untried("no template fits"));
    };
    let mut template = template(sent);
    if examiner.token.opens_trusted(kek) {
        template.push(Attr::flag(ck::CKA_WRAP_WITH_TRUSTED, true));
    }
    let key = examiner.module().unwrap(
        examiner.session,
        &mechanism(hash, &[]),
        private,
        &wrapped,
        &template,
    )?;
    let same = examiner.is_known(key).map(Outcome::same);
    examiner.destroy(key);
    same
}

fn decrypt(
    examiner: &Examiner,
    kek: &KekOnToken,
    private: CK_OBJECT_HANDLE,
    hash: OaepHash,
) -> Call<Outcome> {
    use secrecy::ExposeSecret as _;
    let Some(wrapped) = examiner.drive.wrap(&kek.spki, hash, &[]) else {
        return Ok(Outcome::untried("the host cannot wrap this way"));
    };
    let opened = examiner.decrypt(private, hash, &[], &wrapped)?;
    Ok(Outcome::same(
        examiner.drive.is_known(opened.expose_secret()),
    ))
}
