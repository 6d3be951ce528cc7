//! The KEKs that are on the token: attributes, provenance, labels that are on
//! two keys, and whether each opens an EEDK.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::ExposeSecret;

use super::examiner::{DKI, Examiner};
use super::findings::{KekSeen, Keks, Outcome};
use crate::bridge::catalog::Catalog;
use crate::bridge::faults::Fault;
use crate::bridge::message::{Custody, KekOnToken, PrivateHalf};
use crate::bridge::pkcs11::{CK_OBJECT_HANDLE, Call, Mechanism};
use crate::bridge::token::wrapping;

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
        way: examiner.token.profile.wrap_algorithm(),
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

/// Whether an EEDK that the host makes, as an exchange by this profile does, opens under the KEK.
fn opens(
    examiner: &Examiner,
    kek: &KekOnToken,
    custody: Custody,
    private: CK_OBJECT_HANDLE,
) -> Outcome {
    let way = examiner.token.profile.wrap_algorithm();
    let Some(wrapped) = examiner.drive.wrap_by(&kek.spki, way, &DKI) else {
        return Outcome::untried("the host cannot wrap this way");
    };
    let mechanism = wrapping(way, &DKI);
    match custody {
        Custody::Token => unwrap(examiner, kek, private, &mechanism, &wrapped).into(),
        Custody::Host => examiner
            .decrypt_by(private, &mechanism, &wrapped)
            .map(|opened| Outcome::same(examiner.drive.is_known(opened.expose_secret())))
            .into(),
    }
}

fn unwrap(
    examiner: &Examiner,
    kek: &KekOnToken,
    private: CK_OBJECT_HANDLE,
    mechanism: &Mechanism,
    wrapped: &[u8],
) -> Call<Outcome> {
    let token = &examiner.token;
    let key = examiner.module().unwrap(
        examiner.session,
        mechanism,
        private,
        wrapped,
        &token.unwrap_template(true, token.opens_trusted(kek)),
    )?;
    let same = examiner.is_known(key).map(Outcome::same);
    examiner.destroy(key);
    same
}
