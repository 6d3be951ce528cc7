//! Who a drive is: its serial number, its world wide name, and what it signs of itself.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The serial number of a drive: 12 characters, digits or upper-case letters.
///
/// Lower case is folded to upper. A serial number of 10 characters, as it is printed on the drive,
/// gets the two leading zeros that the drive itself reports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DriveSerial(String);

impl DriveSerial {
    /// Its length, in characters.
    pub const CHARS: usize = 12;

    /// The 12 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DriveSerial {
    type Err = DriveSerialError;

    fn from_str(given: &str) -> Result<Self, DriveSerialError> {
        let mut serial = given.to_ascii_uppercase();
        if serial.len() == Self::CHARS - 2 {
            serial.insert_str(0, "00");
        }
        let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
        if serial.len() != Self::CHARS || !serial.chars().all(allowed) {
            return Err(DriveSerialError {
                got: given.to_owned(),
            });
        }
        Ok(Self(serial))
    }
}

impl TryFrom<String> for DriveSerial {
    type Error = DriveSerialError;

    fn try_from(given: String) -> Result<Self, DriveSerialError> {
        given.parse()
    }
}

impl From<DriveSerial> for String {
    fn from(serial: DriveSerial) -> Self {
        serial.0
    }
}

impl fmt::Display for DriveSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that is no drive serial number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a drive serial number, 12 characters from A-Z 0-9 (or 10, which get two leading \
     zeros), got {got:?}"
)]
pub struct DriveSerialError {
    /// What was given.
    pub got: String,
}

/// The world wide name of a drive: the 8-byte NAA of its logical unit, from VPD page 83h.
///
/// Written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Wwn([u8; 8]);

impl Wwn {
    /// The 8 bytes.
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl From<[u8; 8]> for Wwn {
    fn from(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Wwn {
    type Err = WwnError;

    fn from_str(given: &str) -> Result<Self, WwnError> {
        let mut bytes = [0; 8];
        hex::decode_to_slice(given, &mut bytes).map_err(|_| WwnError {
            got: given.to_owned(),
        })?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Wwn {
    type Error = WwnError;

    fn try_from(given: String) -> Result<Self, WwnError> {
        given.parse()
    }
}

impl From<Wwn> for String {
    fn from(wwn: Wwn) -> Self {
        wwn.to_string()
    }
}

impl fmt::Display for Wwn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode_upper(self.0))
    }
}

/// A text that is no world wide name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a world wide name, 16 hexadecimal digits, got {got:?}")]
pub struct WwnError {
    /// What was given.
    pub got: String,
}

/// The longest challenge that a drive signs, in bytes.
pub const MAX_CHALLENGE_LEN: usize = 256;

/// What a drive signs with its certificate key to vouch for a session key.
///
/// ```text
/// "ekm drive session key v1" 00h | challenge length, 2 bytes | challenge
/// | serial number, 12 characters | SubjectPublicKeyInfo, DER, to the end
/// ```
///
/// The first field keeps the signature from meaning anything elsewhere; the challenge is the
/// server's, so that an old answer proves nothing.
///
/// # Errors
///
/// [`ChallengeError`] where the challenge is empty or longer than [`MAX_CHALLENGE_LEN`].
pub fn session_key_message(
    challenge: &[u8],
    serial: &DriveSerial,
    spki: &[u8],
) -> Result<Vec<u8>, ChallengeError> {
    let refused = ChallengeError {
        limit: MAX_CHALLENGE_LEN,
        got: challenge.len(),
    };
    if challenge.is_empty() || challenge.len() > MAX_CHALLENGE_LEN {
        return Err(refused);
    }
    let challenge_len = u16::try_from(challenge.len()).map_err(|_| refused)?;
    Ok([
        SESSION_KEY_DOMAIN,
        &challenge_len.to_be_bytes(),
        challenge,
        serial.as_str().as_bytes(),
        spki,
    ]
    .concat())
}

/// A challenge that no drive signs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a challenge of 1 to {limit} bytes, got {got}")]
pub struct ChallengeError {
    /// [`MAX_CHALLENGE_LEN`].
    pub limit: usize,
    /// The length of what was given, in bytes.
    pub got: usize,
}

const SESSION_KEY_DOMAIN: &[u8] = b"ekm drive session key v1\0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_serial_gets_two_leading_zeros() {
        for (given, serial) in [
            ("1013000123", "001013000123"),
            ("hu1012345a", "00HU1012345A"),
            ("001013000123", "001013000123"),
        ] {
            assert_eq!(given.parse::<DriveSerial>().unwrap().as_str(), serial);
        }
    }

    #[test]
    fn other_serials_are_refused_with_the_rule() {
        for given in [
            "",
            "123",
            "12345678901",
            "1234567890123",
            "12345-789012",
            "ÄÖÜÄÖ",
        ] {
            let error = given.parse::<DriveSerial>().unwrap_err();
            assert!(error.to_string().contains("12 characters"), "{error}");
        }
        assert!(serde_json::from_str::<DriveSerial>("\"x\"").is_err());
    }

    #[test]
    fn wwn_is_sixteen_digits() {
        let wwn: Wwn = "500104f000abcdef".parse().unwrap();
        assert_eq!(wwn.to_string(), "500104F000ABCDEF");
        assert_eq!(wwn.as_bytes(), b"\x50\x01\x04\xf0\x00\xab\xcd\xef");
        for given in [
            "",
            "500104f000abcde",
            "500104f000abcdeff",
            "500104f000abcdeg",
        ] {
            assert!(given.parse::<Wwn>().is_err(), "{given}");
        }
    }

    #[test]
    fn session_key_message_separates_its_fields() {
        let serial = "001013000123".parse().unwrap();
        assert_eq!(
            session_key_message(b"chal", &serial, b"spki").unwrap(),
            b"ekm drive session key v1\0\x00\x04chal001013000123spki"
        );
    }

    #[test]
    fn empty_and_long_challenges_are_refused() {
        let serial = "001013000123".parse().unwrap();
        for got in [0, 257] {
            assert_eq!(
                session_key_message(&vec![1; got], &serial, b""),
                Err(ChallengeError { limit: 256, got })
            );
        }
    }
}
