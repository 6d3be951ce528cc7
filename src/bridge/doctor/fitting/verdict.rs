//! What a token can be used for.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{cell, form_why, forms, host, pair, stops};
use crate::bridge::doctor::findings::{AttackName, DataKeys, Examination, Outcome, PairKind};
use crate::bridge::profile::{HsmProfile, Send};
use crate::key::{SedkForm, WrapAlgorithm};

/// A way of working.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Drive form `rsa-oaep-sha1`, as the 3592 has it, in custody `token`.
    #[serde(rename = "3592-plain")]
    Plain3592,
    /// Drive form `t10-02h`, in custody `token`.
    #[serde(rename = "t10-02h")]
    T10Wrapped,
    /// Drive form `t10-00h`, in custody `host`.
    #[serde(rename = "t10-00h-host")]
    HostCustody,
    /// Data keys that only trusted drive keys can wrap.
    WrapWithTrusted,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Plain3592 => "3592 plain (rsa-oaep-sha1)",
            Self::T10Wrapped => "T10 02h (t10-02h)",
            Self::HostCustody => "00h by host custody (t10-00h)",
            Self::WrapWithTrusted => "wrap-with-trusted",
        })
    }
}

/// Whether the token can be used this way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which way.
    pub way: Way,
    /// Whether it can.
    pub able: bool,
    /// Why, with the function and the code.
    pub why: String,
}

pub(super) fn verdicts(
    found: &Examination,
    data_keys: &DataKeys,
    profile: &HsmProfile,
) -> Vec<Verdict> {
    let forms = forms(found, data_keys);
    let form = |way, form| Verdict {
        way,
        able: forms.contains(&form),
        why: if forms.contains(&form) {
            "data keys stay in the token".to_owned()
        } else {
            form_why(found, data_keys, form)
        },
    };
    vec![
        form(Way::Plain3592, SedkForm::RsaOaepSha1),
        form(Way::T10Wrapped, SedkForm::T10Wrapped),
        host_verdict(found, data_keys, profile),
        trusted_verdict(found),
    ]
}

fn host_verdict(found: &Examination, data_keys: &DataKeys, profile: &HsmProfile) -> Verdict {
    let decrypts = host(data_keys, Some(profile.eedk));
    let decrypt = match profile.eedk {
        WrapAlgorithm::Oaep { hash, labelled } => {
            cell(data_keys, hash, labelled).map(|oaep| &oaep.decrypt)
        }
        WrapAlgorithm::Pkcs1V15 => Some(&data_keys.v15.decrypt),
    };
    let denied = pair(found, PairKind::Host).is_some_and(|pair| pair.denied_uses);
    let made = denied || profile.kek.denied_uses == Send::Omit;
    Verdict {
        way: Way::HostCustody,
        able: decrypts && made,
        why: if !made && decrypts {
            "it decrypts, but makes no KEK for it with kek.denied_uses = \"send\"".to_owned()
        } else if decrypts && profile.eedk.is_v15() {
            "with KEKs made for it, and policy.pkcs1_v15_eedks = \"allow\"; the data key is in ekm's memory for an instant".to_owned()
        } else if decrypts {
            "with KEKs made for it; the data key is in ekm's memory for an instant".to_owned()
        } else if data_keys.random.works() {
            decrypt.map_or_else(String::new, Outcome::why)
        } else {
            data_keys.random.why()
        },
    }
}

pub(super) fn trusted_verdict(found: &Examination) -> Verdict {
    let unknown = |outcome: &Outcome| matches!(outcome, Outcome::Refused { code, .. } if code == "CKR_ATTRIBUTE_TYPE_INVALID");
    let (able, why) = match &found.trusted {
        None => (false, "not tried".to_owned()),
        Some(trusted) if !trusted.generated.stopped() => {
            (false, format!("generated data keys: {}", trusted.generated))
        }
        Some(trusted) if !trusted.unwrapped.stopped() => {
            (false, format!("unwrapped data keys: {}", trusted.unwrapped))
        }
        Some(trusted) if trusted.user_creates.works() || trusted.user_sets.works() => (
            false,
            "the user himself can make a key CKA_TRUSTED".to_owned(),
        ),
        Some(trusted) if trusted.user_copies.works() => (
            false,
            "the user himself can make a key CKA_TRUSTED, by C_CopyObject".to_owned(),
        ),
        Some(trusted) if unknown(&trusted.user_creates) => (
            false,
            "the token knows no CKA_TRUSTED on an RSA public key, so no drive's key can be trusted"
                .to_owned(),
        ),
        Some(_) if stops(found, AttackName::ForeignKey, PairKind::TrustedTemplate) => (
            true,
            "the token enforces it, and so do KEKs made with data_key.wrap_with_trusted = true: no data key goes to a key that the security officer has not blessed (ekm drive trust)"
                .to_owned(),
        ),
        Some(_) => (
            true,
            "the token enforces it on data keys that ask for it (data_key.wrap_with_trusted, ekm drive trust); but its KEKs do not, so an EEDK can still be opened without it"
                .to_owned(),
        ),
    };
    Verdict {
        way: Way::WrapWithTrusted,
        able,
        why,
    }
}
