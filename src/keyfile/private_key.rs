//! RSA private keys in memory.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::KeyPair as _;
use der::asn1::{ObjectIdentifier, OctetStringRef};
use der::{Encode as _, Sequence};
use secrecy::{ExposeSecret, SecretSlice};
use spki::AlgorithmIdentifierRef;
use zeroize::Zeroizing;

use super::ber::{Ber, INTEGER, Malformed, OCTETS};
use crate::key::KekHash;

/// An RSA private key of 2048, 3072 or 4096 bits whose parts fit together.
///
/// Wiped when it is dropped; no Debug or Display shows it.
pub struct PrivateKey {
    pkcs8: SecretSlice<u8>,
    spki: Vec<u8>,
    public: Vec<u8>,
    bits: u32,
}

impl PrivateKey {
    /// The key itself, in clear: PrivateKeyInfo DER (RFC 5208), without attributes.
    ///
    /// Whoever has these bytes opens every cartridge that was keyed under this key. They are for
    /// aws-lc-rs and for the way into a token; copies must be wiped, and nothing may write them
    /// to a file or a log.
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        self.pkcs8.expose_secret()
    }

    /// The public key, as DER SubjectPublicKeyInfo (RFC 5280, section 4.1).
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The hash that an EEDK may name it by.
    #[must_use]
    pub fn hash(&self) -> KekHash {
        KekHash::of_spki(&self.spki)
    }

    /// The length of its modulus, bits.
    #[must_use]
    pub const fn bits(&self) -> u32 {
        self.bits
    }

    /// The public key as RSAPublicKey (RFC 8017, appendix A.1.1), for comparing with certificates.
    pub(super) fn public(&self) -> &[u8] {
        &self.public
    }

    /// From PrivateKeyInfo or OneAsymmetricKey (RFC 5208, 5958).
    pub(super) fn from_pkcs8(der: &[u8]) -> Result<Self, KeyFault> {
        let (algorithm, key) = private_key_info(der).map_err(|_| KeyFault::NotPkcs8)?;
        if algorithm != RSA_ENCRYPTION {
            return Err(KeyFault::NotRsa(algorithm));
        }
        Self::from_pkcs1(&key)
    }

    /// From RSAPrivateKey (RFC 8017, appendix A.1.2).
    pub(super) fn from_pkcs1(der: &[u8]) -> Result<Self, KeyFault> {
        let bits = modulus_bits(der).map_err(|_| KeyFault::NotPkcs8)?;
        // Before the check of the key, whose time grows with its length.
        if !KEK_BITS.contains(&bits) {
            return Err(KeyFault::Size(bits));
        }
        let pkcs8 = to_pkcs8(der).map_err(|_| KeyFault::NotPkcs8)?;
        let pair = KeyPair::from_pkcs8(&pkcs8).map_err(|_| KeyFault::Inconsistent)?;
        let spki: PublicKeyX509Der<'_> = pair
            .public_key()
            .as_der()
            .map_err(|_| KeyFault::Inconsistent)?;
        Ok(Self {
            spki: spki.as_ref().to_vec(),
            public: pair.public_key().as_ref().to_vec(),
            pkcs8: SecretSlice::from(pkcs8.to_vec()),
            bits,
        })
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey")
            .field("hash", &self.hash())
            .field("bits", &self.bits)
            .finish_non_exhaustive()
    }
}

/// Why a private key is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyFault {
    /// What the decryption under a wrong password looks like, too.
    #[error("what is in it is no private key; the file is damaged")]
    NotPkcs8,
    #[error("it is not an RSA key ({}), and KEKs are RSA", name(.0))]
    NotRsa(ObjectIdentifier),
    #[error("it is RSA of {0} bits, and a KEK has 2048, 3072 or 4096")]
    Size(u32),
    #[error("the parts of the RSA key do not fit together; the file is damaged")]
    Inconsistent,
}

