//! The data encryption status page and the next block encryption status page.

use super::{
    AlgorithmIndex, CheckMode, DecryptionMode, EncryptionMode, KadFormat, Kads, PageError, Scope,
    code::codes,
    reader::{Reader, bit, is_set, page},
};

/// What a drive is set to do.
///
/// ```text
/// byte 0-1    page code, 0020h
///      2-3    page length
///      4      I_T NEXUS SCOPE (7-5), KEY SCOPE (2-0)
///      5      ENCRYPTION MODE
///      6      DECRYPTION MODE
///      7      ALGORITHM INDEX
///      8-11   KEY INSTANCE COUNTER
///      12     PARAMETERS CONTROL (6-4), VCELB (3), CEEMS (2-1), RDMD (0)
///      13     KAD FORMAT
///      14-15  ASDK COUNT
///      16-23  reserved
///      24..   KAD descriptors
/// ```
///
/// Source: SSC-4, "Data Encryption Status page".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The scope that holds for this initiator.
    pub nexus_scope: Scope,
    /// The scope of the key in use.
    pub key_scope: Scope,
    /// What is done on writing.
    pub encryption: EncryptionMode,
    /// What is done on reading.
    pub decryption: DecryptionMode,
    /// The algorithm in use.
    pub algorithm: AlgorithmIndex,
    /// Grows with every key that the drive accepts, which makes it a confirmation.
    pub key_instance: u32,
    /// Who may set the parameters.
    pub control: ParametersControl,
    /// VCELB: the volume holds encrypted blocks.
    pub volume_encrypted: bool,
    /// CEEMS: what is checked on reading.
    pub check_mode: CheckMode,
    /// RDMD: blocks are written so that they may not be read raw.
    pub raw_disabled: bool,
    /// How the descriptors are to be read.
    pub kad_format: KadFormat,
    /// How many supplemental decryption keys are set.
    pub supplemental_keys: u16,
    /// What the key in use was given as descriptors.
    pub kads: Kads,
}

impl Status {
    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let Self {
            nexus_scope,
            key_scope,
            encryption,
            decryption,
            algorithm,
            key_instance,
            control,
            volume_encrypted,
            check_mode,
            raw_disabled,
            kad_format,
            supplemental_keys,
            kads,
        } = self;
        let mut body = vec![
            nexus_scope.code() << 5 | key_scope.code(),
            encryption.code(),
            decryption.code(),
            algorithm.0,
        ];
        body.extend(key_instance.to_be_bytes());
        body.push(
            control.code() << 4
                | bit(*volume_encrypted, 3)
                | check_mode.code() << 1
                | bit(*raw_disabled, 0),
        );
        body.push(kad_format.code());
        body.extend(supplemental_keys.to_be_bytes());
        body.extend([0; 8]);
        body.extend(kads.encode());
        page(STATUS_CODE, &body)
    }

    /// Reads the page.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page, or a field has a code without meaning.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut page = Reader::page("data encryption status page", STATUS_CODE, bytes)?;
        let [scopes, encryption, decryption, algorithm] = page.array()?;
        let key_instance = page.u32()?;
        let [control, kad_format] = page.array()?;
        let supplemental_keys = page.u16()?;
        page.skip(8)?;
        Ok(Self {
            nexus_scope: Scope::from_code(scopes >> 5)?,
            key_scope: Scope::from_code(scopes & 7)?,
            encryption: EncryptionMode::from_code(encryption)?,
            decryption: DecryptionMode::from_code(decryption)?,
            algorithm: AlgorithmIndex(algorithm),
            key_instance,
            control: ParametersControl::from_code(control >> 4 & 7)?,
            volume_encrypted: is_set(control, 3),
            check_mode: CheckMode::from_code(control >> 1 & 3)?,
            raw_disabled: is_set(control, 0),
            kad_format: KadFormat::from_code(kad_format)?,
            supplemental_keys,
            kads: Kads::decode(page)?,
        })
    }
}

