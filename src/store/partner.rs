//! KEKs of business partners, and certificates that no token keeps.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::bridge::certify::{Mac, SealId};
use crate::certificates::Vouched;
use crate::key::{KekHash, KeyLabel};

/// The public key of a business partner, confirmed by an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partner {
    /// What we call it.
    pub label: KeyLabel,
    /// SHA-256 over its `SubjectPublicKeyInfo`, which is what both sides call it.
    pub hash: KekHash,
    /// Its `SubjectPublicKeyInfo`, DER.
    #[serde(with = "crate::base64_bytes")]
    pub spki: Vec<u8>,
    /// Its certificate, DER.
    #[serde(with = "crate::base64_bytes")]
    pub certificate: Vec<u8>,
    /// Who vouches for the certificate, besides the operator.
    pub vouched: Vouched,
    /// Who compared the fingerprint.
    pub operator: String,
    /// When, to the second.
    #[serde(with = "time::serde::rfc3339")]
    pub confirmed: OffsetDateTime,
    /// The seals, one for each token that could make one then.
    pub seals: Vec<Seal>,
}

/// A seal over a partner's row, by a key on a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The token that made it, by configured name.
    pub token: String,
    /// `CKA_ID` of its key.
    #[serde(with = "hexadecimal")]
    pub key: SealId,
    /// HMAC-SHA-256 over [`Partner::digest`].
    #[serde(with = "hexadecimal")]
    pub mac: Mac,
}

impl Partner {
    /// SHA-256 over everything in the row but its seals, each field with its length before it.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let Self {
            label,
            hash,
            spki,
            certificate,
            vouched,
            operator,
            confirmed,
            seals: _,
        } = self;
        let vouched = match vouched {
            Vouched::Itself => String::new(),
            Vouched::Ca(name) => format!("ca:{name}"),
        };
        let mut digest = Sha256::new();
        for field in [
            label.as_str().as_bytes(),
            hash.as_bytes(),
            spki,
            certificate,
            vouched.as_bytes(),
            operator.as_bytes(),
            &confirmed.unix_timestamp().to_be_bytes(),
        ] {
            let length = u64::try_from(field.len()).unwrap_or(u64::MAX);
            digest.update(length.to_be_bytes());
            digest.update(field);
        }
        digest.finalize().into()
    }
}

/// The certificate of a KEK of ours that a token did not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KekCertificate {
    /// The KEK.
    pub hash: KekHash,
    /// The certificate, DER.
    #[serde(with = "crate::base64_bytes")]
    pub certificate: Vec<u8>,
}

/// What the state knows of certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    /// KEKs of partners, by label.
    pub partners: Vec<Partner>,
    /// Certificates of our own KEKs.
    pub own: Vec<KekCertificate>,
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer, const N: usize>(
        bytes: &[u8; N],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        from: D,
    ) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(from)?;
        let bytes = hex::decode(text).map_err(D::Error::custom)?;
        bytes
            .try_into()
            .map_err(|_| D::Error::custom("not the right number of bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partner() -> Partner {
        Partner {
            label: "PARTNER".parse().unwrap(),
            hash: KekHash::of_spki(b"spki"),
            spki: b"spki".to_vec(),
            certificate: b"certificate".to_vec(),
            vouched: Vouched::Ca("CN=Root".to_owned()),
            operator: "operator:uid 0".to_owned(),
            confirmed: OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap(),
            seals: vec![Seal {
                token: "main".to_owned(),
                key: [7; 16],
                mac: [9; 32],
            }],
        }
    }

    #[test]
    fn every_field_is_sealed() {
        let row = partner();
        let changed = [
            Partner {
                label: "partner".parse().unwrap(),
                ..row.clone()
            },
            Partner {
                hash: KekHash::of_spki(b"other"),
                ..row.clone()
            },
            Partner {
                spki: b"spkj".to_vec(),
                ..row.clone()
            },
            Partner {
                certificate: b"certificatE".to_vec(),
                ..row.clone()
            },
            Partner {
                vouched: Vouched::Itself,
                ..row.clone()
            },
            Partner {
                operator: "operator:uid 1".to_owned(),
                ..row.clone()
            },
            Partner {
                confirmed: row.confirmed + time::Duration::SECOND,
                ..row.clone()
            },
            // What moves from one field into its neighbour.
            Partner {
                spki: b"spkic".to_vec(),
                certificate: b"ertificate".to_vec(),
                ..row.clone()
            },
        ];
        for other in changed {
            assert_ne!(other.digest(), row.digest(), "{other:?}");
        }
        let mut resealed = row.clone();
        resealed.seals.clear();
        assert_eq!(resealed.digest(), row.digest());
    }
}
