//! The data key identifier.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Names a data key: 12 bytes, 3 of them ASCII and 9 random.
///
/// It is what a cartridge shows in clear (the A-KAD of its blocks), so it says nothing about the
/// key. Written as the 3 characters and 18 hexadecimal digits, `EKM00010203040506ABFF`.
///
/// ```text
/// byte  0      3                                   12
///       | "EKM" | random                            |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DataKeyId([u8; Self::LEN]);

impl DataKeyId {
    /// Its length, in bytes: the A-KAD of the drives that take the shortest one.
    pub const LEN: usize = 12;

    /// The first three bytes of those that we make.
    pub const PREFIX: [u8; 3] = *b"EKM";

    /// A new identifier from nine random bytes.
    pub fn from_random(random: [u8; 9]) -> Self {
        let [p0, p1, p2] = Self::PREFIX;
        let [r0, r1, r2, r3, r4, r5, r6, r7, r8] = random;
        Self([p0, p1, p2, r0, r1, r2, r3, r4, r5, r6, r7, r8])
    }

    /// The 12 bytes.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl TryFrom<&[u8]> for DataKeyId {
    type Error = DataKeyIdError;

    fn try_from(given: &[u8]) -> Result<Self, DataKeyIdError> {
        let bytes: [u8; Self::LEN] = given.try_into().map_err(|_| DataKeyIdError::WrongLength {
            expected: Self::LEN,
            got: given.len(),
        })?;
        let (prefix, _) = bytes.split_at(Self::PREFIX.len());
        if !prefix.iter().all(u8::is_ascii_graphic) {
            return Err(DataKeyIdError::Prefix);
        }
        Ok(Self(bytes))
    }
}

impl FromStr for DataKeyId {
    type Err = DataKeyIdError;

    fn from_str(given: &str) -> Result<Self, DataKeyIdError> {
        let text = || DataKeyIdError::Text {
            got: given.to_owned(),
        };
        let (prefix, digits) = given
            .split_at_checked(Self::PREFIX.len())
            .ok_or_else(text)?;
        let mut bytes = prefix.as_bytes().to_vec();
        bytes.extend(hex::decode(digits).map_err(|_| text())?);
        Self::try_from(bytes.as_slice()).map_err(|_| text())
    }
}

impl TryFrom<String> for DataKeyId {
    type Error = DataKeyIdError;

    fn try_from(given: String) -> Result<Self, DataKeyIdError> {
        given.parse()
    }
}

impl From<DataKeyId> for String {
    fn from(dki: DataKeyId) -> Self {
        dki.to_string()
    }
}

impl fmt::Display for DataKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, random) = self.0.split_at(Self::PREFIX.len());
        f.pad(&format!(
            "{}{}",
            String::from_utf8_lossy(prefix),
            hex::encode_upper(random)
        ))
    }
}

/// Why something is no data key identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataKeyIdError {
    /// Not 12 bytes.
    #[error("a data key identifier has {expected} bytes, got {got}")]
    WrongLength {
        /// [`DataKeyId::LEN`].
        expected: usize,
        /// The length of what was given.
        got: usize,
    },
    /// The first three bytes are not printable ASCII.
    #[error("a data key identifier begins with 3 printable ASCII characters")]
    Prefix,
    /// Not its written form.
    #[error(
        "expected a data key identifier, 3 ASCII characters and 18 hexadecimal digits, got {got:?}"
    )]
    Text {
        /// What was given.
        got: String,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn is_written_as_three_characters_and_eighteen_digits() {
        let dki = DataKeyId::from_random([0, 1, 2, 3, 4, 5, 6, 0xab, 0xff]);
        assert_eq!(dki.to_string(), "EKM00010203040506ABFF");
        assert_eq!("EKM00010203040506abff".parse(), Ok(dki));
        assert_eq!(dki.as_bytes(), b"EKM\x00\x01\x02\x03\x04\x05\x06\xab\xff");
    }

    #[test]
    fn wrong_length_is_refused() {
        assert_eq!(
            DataKeyId::try_from(&[b'E'; 11][..]),
            Err(DataKeyIdError::WrongLength {
                expected: 12,
                got: 11
            })
        );
    }

    #[test]
    fn unprintable_prefix_is_refused() {
        assert_eq!(
            DataKeyId::try_from(&[0; 12][..]),
            Err(DataKeyIdError::Prefix)
        );
    }

    #[test]
    fn other_texts_are_refused() {
        for given in [
            "",
            "EK",
            "EKM",
            "EKM00",
            "EKMzz010203040506ABFF",
            "ÉEKM00010203040506ABF",
        ] {
            assert!(given.parse::<DataKeyId>().is_err(), "{given}");
        }
    }

    proptest! {
        #[test]
        fn round_trips(random: [u8; 9]) {
            let dki = DataKeyId::from_random(random);
            prop_assert_eq!(dki.to_string().parse(), Ok(dki));
            prop_assert_eq!(DataKeyId::try_from(&dki.as_bytes()[..]), Ok(dki));
        }
    }
}