/// What the block at the tape's position is, and what it says of its key.
///
/// ```text
/// byte 0-1   page code, 0021h
///      2-3   page length
///      4-11  LOGICAL OBJECT NUMBER
///      12    COMPRESSION STATUS (7-4), ENCRYPTION STATUS (3-0)
///      13    ALGORITHM INDEX
///      14    EMES (1), RDMDS (0)
///      15    KAD FORMAT
///      16..  KAD descriptors
/// ```
///
/// This is how the name of a cartridge's key is read without the key. COMPRESSION STATUS is left
/// out: drives report 0.
///
/// Source: SSC-4, "Next Block Encryption Status page".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextBlock {
    /// The number of the block.
    pub position: u64,
    /// What it is.
    pub encryption: EncryptionStatus,
    /// The algorithm that it is encrypted with.
    pub algorithm: AlgorithmIndex,
    /// EMES: it was encrypted outside the drive.
    pub external: bool,
    /// RDMDS: it may not be read raw.
    pub raw_disabled: bool,
    /// How the descriptors are to be read.
    pub kad_format: KadFormat,
    /// What it says of its key.
    pub kads: Kads,
}

impl NextBlock {
    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let Self {
            position,
            encryption,
            algorithm,
            external,
            raw_disabled,
            kad_format,
            kads,
        } = self;
        let mut body = position.to_be_bytes().to_vec();
        body.extend([
            encryption.code(),
            algorithm.0,
            bit(*external, 1) | bit(*raw_disabled, 0),
            kad_format.code(),
        ]);
        body.extend(kads.encode());
        page(NEXT_BLOCK_CODE, &body)
    }

    /// Reads the page.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page, or a field has a code without meaning.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut page = Reader::page("next block encryption status page", NEXT_BLOCK_CODE, bytes)?;
        let position = page.u64()?;
        let [status, algorithm, flags, kad_format] = page.array()?;
        Ok(Self {
            position,
            encryption: EncryptionStatus::from_code(status & 0x0f)?,
            algorithm: AlgorithmIndex(algorithm),
            external: is_set(flags, 1),
            raw_disabled: is_set(flags, 0),
            kad_format: KadFormat::from_code(kad_format)?,
            kads: Kads::decode(page)?,
        })
    }
}

codes! {
    /// Who may set the encryption parameters (PARAMETERS CONTROL).
    ParametersControl, "PARAMETERS CONTROL" {
        /// Nothing is said.
        NotReported = 0,
        /// Anybody: a host may.
        NotExclusive = 1,
        /// Hosts, and nobody else.
        Host = 2,
        /// The library, through its own port, and nobody else.
        Library = 3,
        /// A management interface, and nobody else.
        Management = 4,
    }
}

codes! {
    /// What a block is (ENCRYPTION STATUS).
    EncryptionStatus, "ENCRYPTION STATUS" {
        /// The drive cannot tell.
        Incapable = 0,
        /// The drive cannot tell now.
        NotNow = 1,
        /// Not a block: a filemark, or the end.
        NotABlock = 2,
        /// Not encrypted.
        NotEncrypted = 3,
        /// Encrypted with an algorithm that the drive does not have.
        UnsupportedAlgorithm = 4,
        /// Encrypted, and the drive has the key.
        Decryptable = 5,
        /// Encrypted, and the drive lacks the key or has another.
        KeyMissing = 6,
    }
}

