//! Sense data: why a drive refuses a command.

use std::fmt;

use super::{PageError, code::codes, reader::Reader};

/// Sense key, additional sense code and its qualifier.
///
/// Source: SPC-4, "Sense data" (fixed and descriptor format) and "ASC and ASCQ assignments";
/// codes EExxh and EFxxh as IBM's Linux driver names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sense {
    /// The sense key.
    pub key: SenseKey,
    /// ADDITIONAL SENSE CODE.
    pub asc: u8,
    /// ADDITIONAL SENSE CODE QUALIFIER.
    pub ascq: u8,
}

impl Sense {
    /// A command that the drive does not have.
    pub const INVALID_COMMAND: Self = Self::new(SenseKey::IllegalRequest, 0x20, 0x00);
    /// A CDB that asks for something the drive does not have.
    pub const INVALID_FIELD_IN_CDB: Self = Self::new(SenseKey::IllegalRequest, 0x24, 0x00);
    /// A page for the drive that is not as it must be.
    pub const INVALID_FIELD_IN_PARAMETER_LIST: Self =
        Self::new(SenseKey::IllegalRequest, 0x26, 0x00);
    /// A page for the drive that is shorter than it says.
    pub const PARAMETER_LIST_LENGTH: Self = Self::new(SenseKey::IllegalRequest, 0x1a, 0x00);
    /// No cartridge.
    pub const MEDIUM_NOT_PRESENT: Self = Self::new(SenseKey::NotReady, 0x3a, 0x00);
    /// An encrypted block, and no key.
    pub const UNABLE_TO_DECRYPT: Self = Self::new(SenseKey::DataProtect, 0x74, 0x01);
    /// An encrypted block, and another key.
    pub const INCORRECT_KEY: Self = Self::new(SenseKey::DataProtect, 0x74, 0x03);
    /// An encrypted block that has been changed.
    pub const INTEGRITY_FAILED: Self = Self::new(SenseKey::MediumError, 0x74, 0x04);
    /// A wrapped key that the drive cannot unwrap.
    pub const UNABLE_TO_DECRYPT_PARAMETER_LIST: Self =
        Self::new(SenseKey::IllegalRequest, 0x74, 0x0c);
    /// A host may not configure encryption.
    pub const CONFIGURATION_PREVENTED: Self = Self::new(SenseKey::IllegalRequest, 0x74, 0x21);
    /// The drive itself fails.
    pub const INTERNAL_FAILURE: Self = Self::new(SenseKey::HardwareError, 0x44, 0x00);

    /// Sense data of these codes.
    pub const fn new(key: SenseKey, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq }
    }

    /// Reads sense data, in fixed (70h, 71h) or descriptor (72h, 73h) format.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is neither, or too short to hold the codes.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut sense = Reader::new("sense data", bytes);
        let (key, [asc, ascq]) = match sense.u8()? & 0x7f {
            0x70 | 0x71 => {
                sense.skip(1)?;
                let key = sense.u8()?;
                sense.skip(9)?;
                (key, sense.array()?)
            }
            0x72 | 0x73 => (sense.u8()?, sense.array()?),
            got => {
                return Err(PageError::Code {
                    field: "RESPONSE CODE",
                    got,
                });
            }
        };
        Ok(Self::new(SenseKey::from_code(key & 0x0f)?, asc, ascq))
    }

    /// Sense data in fixed format, current error, 18 bytes.
    pub fn encode(&self) -> [u8; 18] {
        let Self { key, asc, ascq } = *self;
        [
            0x70,
            0,
            key.code(),
            0,
            0,
            0,
            0,
            10,
            0,
            0,
            0,
            0,
            asc,
            ascq,
            0,
            0,
            0,
            0,
        ]
    }

    /// What the codes mean, where they have to do with encryption or with our commands.
    pub const fn meaning(&self) -> Option<&'static str> {
        Some(match (self.asc, self.ascq) {
            (0x1a, 0x00) => "parameter list length error",
            (0x20, 0x00) => "invalid command operation code",
            (0x24, 0x00) => "invalid field in CDB",
            (0x26, 0x00) => "invalid field in parameter list",
            (0x28, 0x00) => "medium may have changed",
            (0x29, 0x00) => "power on or reset",
            (0x2a, 0x0d) => "data encryption capabilities changed",
            (0x2a, 0x11) => "data encryption parameters changed by another host",
            (0x2a, 0x12) => "data encryption parameters changed by the drive",
            (0x2a, 0x13) => "data encryption key instance counter changed",
            (0x3a, 0x00) => "medium not present",
            (0x44, 0x00) => "internal target failure",
            (0x74, 0x00) => "security error",
            (0x74, 0x01) => "unable to decrypt data",
            (0x74, 0x02) => "unencrypted data found while decrypting",
            (0x74, 0x03) => "incorrect data encryption key",
            (0x74, 0x04) => "cryptographic integrity validation failed",
            (0x74, 0x05) => "error decrypting data",
            (0x74, 0x06) => "unknown signature verification key",
            (0x74, 0x07) => "encryption parameters not usable",
            (0x74, 0x08) => "digital signature validation failed",
            (0x74, 0x09) => "encryption mode mismatch on read",
            (0x74, 0x0a) => "encrypted block not enabled for raw read",
            (0x74, 0x0b) => "incorrect encryption parameters",
            (0x74, 0x0c) => "unable to decrypt parameter list: the drive cannot unwrap the key",
            (0x74, 0x21) => "data encryption configuration prevented by a library or manager",
            (0x74, 0x40) => "authentication failed",
            (0x74, 0x61) => "external key manager access error",
            (0x74, 0x62) => "external key manager error",
            (0x74, 0x63) => "external key not found",
            (0x74, 0x64) => "external request not authorized",
            (0x74, 0x6e) => "external data encryption control timed out",
            (0x74, 0x6f) => "external data encryption control failed",
            (0xee, 0x00) => "IBM: encryption key service not enabled",
            (0xee, 0x01) => "IBM: encryption key service not configured",
            (0xee, 0x02) => "IBM: encryption key service not available",
            (0xee, 0x0e) => "IBM: encryption key service timed out",
            (0xee, 0x0f) => "IBM: encryption key service failed",
            (0xee, 0x2c) => "IBM: key wrapping failed",
            (0xee, 0x31) => "IBM: key unknown to the key manager",
            (0xee, 0x60) => "IBM: encryption proxy command error",
            (0xef, 0x10) => "IBM: encryption key required",
            (0xef, 0x11) => "IBM: encryption key generation required",
            (0xef, 0x13) => "IBM: encryption key translation required",
            (0xef, 0x1a) => "IBM: encryption key optional",
            _ => return None,
        })
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, asc, ascq } = self;
        let meaning = self.meaning().unwrap_or("no meaning known to us");
        let code = key.code();
        write!(f, "{key}: {meaning} ({code:02X}/{asc:02X}/{ascq:02X})")
    }
}

