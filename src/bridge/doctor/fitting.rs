//! From findings to a judgement: what the token can be used for, a profile
//! that fits it, and where the given one does not. Pure.

mod lines;
#[cfg(test)]
mod tests;
mod verdict;

use serde::{Deserialize, Serialize};

use super::findings::{
    AttackName, DataKeys, Examination, Oaep, PairKind, PairMade, Rung, Sent, V15,
};
use crate::bridge::profile::HsmProfile;
use crate::key::{OaepHash, SedkForm, WrapAlgorithm};
use lines::Fit;
use verdict::verdicts;
pub use verdict::{Verdict, Way};

/// A line of the profile that should read otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The field, `eedk.hash`.
    pub field: String,
    /// Its value, as TOML.
    pub profile: String,
    /// What it should be, as TOML.
    pub token: String,
    /// The token does not do what the profile says; else it could do more.
    pub breaks: bool,
    /// Why.
    pub why: String,
}

/// The judgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fitting {
    /// For each way of working; empty where nobody logged in.
    pub verdicts: Vec<Verdict>,
    /// The given profile with the least changed that fits; none where the
    /// token can be used in no way, or was not looked at.
    pub profile: Option<HsmProfile>,
    /// Where the given profile does not fit, or could ask for more.
    pub differences: Vec<Difference>,
}

impl Fitting {
    /// Whether the token does what the profile says.
    #[must_use]
    pub fn fits(&self) -> bool {
        !self.differences.iter().any(|difference| difference.breaks)
    }
}

/// Judges what was found. `best` asks for the best profile instead of the
/// one that changes least: there is none that somebody chose.
#[must_use]
pub fn fit(found: &Examination, given: &HsmProfile, best: bool) -> Fitting {
    let Some(data_keys) = &found.data_keys else {
        return Fitting {
            verdicts: Vec::new(),
            profile: None,
            differences: Vec::new(),
        };
    };
    let forms = forms(found, data_keys);
    let mut fit = Fit {
        found,
        data_keys,
        given,
        best,
        profile: given.clone(),
        differences: Vec::new(),
    };
    let able = !forms.is_empty() || host(data_keys, None);
    if able {
        fit.eedk(!forms.is_empty());
        fit.drive(&forms);
        if !forms.is_empty() {
            fit.data_key();
        }
        fit.trusted();
        fit.kek();
        fit.session();
        fit.profile.unsupported = None;
        fit.differ(
            "unsupported",
            &given.unsupported,
            &None,
            false,
            "the token can be used",
        );
    } else if made(found, PairKind::Plain) || made(found, PairKind::Host) {
        fit.unable();
    } else {
        // Nothing was tried, so nothing is known but this.
        fit.generate(false);
    }
    Fitting {
        verdicts: verdicts(found, data_keys, &fit.profile),
        profile: able.then_some(fit.profile),
        differences: fit.differences,
    }
}

/// The unwrap template to take, and whether `CKA_SENSITIVE` must be set
/// afterwards; none where no template keeps a data key and lets it be wrapped.
#[must_use]
pub(super) fn rung(ladder: &[Rung]) -> Option<(Sent, bool)> {
    let sent_along = ladder.iter().find(|rung| keeps(rung, false));
    sent_along.map(|rung| (rung.sent, false)).or_else(|| {
        let set_after = ladder.iter().find(|rung| keeps(rung, true));
        set_after.map(|rung| (rung.sent, true))
    })
}

/// Whether a template gives a key that cannot be read and can be wrapped.
fn keeps(rung: &Rung, set_after: bool) -> bool {
    let Some(key) = &rung.key else {
        return false;
    };
    let sensitive = if set_after {
        !rung.sent.sensitive && key.set_after.works()
    } else {
        rung.sent.sensitive && key.sensitive == Some(true) && !key.readable
    };
    rung.unwrap.works() && sensitive && key.wrap.works()
}

fn cell(data_keys: &DataKeys, hash: OaepHash, labelled: bool) -> Option<&Oaep> {
    data_keys
        .oaep
        .iter()
        .find(|oaep| oaep.hash == hash && oaep.labelled == labelled)
}

fn pair(found: &Examination, kind: PairKind) -> Option<&PairMade> {
    found.pairs.iter().find(|pair| pair.kind == kind)
}

fn made(found: &Examination, kind: PairKind) -> bool {
    pair(found, kind).is_some_and(|pair| pair.made.works())
}

/// Why a kind of pair is not made.
fn refusal(found: &Examination, kind: PairKind) -> String {
    pair(found, kind).map_or_else(|| "it was not tried".to_owned(), |pair| pair.made.why())
}

/// Whether the token was seen to stop an attack on that kind of KEK.
fn stops(found: &Examination, name: AttackName, against: PairKind) -> bool {
    found.attacks.iter().any(|attack| {
        attack.name == name && attack.against == Some(against) && attack.defence.stopped()
    })
}

/// Whether a KEK is for nothing but what it is made for: one that may also
/// decrypt gives data keys out of the token.
fn confined(found: &Examination) -> bool {
    pair(found, PairKind::Plain).is_some_and(|pair| pair.made.works() && pair.denied_uses)
}

