//! What a drive says of one of its encryption algorithms.

use std::fmt;

use super::{
    PageError,
    code::codes,
    reader::{Reader, bit, is_set},
};

/// One algorithm descriptor of the capabilities page.
///
/// ```text
/// byte 0      ALGORITHM INDEX
///      1      reserved
///      2-3    descriptor length, 0014h
///      4      AVFMV (7), SDK_C (6), MAC_C (5), DED_C (4), DECRYPT_C (3-2), ENCRYPT_C (1-0)
///      5      AVFCLP (7-6), NONCE_C (5-4), KADF_C (3), VCELB_C (2), UKADF (1), AKADF (0)
///      6-7    MAXIMUM U-KAD BYTES
///      8-9    MAXIMUM A-KAD BYTES
///      10-11  KEY SIZE, in bytes
///      12     DKAD_C (7-6), EEMC_C (5-4), RDMC_C (3-1), EAREM (0)
///      13     MAXIMUM EEDK COUNT (3-0)
///      14-15  MSDK COUNT
///      16-17  MAXIMUM EEDK SIZE, in bytes
///      18-19  reserved
///      20-23  SECURITY ALGORITHM CODE
/// ```
///
/// Source: SSC-4, "Data Encryption Capabilities page", data encryption algorithm descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm {
    /// By which the set data encryption page names it.
    pub index: AlgorithmIndex,
    /// AVFMV: it can be used with the mounted volume.
    pub valid_for_volume: bool,
    /// SDK_C: supplemental decryption keys.
    pub supplemental_keys: bool,
    /// MAC_C: a message authentication code in every block.
    pub authenticates: bool,
    /// DED_C: the drive tells encrypted blocks from others on reading.
    pub distinguishes: bool,
    /// DECRYPT_C.
    pub decrypts: CryptoSupport,
    /// ENCRYPT_C.
    pub encrypts: CryptoSupport,
    /// AVFCLP: whether it can be used where the tape stands.
    pub valid_at_position: PositionSupport,
    /// NONCE_C.
    pub nonce: NonceSupport,
    /// KADF_C: takes the KAD FORMAT field.
    pub kad_format: bool,
    /// VCELB_C: tells whether a volume holds encrypted blocks.
    pub volume_status: bool,
    /// UKADF: the U-KAD has exactly its maximum length.
    pub ukad_fixed: bool,
    /// AKADF: the A-KAD has exactly its maximum length.
    pub akad_fixed: bool,
    /// Longest U-KAD, in bytes.
    pub max_ukad_len: u16,
    /// Longest A-KAD, in bytes.
    pub max_akad_len: u16,
    /// Length of a key, in bytes.
    pub key_len: u16,
    /// DKAD_C: descriptors for decryption.
    pub decryption_kad: KadSupport,
    /// EEMC_C: external encryption mode.
    pub external_mode: ExternalModeSupport,
    /// RDMC_C: raw decryption mode.
    pub raw_mode: RawModeSupport,
    /// EAREM: encryption algorithm records the encryption mode of each block.
    pub records_mode: bool,
    /// How many EEDKs the drive can keep on the medium, 0 to 15.
    pub max_eedks: u8,
    /// How many supplemental decryption keys it holds.
    pub max_supplemental_keys: u16,
    /// The longest EEDK that it can keep, in bytes.
    pub max_eedk_len: u16,
    /// What the algorithm is.
    pub algorithm: SecurityAlgorithm,
}

impl Algorithm {
    pub(super) fn decode(page: &mut Reader<'_>) -> Result<Self, PageError> {
        let index = AlgorithmIndex(page.u8()?);
        page.skip(1)?;
        let len = page.u16()?;
        if len != DESCRIPTOR_LEN {
            return Err(PageError::Length {
                field: "an algorithm descriptor",
                expected: "20",
                got: len.into(),
            });
        }
        let [crypto, kads] = page.array()?;
        let [max_ukad_len, max_akad_len, key_len] = [page.u16()?, page.u16()?, page.u16()?];
        let [modes, eedks] = page.array()?;
        let [max_supplemental_keys, max_eedk_len] = [page.u16()?, page.u16()?];
        page.skip(2)?;
        Ok(Self {
            index,
            valid_for_volume: is_set(crypto, 7),
            supplemental_keys: is_set(crypto, 6),
            authenticates: is_set(crypto, 5),
            distinguishes: is_set(crypto, 4),
            decrypts: CryptoSupport::from_code(crypto >> 2 & 3)?,
            encrypts: CryptoSupport::from_code(crypto & 3)?,
            valid_at_position: PositionSupport::from_code(kads >> 6)?,
            nonce: NonceSupport::from_code(kads >> 4 & 3)?,
            kad_format: is_set(kads, 3),
            volume_status: is_set(kads, 2),
            ukad_fixed: is_set(kads, 1),
            akad_fixed: is_set(kads, 0),
            max_ukad_len,
            max_akad_len,
            key_len,
            decryption_kad: KadSupport::from_code(modes >> 6)?,
            external_mode: ExternalModeSupport::from_code(modes >> 4 & 3)?,
            raw_mode: RawModeSupport::from_code(modes >> 1 & 7)?,
            records_mode: is_set(modes, 0),
            max_eedks: eedks & 0x0f,
            max_supplemental_keys,
            max_eedk_len,
            algorithm: SecurityAlgorithm(page.u32()?),
        })
    }