impl std::error::Error for Sense {}

codes! {
    /// The sense key: what kind of trouble it is.
    SenseKey, "SENSE KEY" {
        /// None.
        NoSense = 0x0,
        /// Done, with an error that the drive mended.
        RecoveredError = 0x1,
        /// Not ready.
        NotReady = 0x2,
        /// The medium is bad.
        MediumError = 0x3,
        /// The drive is bad.
        HardwareError = 0x4,
        /// The command is wrong.
        IllegalRequest = 0x5,
        /// Something has changed since the last command.
        UnitAttention = 0x6,
        /// The block is protected.
        DataProtect = 0x7,
        /// Nothing is written there.
        BlankCheck = 0x8,
        /// A vendor's own.
        VendorSpecific = 0x9,
        /// A copy command was aborted.
        CopyAborted = 0xa,
        /// The command was aborted.
        AbortedCommand = 0xb,
        /// Reserved; obsolete.
        Reserved = 0xc,
        /// The end of the medium.
        VolumeOverflow = 0xd,
        /// Data do not compare.
        Miscompare = 0xe,
        /// Done, with something to tell.
        Completed = 0xf,
    }
}

impl fmt::Display for SenseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoSense => "no sense",
            Self::RecoveredError => "recovered error",
            Self::NotReady => "not ready",
            Self::MediumError => "medium error",
            Self::HardwareError => "hardware error",
            Self::IllegalRequest => "illegal request",
            Self::UnitAttention => "unit attention",
            Self::DataProtect => "data protect",
            Self::BlankCheck => "blank check",
            Self::VendorSpecific => "vendor specific",
            Self::CopyAborted => "copy aborted",
            Self::AbortedCommand => "aborted command",
            Self::Reserved => "reserved",
            Self::VolumeOverflow => "volume overflow",
            Self::Miscompare => "miscompare",
            Self::Completed => "completed",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    #[test]
    fn is_shown_in_words_and_codes() {
        assert_eq!(
            Sense::CONFIGURATION_PREVENTED.to_string(),
            "illegal request: data encryption configuration prevented by a library or manager \
             (05/74/21)"
        );
        assert_eq!(
            Sense::new(SenseKey::UnitAttention, 0x99, 1).to_string(),
            "unit attention: no meaning known to us (06/99/01)"
        );
    }

    #[test]
    fn fixed_and_descriptor_formats_are_read() {
        let fixed = b"\xf0\0\x05\0\0\0\0\x0a\0\0\0\0\x74\x0c\0\0\0\0";
        let descriptor = b"\x72\x05\x74\x0c\0\0\0\0";
        for bytes in [&fixed[..], descriptor] {
            assert_eq!(
                Sense::decode(bytes),
                Ok(Sense::UNABLE_TO_DECRYPT_PARAMETER_LIST)
            );
        }
    }

    #[test]
    fn truncated_sense_is_refused() {
        assert!(matches!(
            Sense::decode(b"\x70\0\x05\0\0\0\0\x0a\0\0\0\0\x74"),
            Err(PageError::Truncated { .. })
        ));
        assert!(Sense::decode(b"").is_err());
    }

    #[test]
    fn other_response_code_is_refused() {
        assert!(matches!(
            Sense::decode(&[0x7f; 18]),
            Err(PageError::Code { got: 0x7f, .. })
        ));
    }

    proptest! {
        #[test]
        fn round_trips(key in select(SenseKey::ALL), asc: u8, ascq: u8) {
            let sense = Sense::new(key, asc, ascq);
            prop_assert_eq!(Sense::decode(&sense.encode()), Ok(sense));
        }
    }
}