/// What the token wraps for drives.
fn forms(found: &Examination, data_keys: &DataKeys) -> Vec<SedkForm> {
    let token = data_keys.fits.is_some()
        && confined(found)
        && data_keys.import.works()
        && data_keys.generate.works()
        && algorithm(data_keys, true).is_some();
    [
        (SedkForm::T10Wrapped, OaepHash::Sha256, true),
        (SedkForm::RsaOaepSha1, OaepHash::Sha1, false),
    ]
    .into_iter()
    .filter(|(_, hash, labelled)| {
        token && cell(data_keys, *hash, *labelled).is_some_and(|oaep| oaep.wrap.works())
    })
    .map(|(form, _, _)| form)
    .collect()
}

/// Whether EEDKs can be wrapped so: on the token, or opened for custody `host`.
fn usable(oaep: &Oaep, on_token: bool) -> bool {
    if on_token {
        oaep.unwrap.works() && oaep.wrap.works()
    } else {
        oaep.decrypt.works()
    }
}

/// The OAEP to take for EEDKs: a label before none, SHA-1 last.
fn algorithm(data_keys: &DataKeys, on_token: bool) -> Option<&Oaep> {
    let rank = |oaep: &&Oaep| (oaep.hash == OaepHash::Sha1, !oaep.labelled);
    data_keys
        .oaep
        .iter()
        .filter(|oaep| usable(oaep, on_token))
        .min_by_key(rank)
}

/// Custody `host` with EEDKs wrapped that way, or in any.
fn host(data_keys: &DataKeys, eedk: Option<WrapAlgorithm>) -> bool {
    let ways = data_keys.oaep.iter().map(|oaep| {
        let way = WrapAlgorithm::oaep(oaep.hash, oaep.labelled);
        (way, oaep.decrypt.works())
    });
    let v15 = (WrapAlgorithm::Pkcs1V15, data_keys.v15.decrypt.works());
    data_keys.random.works()
        && ways
            .chain([v15])
            .any(|(way, decrypts)| decrypts && eedk.is_none_or(|eedk| eedk == way))
}

/// What it means that the token has no OAEP; nothing where it has.
#[must_use]
pub fn without_oaep(data_keys: &DataKeys) -> Option<&'static str> {
    let oaep = data_keys
        .oaep
        .iter()
        .any(|oaep| oaep.unwrap.works() || oaep.decrypt.works());
    let V15 { unwrap, decrypt } = &data_keys.v15;
    if oaep {
        None
    } else if decrypt.works() {
        Some(
            "The token has no OAEP that works, and PKCS#1 v1.5: EEDKs can be wrapped by that, in custody host, where policy.pkcs1_v15_eedks = \"allow\". A wrong v1.5 padding must be hidden from whoever sends EEDKs, and how long the token takes cannot be (docs/pkcs1-v15.md).",
        )
    } else if unwrap.works() {
        Some(
            "The token has no OAEP that works. It unwraps by PKCS#1 v1.5, but wraps for no drive without OAEP and does not decrypt for custody host.",
        )
    } else {
        Some("The token has neither an OAEP that works nor PKCS#1 v1.5.")
    }
}

/// Why the token does not make a form.
fn form_why(found: &Examination, data_keys: &DataKeys, form: SedkForm) -> String {
    let (hash, labelled) = match form {
        SedkForm::T10Wrapped => (OaepHash::Sha256, true),
        SedkForm::RsaOaepSha1 | SedkForm::T10Plain => (OaepHash::Sha1, false),
    };
    if !made(found, PairKind::Plain) {
        return format!("no KEK is made: {}", refusal(found, PairKind::Plain));
    }
    if !confined(found) {
        return "KEKs are made only if they may decrypt and sign as well".to_owned();
    }
    if !data_keys.import.works() {
        return format!("importing a drive's key: {}", data_keys.import.why());
    }
    if !data_keys.generate.works() {
        return format!("generating a data key: {}", data_keys.generate.why());
    }
    if data_keys.fits.is_none() {
        let refused = data_keys.ladder.first().map(rung_why);
        return format!(
            "no unwrap template keeps a data key: {}",
            refused.unwrap_or_default()
        );
    }
    cell(data_keys, hash, labelled).map_or_else(String::new, |oaep| {
        if oaep.wrap.works() {
            "no EEDK can be wrapped and opened".to_owned()
        } else {
            oaep.wrap.why()
        }
    })
}

/// What is wrong with a template.
fn rung_why(rung: &Rung) -> String {
    match &rung.key {
        None => rung.unwrap.why(),
        Some(_) if !rung.unwrap.works() => rung.unwrap.why(),
        Some(key) if rung.sent.sensitive && (key.sensitive != Some(true) || key.readable) => {
            "C_UnwrapKey ignores CKA_SENSITIVE, and the data key can be read".to_owned()
        }
        Some(key) if !rung.sent.sensitive && !key.set_after.works() => {
            format!("CKA_SENSITIVE afterwards: {}", key.set_after.why())
        }
        Some(key) => key.wrap.why(),
    }
}