impl KeyFault {
    /// What the key is, where it is one.
    fn what(&self) -> Option<String> {
        match self {
            Self::NotRsa(algorithm) => Some(name(algorithm)),
            Self::Size(bits) => Some(format!("RSA-{bits}")),
            Self::NotPkcs8 | Self::Inconsistent => None,
        }
    }
}

/// Why an entry is not used, and what it is where that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unused {
    pub(super) what: Option<String>,
    pub(super) reason: String,
}

impl From<KeyFault> for Unused {
    fn from(fault: KeyFault) -> Self {
        Self {
            what: fault.what(),
            reason: fault.to_string(),
        }
    }
}

impl From<String> for Unused {
    fn from(reason: String) -> Self {
        Self { what: None, reason }
    }
}

impl From<&str> for Unused {
    fn from(reason: &str) -> Self {
        Self::from(reason.to_owned())
    }
}

const KEK_BITS: [u32; 3] = [2048, 3072, 4096];
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// Algorithm and key of a PrivateKeyInfo.
pub(super) fn private_key_info(
    der: &[u8],
) -> Result<(ObjectIdentifier, Zeroizing<Vec<u8>>), Malformed> {
    let mut info = Ber::new(der).sequence("PrivateKeyInfo")?;
    info.number("version")?;
    let algorithm = info.sequence("algorithm")?.oid("algorithm")?;
    let key = info.octets(OCTETS, "privateKey")?;
    Ok((algorithm, key))
}

fn modulus_bits(rsa: &[u8]) -> Result<u32, Malformed> {
    let mut key = Ber::new(rsa).sequence("RSAPrivateKey")?;
    key.number("version")?;
    let modulus = key.take(INTEGER, "modulus")?;
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    let leading = modulus.first().map_or(0, |first| first.leading_zeros());
    u32::try_from(modulus.len())
        .ok()
        .and_then(|bytes| bytes.checked_mul(8))
        .and_then(|bits| bits.checked_sub(leading))
        .ok_or(Malformed("modulus"))
}

#[derive(Sequence)]
struct PrivateKeyInfo<'a> {
    version: u8,
    algorithm: AlgorithmIdentifierRef<'a>,
    private_key: OctetStringRef<'a>,
}

fn to_pkcs8(rsa: &[u8]) -> der::Result<Zeroizing<Vec<u8>>> {
    let info = PrivateKeyInfo {
        version: 0,
        algorithm: AlgorithmIdentifierRef {
            oid: RSA_ENCRYPTION,
            parameters: Some(der::asn1::AnyRef::NULL),
        },
        private_key: OctetStringRef::new(rsa)?,
    };
    // Of its final length at once, so that no copy is left behind in growing.
    let mut der = Zeroizing::new(vec![0; usize::try_from(info.encoded_len()?)?]);
    info.encode_to_slice(&mut der)?;
    Ok(der)
}

/// What an algorithm is called.
pub(super) fn name(algorithm: &ObjectIdentifier) -> String {
    let text = algorithm.to_string();
    let known = match text.as_str() {
        "1.2.840.10045.2.1" => "EC",
        "1.2.840.10040.4.1" => "DSA",
        "1.2.840.113549.1.3.1" | "1.2.840.10046.2.1" => "DH",
        "1.2.840.113549.1.1.10" => "RSA-PSS",
        "1.3.101.112" => "Ed25519",
        "1.3.101.110" => "X25519",
        "2.16.840.1.101.3.4.1"
        | "2.16.840.1.101.3.4.1.1"
        | "2.16.840.1.101.3.4.1.2"
        | "2.16.840.1.101.3.4.1.41"
        | "2.16.840.1.101.3.4.1.42" => "AES",
        "1.2.840.113549.3.7" | "1.3.14.3.2.17" => "DESede",
        "1.3.14.3.2.7" => "DES",
        "1.2.840.113549.2.7" => "HmacSHA1",
        "1.2.840.113549.2.9" => "HmacSHA256",
        _ => return text,
    };
    known.to_owned()
}
