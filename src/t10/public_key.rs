//! The device server key wrapping public key page.

use std::fmt;

use der::{
    Decode, Encode, Sequence,
    asn1::{AnyRef, BitStringRef, ObjectIdentifier, UintRef},
};
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use super::{
    PageError,
    reader::{Reader, page},
};

/// The RSA-2048 key that a drive wants its data keys to be wrapped under.
///
/// ```text
/// byte 0-1      page code, 0031h
///      2-3      page length, 020Ah
///      4-7      PUBLIC KEY TYPE, 00000000h (RSA-2048)
///      8-11     PUBLIC KEY FORMAT, 00000000h
///      12-13    PUBLIC KEY LENGTH, 0200h
///      14-269   modulus
///      270-525  exponent, padded with zeros on the left
/// ```
///
/// The page is not signed, so whoever enrols a drive compares the key's fingerprint by other
/// means.
///
/// Source: SSC-4, "Device Server Key Wrapping Public Key page".
#[derive(Clone, PartialEq, Eq)]
pub struct DevicePublicKey {
    modulus: [u8; 256],
    exponent: [u8; 8],
}

impl DevicePublicKey {
    /// The length of the page, in bytes.
    pub const PAGE_LEN: usize = 526;

    /// A key from its modulus and exponent, both padded with zeros on the left.
    ///
    /// # Errors
    ///
    /// [`PublicKeyError`] where it is no RSA-2048 key.
    pub fn new(modulus: [u8; 256], exponent: [u8; 8]) -> Result<Self, PublicKeyError> {
        let [high, .., low] = modulus;
        if high & 0x80 == 0 || low & 1 == 0 {
            return Err(PublicKeyError::Modulus);
        }
        let e = u64::from_be_bytes(exponent);
        if e < 3 || e.is_multiple_of(2) {
            return Err(PublicKeyError::Exponent);
        }
        Ok(Self { modulus, exponent })
    }

    /// A key from its SubjectPublicKeyInfo (RFC 5280), in DER.
    ///
    /// # Errors
    ///
    /// [`PublicKeyError`] where it is no RSA-2048 key.
    pub fn from_spki(spki: &[u8]) -> Result<Self, PublicKeyError> {
        let info = SubjectPublicKeyInfoRef::from_der(spki).map_err(|_| PublicKeyError::Encoding)?;
        if info.algorithm.oid != RSA_ENCRYPTION {
            return Err(PublicKeyError::Encoding);
        }
        let key = info
            .subject_public_key
            .as_bytes()
            .ok_or(PublicKeyError::Encoding)?;
        let RsaPublicKey { modulus, exponent } =
            RsaPublicKey::from_der(key).map_err(|_| PublicKeyError::Encoding)?;
        Self::new(
            pad(modulus.as_bytes()).ok_or(PublicKeyError::Modulus)?,
            pad(exponent.as_bytes()).ok_or(PublicKeyError::Exponent)?,
        )
    }

    /// The key as SubjectPublicKeyInfo (RFC 5280), in DER.
    ///
    /// # Errors
    ///
    /// [`PublicKeyError::Encoding`], which no key of this type meets.
    pub fn to_spki(&self) -> Result<Vec<u8>, PublicKeyError> {
        self.spki().map_err(|_| PublicKeyError::Encoding)
    }

    fn spki(&self) -> Result<Vec<u8>, der::Error> {
        let key = RsaPublicKey {
            modulus: UintRef::new(&self.modulus)?,
            exponent: UintRef::new(&self.exponent)?,
        }
        .to_der()?;
        SubjectPublicKeyInfoRef {
            algorithm: AlgorithmIdentifierRef {
                oid: RSA_ENCRYPTION,
                parameters: Some(AnyRef::NULL),
            },
            subject_public_key: BitStringRef::from_bytes(&key)?,
        }
        .to_der()
    }

    /// The modulus, 256 bytes.
    pub fn modulus(&self) -> &[u8; 256] {
        &self.modulus
    }

    /// The exponent, padded with zeros on the left.
    pub fn exponent(&self) -> &[u8; 8] {
        &self.exponent
    }

    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = vec![0; 8];
        body.extend(KEY_LEN.to_be_bytes());
        body.extend(self.modulus);
        body.extend([0; 248]);
        body.extend(self.exponent);
        page(PAGE_CODE, &body)
    }

    /// Reads the page.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page, or the key no RSA-2048 key.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut page = Reader::page("public key page", PAGE_CODE, bytes)?;
        for _ in ["PUBLIC KEY TYPE", "PUBLIC KEY FORMAT"] {
            let got = page.u32()?;
            if got != 0 {
                return Err(PageError::ParameterSet { got });
            }
        }
        let len = page.u16()?;
        if len != KEY_LEN {
            return Err(PageError::Length {
                field: "a public key",
                expected: "512",
                got: len.into(),
            });
        }
        let modulus = page.array()?;
        let padding: [u8; 248] = page.array()?;
        if padding != [0; 248] {
            return Err(PublicKeyError::Exponent.into());
        }
        let exponent = page.array()?;
        page.finish()?;
        Ok(Self::new(modulus, exponent)?)
    }
}