const STATUS_CODE: u16 = 0x0020;
const NEXT_BLOCK_CODE: u16 = 0x0021;

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;
    use crate::t10::{Authenticated, Kad, KadType, kad::tests::kads_reported};

    const STATUS: &[u8] = include_bytes!("../../integration/golden/t10/spin-0020.bin");
    const NEXT: &[u8] = include_bytes!("../../integration/golden/t10/spin-0021.bin");
    const DKI: &[u8] = b"EKM\x00\x01\x02\x03\x04\x05\x06\x07\x08";

    fn akad(authenticated: Authenticated) -> Kads {
        let kad = Kad::reported(KadType::Authenticated, authenticated, DKI.to_vec()).unwrap();
        Kads::new(vec![kad]).unwrap()
    }

    #[test]
    fn status_of_a_drive_with_a_key() {
        let status = Status {
            nexus_scope: Scope::AllNexus,
            key_scope: Scope::AllNexus,
            encryption: EncryptionMode::Encrypt,
            decryption: DecryptionMode::Mixed,
            algorithm: AlgorithmIndex(1),
            key_instance: 7,
            control: ParametersControl::NotExclusive,
            volume_encrypted: true,
            check_mode: CheckMode::NoCheck,
            raw_disabled: true,
            kad_format: KadFormat::Unspecified,
            supplemental_keys: 0,
            kads: akad(Authenticated::NotReported),
        };
        assert_eq!(status.encode(), STATUS);
        assert_eq!(Status::decode(STATUS), Ok(status));
    }

    #[test]
    fn next_block_whose_key_is_missing_names_it() {
        let next = NextBlock {
            position: 3,
            encryption: EncryptionStatus::KeyMissing,
            algorithm: AlgorithmIndex(1),
            external: false,
            raw_disabled: true,
            kad_format: KadFormat::Unspecified,
            kads: akad(Authenticated::NotAttempted),
        };
        assert_eq!(next.encode(), NEXT);
        let read = NextBlock::decode(NEXT).unwrap();
        assert!(read.kads.of(KadType::Authenticated).eq([DKI]));
        assert_eq!(read, next);
    }

    #[test]
    fn truncated_pages_are_refused() {
        assert!(matches!(
            Status::decode(&STATUS[..STATUS.len() - 1]),
            Err(PageError::Truncated { missing: 1, .. })
        ));
        assert!(matches!(
            NextBlock::decode(&NEXT[..NEXT.len() - 1]),
            Err(PageError::Truncated { missing: 1, .. })
        ));
    }

    #[test]
    fn unknown_control_is_refused() {
        let mut page = STATUS.to_vec();
        page[12] = 0x70;
        assert!(matches!(
            Status::decode(&page),
            Err(PageError::Code { got: 7, .. })
        ));
    }

    #[test]
    fn unknown_encryption_status_is_refused() {
        let mut page = NEXT.to_vec();
        page[12] = 0x0f;
        assert!(matches!(
            NextBlock::decode(&page),
            Err(PageError::Code { got: 15, .. })
        ));
    }

    #[test]
    fn compression_status_and_reserved_bytes_are_ignored() {
        let mut page = NEXT.to_vec();
        page[12] |= 0x50;
        assert_eq!(NextBlock::decode(&page), NextBlock::decode(NEXT));
        let mut page = STATUS.to_vec();
        page[16] = 0xff;
        assert_eq!(Status::decode(&page), Status::decode(STATUS));
    }

    prop_compose! {
        fn any_status()(
            (nexus_scope, key_scope) in (select(Scope::ALL), select(Scope::ALL)),
            encryption in select(EncryptionMode::ALL),
            decryption in select(DecryptionMode::ALL),
            (algorithm, key_instance, supplemental_keys) in any::<(u8, u32, u16)>(),
            control in select(ParametersControl::ALL),
            [volume_encrypted, raw_disabled] in any::<[bool; 2]>(),
            check_mode in select(CheckMode::ALL),
            kad_format in select(KadFormat::ALL),
            kads in kads_reported(),
        ) -> Status {
            Status {
                nexus_scope, key_scope, encryption, decryption,
                algorithm: AlgorithmIndex(algorithm),
                key_instance, control, volume_encrypted, check_mode, raw_disabled, kad_format,
                supplemental_keys, kads,
            }
        }
    }

    prop_compose! {
        fn any_next_block()(
            position: u64,
            encryption in select(EncryptionStatus::ALL),
            algorithm: u8,
            [external, raw_disabled] in any::<[bool; 2]>(),
            kad_format in select(KadFormat::ALL),
            kads in kads_reported(),
        ) -> NextBlock {
            NextBlock {
                position, encryption, algorithm: AlgorithmIndex(algorithm), external, raw_disabled,
                kad_format, kads,
            }
        }
    }

    proptest! {
        #[test]
        fn status_round_trips(status in any_status()) {
            prop_assert_eq!(Status::decode(&status.encode()), Ok(status));
        }

        #[test]
        fn next_block_round_trips(next in any_next_block()) {
            prop_assert_eq!(NextBlock::decode(&next.encode()), Ok(next));
        }
    }
}