    pub(super) fn encode_into(&self, page: &mut Vec<u8>) {
        let Self {
            index,
            valid_for_volume,
            supplemental_keys,
            authenticates,
            distinguishes,
            decrypts,
            encrypts,
            valid_at_position,
            nonce,
            kad_format,
            volume_status,
            ukad_fixed,
            akad_fixed,
            max_ukad_len,
            max_akad_len,
            key_len,
            decryption_kad,
            external_mode,
            raw_mode,
            records_mode,
            max_eedks,
            max_supplemental_keys,
            max_eedk_len,
            algorithm,
        } = *self;
        page.extend([index.0, 0]);
        page.extend(DESCRIPTOR_LEN.to_be_bytes());
        page.push(
            bit(valid_for_volume, 7)
                | bit(supplemental_keys, 6)
                | bit(authenticates, 5)
                | bit(distinguishes, 4)
                | decrypts.code() << 2
                | encrypts.code(),
        );
        page.push(
            valid_at_position.code() << 6
                | nonce.code() << 4
                | bit(kad_format, 3)
                | bit(volume_status, 2)
                | bit(ukad_fixed, 1)
                | bit(akad_fixed, 0),
        );
        for len in [max_ukad_len, max_akad_len, key_len] {
            page.extend(len.to_be_bytes());
        }
        page.push(
            decryption_kad.code() << 6
                | external_mode.code() << 4
                | raw_mode.code() << 1
                | bit(records_mode, 0),
        );
        page.push(max_eedks & 0x0f);
        page.extend(max_supplemental_keys.to_be_bytes());
        page.extend(max_eedk_len.to_be_bytes());
        page.extend([0; 2]);
        page.extend(algorithm.0.to_be_bytes());
    }
}

/// The index by which pages name an algorithm of this drive. It differs between vendors, so it is
/// read from the capabilities and never assumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AlgorithmIndex(pub u8);

/// A SECURITY ALGORITHM CODE of SFSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecurityAlgorithm(pub u32);

impl SecurityAlgorithm {
    /// AES-GCM with a 16-byte authentication code; with a key of 32 bytes, AES-256-GCM.
    pub const AES_GCM_128: Self = Self(0x0001_0014);
}

impl fmt::Display for SecurityAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0x0001_000c => f.write_str("AES-CBC-HMAC-SHA-1"),
            0x0001_0010 => f.write_str("AES-CCM-128"),
            0x0001_0014 => f.write_str("AES-GCM-128"),
            0x0001_0016 => f.write_str("AES-XTS-HMAC-SHA-512"),
            code @ 0x8001_0400..=0x8001_ffff => write!(f, "vendor algorithm {code:08X}h"),
            code => write!(f, "algorithm {code:08X}h"),
        }
    }
}

codes! {
    /// How a drive encrypts or decrypts (ENCRYPT_C, DECRYPT_C).
    CryptoSupport, "ENCRYPT_C or DECRYPT_C" {
        /// Not at all.
        None = 0,
        /// In software.
        Software = 1,
        /// In hardware.
        Hardware = 2,
        /// It could, but somebody else controls it.
        ExternalControl = 3,
    }
}

codes! {
    /// Whether an algorithm is valid at the position of the tape (AVFCLP).
    PositionSupport, "AVFCLP" {
        /// Position unknown, or nothing is said.
        NotApplicable = 0,
        /// Not valid there.
        NotValid = 1,
        /// Valid there.
        Valid = 2,
    }
}

codes! {
    /// Who makes the nonce (NONCE_C).
    NonceSupport, "NONCE_C" {
        /// Nothing is said.
        NotReported = 0,
        /// The drive.
        Drive = 1,
        /// The application must.
        Application = 2,
        /// The application may.
        Either = 3,
    }
}

codes! {
    /// What a drive does with descriptors for decryption (DKAD_C).
    KadSupport, "DKAD_C" {
        /// Nothing is said.
        NotReported = 0,
        /// It needs them.
        Required = 1,
        /// It refuses them.
        NotAllowed = 2,
        /// It takes them.
        Allowed = 3,
    }
}

codes! {
    /// Whether a drive writes blocks that were encrypted elsewhere (EEMC_C).
    ExternalModeSupport, "EEMC_C" {
        /// Nothing is said.
        NotReported = 0,
        /// It does not.
        NotAllowed = 1,
        /// It does.
        Allowed = 2,
    }
}

codes! {
    /// Whether a drive reads blocks without decrypting them (RDMC_C).
    RawModeSupport, "RDMC_C" {
        /// Nothing is said.
        NotReported = 0,
        /// It does not.
        NotAllowed = 1,
        /// It does where the block was marked so; not marked by default.
        DisabledByDefault = 4,
        /// It does where the block was marked so; marked by default.
        EnabledByDefault = 5,
        /// Blocks are always marked against it.
        AlwaysDisabled = 6,
        /// Blocks are always marked for it.
        AlwaysEnabled = 7,
    }
}

const DESCRIPTOR_LEN: u16 = 20;