impl fmt::Debug for DevicePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevicePublicKey")
            .field("modulus", &hex::encode(self.modulus))
            .field("exponent", &u64::from_be_bytes(self.exponent))
            .finish()
    }
}

/// Why a public key is not one that data keys can be wrapped under.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// Not the SubjectPublicKeyInfo of an RSA key.
    #[error("expected the DER SubjectPublicKeyInfo of an RSA key")]
    Encoding,
    /// Not an odd number of 2048 bits.
    #[error("expected an odd RSA modulus of exactly 2048 bits")]
    Modulus,
    /// Not a public exponent.
    #[error("expected an odd RSA exponent of at least 3 and at most 64 bits")]
    Exponent,
}

/// RSAPublicKey (RFC 8017, appendix A.1.1).
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

fn pad<const N: usize>(number: &[u8]) -> Option<[u8; N]> {
    let mut padded = [0; N];
    let start = N.checked_sub(number.len())?;
    padded.get_mut(start..)?.copy_from_slice(number);
    Some(padded)
}

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const PAGE_CODE: u16 = 0x0031;
const KEY_LEN: u16 = 512;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../../integration/golden/t10/spin-0031.bin");
    const SPKI: &[u8] = include_bytes!("../../integration/golden/t10/spin-0031.spki.der");

    #[test]
    fn holds_the_key_of_its_spki() {
        assert_eq!(GOLDEN.len(), DevicePublicKey::PAGE_LEN);
        let key = DevicePublicKey::decode(GOLDEN).unwrap();
        assert_eq!(key.to_spki().unwrap(), SPKI);
        assert_eq!(DevicePublicKey::from_spki(SPKI).unwrap(), key);
        assert_eq!(key.encode(), GOLDEN);
        assert_eq!(key.exponent(), &[0, 0, 0, 0, 0, 1, 0, 1]);
    }

    #[test]
    fn elliptic_curve_key_is_refused() {
        let mut other = GOLDEN.to_vec();
        other[7] = 0x10;
        assert_eq!(
            DevicePublicKey::decode(&other),
            Err(PageError::ParameterSet { got: 0x10 })
        );
    }

    #[test]
    fn short_modulus_is_refused() {
        let mut other = GOLDEN.to_vec();
        other[14] &= 0x7f;
        assert_eq!(
            DevicePublicKey::decode(&other),
            Err(PageError::PublicKey(PublicKeyError::Modulus))
        );
    }

    #[test]
    fn even_modulus_is_refused() {
        let mut other = GOLDEN.to_vec();
        other[269] &= 0xfe;
        assert!(DevicePublicKey::decode(&other).is_err());
    }

    #[test]
    fn exponent_one_is_refused() {
        let mut other = GOLDEN.to_vec();
        other[523] = 0;
        assert_eq!(
            DevicePublicKey::decode(&other),
            Err(PageError::PublicKey(PublicKeyError::Exponent))
        );
    }

    #[test]
    fn huge_exponent_is_refused() {
        let mut other = GOLDEN.to_vec();
        other[270] = 1;
        assert!(DevicePublicKey::decode(&other).is_err());
    }

    #[test]
    fn truncated_page_is_refused() {
        assert!(matches!(
            DevicePublicKey::decode(&GOLDEN[..525]),
            Err(PageError::Truncated { missing: 1, .. })
        ));
    }

    #[test]
    fn other_spki_is_refused() {
        let mut other = SPKI.to_vec();
        other[14] ^= 1;
        assert_eq!(
            DevicePublicKey::from_spki(&other),
            Err(PublicKeyError::Encoding)
        );
        assert!(DevicePublicKey::from_spki(&SPKI[..SPKI.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn round_trips(mut modulus in any::<[u8; 32]>(), exponent in 1u64..u64::MAX / 2) {
            modulus[0] |= 0x80;
            modulus[31] |= 1;
            let modulus: [u8; 256] = modulus.repeat(8).try_into().unwrap();
            let exponent = (2 * exponent + 1).to_be_bytes();
            let key = DevicePublicKey::new(modulus, exponent).unwrap();
            prop_assert_eq!(&DevicePublicKey::decode(&key.encode()).unwrap(), &key);
            prop_assert_eq!(&DevicePublicKey::from_spki(&key.to_spki().unwrap()).unwrap(), &key);
        }
    }
}
