//! Sense data: why a drive refuses a command.

mod ibm;
mod table;

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

    /// Whether sense data tells of an earlier command than the one it came with (71h, 73h).
    pub fn is_deferred(bytes: &[u8]) -> bool {
        bytes
            .first()
            .is_some_and(|code| matches!(code & 0x7f, 0x71 | 0x73))
    }

    /// What the codes mean, where they have to do with encryption or with our commands.
    pub fn meaning(&self) -> Option<&'static str> {
        table::find(self.asc, self.ascq).map(|code| code.meaning)
    }

    /// What who runs the drive can do, where there is something.
    pub fn advice(&self) -> Option<&'static str> {
        table::find(self.asc, self.ascq).and_then(|code| code.advice)
    }

    /// Whether the drive does not have the command, or not what it asks for.
    pub fn is_unsupported(&self) -> bool {
        self.key == SenseKey::IllegalRequest
            && matches!(
                (self.asc, self.ascq),
                (0x20 | 0x24 | 0x25, 0x00) | (0x26, 0x00..=0x02)
            )
    }

    /// Whether a library, a manager or IBM's own key path has the encryption of this drive.
    pub fn is_managed_elsewhere(&self) -> bool {
        matches!(
            (self.asc, self.ascq),
            (0x74, 0x0d | 0x21 | 0x61..=0x6f) | (0xee | 0xef, _)
        )
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
    fn a_drive_of_a_library_says_the_way_out() {
        let advice = Sense::CONFIGURATION_PREVENTED.advice().unwrap();
        assert!(advice.contains("application-managed"), "{advice}");
        assert!(Sense::CONFIGURATION_PREVENTED.is_managed_elsewhere());
        for key in [SenseKey::UnitAttention, SenseKey::DataProtect] {
            let required = Sense::new(key, 0xef, 0x10);
            assert!(
                required
                    .to_string()
                    .contains("IBM: encryption key required")
            );
            assert!(
                required
                    .advice()
                    .unwrap()
                    .contains("system- or library-managed")
            );
            assert!(required.is_managed_elsewhere());
        }
        assert!(!Sense::INCORRECT_KEY.is_managed_elsewhere());
    }

    #[test]
    fn deferred_errors_are_told_from_current_ones() {
        assert!(Sense::is_deferred(&[0xf1]) && Sense::is_deferred(&[0x73]));
        assert!(!Sense::is_deferred(&[0x70]) && !Sense::is_deferred(&[]));
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
