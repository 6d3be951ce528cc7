//! The set data encryption page: what gives a drive its key.

use secrecy::{ExposeSecret, SecretBox, SecretSlice};

use super::{
    AlgorithmIndex, KadFormat, Kads, KeyFormat, PageError, WrappedKey,
    code::codes,
    reader::{Reader, bit, is_set, length},
};

/// Gives a drive a key and says what to do with it, or takes the key away.
///
/// ```text
/// byte 0-1    page code, 0010h
///      2-3    page length
///      4      SCOPE (7-5), LOCK (0)
///      5      CEEM (7-6), RDMC (5-4), SDK (3), CKOD (2), CKORP (1), CKORL (0)
///      6      ENCRYPTION MODE
///      7      DECRYPTION MODE
///      8      ALGORITHM INDEX
///      9      KEY FORMAT
///      10     KAD FORMAT
///      11-17  reserved
///      18-19  KEY LENGTH (n), of the whole KEY field
///      20..   KEY
///      20+n.. KAD descriptors, ascending, AUTHENTICATED 0
/// ```
///
/// Source: SSC-4, "Set Data Encryption page".
#[derive(Debug)]
pub struct SetDataEncryption {
    /// SCOPE: for whom it holds.
    pub scope: Scope,
    /// LOCK: pins this initiator to these parameters.
    pub lock: bool,
    /// CEEM: what is checked on reading.
    pub check_mode: CheckMode,
    /// RDMC: whether the blocks written may be read without decryption.
    pub raw_decryption: RawDecryption,
    /// SDK: a supplemental decryption key, beside the one that the drive has.
    pub supplemental: bool,
    /// When the drive forgets the key by itself.
    pub clearing: Clearing,
    /// What is done on writing.
    pub encryption: EncryptionMode,
    /// What is done on reading.
    pub decryption: DecryptionMode,
    /// Which algorithm of the drive's.
    pub algorithm: AlgorithmIndex,
    /// The key, and with it KEY FORMAT.
    pub key: KeyField,
    /// KAD FORMAT.
    pub kad_format: KadFormat,
    /// What every block is to say of its key.
    pub kads: Kads,
}

impl SetDataEncryption {
    /// Encrypts what is written and decrypts what is read, for every initiator, until the
    /// cartridge is taken out; blocks may not be read raw.
    ///
    /// Unencrypted blocks can be read too, so that a volume label stays readable.
    pub fn encrypt(algorithm: AlgorithmIndex, key: KeyField, kads: Kads) -> Self {
        Self {
            scope: Scope::AllNexus,
            lock: false,
            check_mode: CheckMode::NoCheck,
            raw_decryption: RawDecryption::Disallow,
            supplemental: false,
            clearing: Clearing {
                on_demount: true,
                ..Clearing::default()
            },
            encryption: EncryptionMode::Encrypt,
            decryption: DecryptionMode::Mixed,
            algorithm,
            key,
            kad_format: KadFormat::Unspecified,
            kads,
        }
    }

    /// Takes the key away.
    pub fn disable(algorithm: AlgorithmIndex) -> Self {
        Self {
            scope: Scope::AllNexus,
            lock: false,
            check_mode: CheckMode::VendorDefault,
            raw_decryption: RawDecryption::Default,
            supplemental: false,
            clearing: Clearing::default(),
            encryption: EncryptionMode::Disable,
            decryption: DecryptionMode::Disable,
            algorithm,
            key: KeyField::None,
            kad_format: KadFormat::Unspecified,
            kads: Kads::default(),
        }
    }

    /// The page. It holds the key where KEY FORMAT is 00h, so it is a secret.
    pub fn encode(&self) -> SecretSlice<u8> {
        let Self {
            scope,
            lock,
            check_mode,
            raw_decryption,
            supplemental,
            clearing,
            encryption,
            decryption,
            algorithm,
            key,
            kad_format,
            kads,
        } = self;
        let kads = kads.encode();
        let wrapped;
        let key_bytes: &[u8] = match key {
            KeyField::None => &[],
            KeyField::Plain(key) => key.expose_secret(),
            KeyField::Wrapped(key) => {
                wrapped = key.encode();
                &wrapped
            }
        };
        // The page is built in the length that it will have: a buffer that grows leaves copies of
        // the key behind.
        let len = HEADER_LEN + key_bytes.len() + kads.len();
        let mut page = Vec::with_capacity(len);
        page.extend(PAGE_CODE.to_be_bytes());
        page.extend(u16::try_from(len - 4).unwrap_or(u16::MAX).to_be_bytes());
        page.push(scope.code() << 5 | bit(*lock, 0));
        page.push(
            check_mode.code() << 6
                | raw_decryption.code() << 4
                | bit(*supplemental, 3)
                | clearing.bits(),
        );
        page.extend([
            encryption.code(),
            decryption.code(),
            algorithm.0,
            key.format().code(),
            kad_format.code(),
        ]);
        page.extend([0; 7]);
        page.extend(length(key_bytes).to_be_bytes());
        page.extend(key_bytes);
        page.extend(&kads);
        page.into()
    }

    /// Reads the page as a drive does.
    ///
    /// # Errors
    ///
    /// [`PageError`] that names the defect; a reserved bit that is set is one.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut page = Reader::page(STRUCTURE, PAGE_CODE, bytes)?;
        let [scope, checks] = page.array()?;
        if scope & 0x1e != 0 {
            return Err(PageError::Reserved {
                structure: STRUCTURE,
            });
        }
        let [encryption, decryption, algorithm, key_format, kad_format] = page.array()?;
        page.zeros(7)?;
        let key_len = page.u16()?;
        let key = page.take(usize::from(key_len))?;
        Ok(Self {
            scope: Scope::from_code(scope >> 5)?,
            lock: is_set(scope, 0),
            check_mode: CheckMode::from_code(checks >> 6)?,
            raw_decryption: RawDecryption::from_code(checks >> 4 & 3)?,
            supplemental: is_set(checks, 3),
            clearing: Clearing::from_bits(checks),
            encryption: EncryptionMode::from_code(encryption)?,
            decryption: DecryptionMode::from_code(decryption)?,
            algorithm: AlgorithmIndex(algorithm),
            key: KeyField::decode(KeyFormat::from_code(key_format)?, key)?,
            kad_format: KadFormat::from_code(kad_format)?,
            kads: Kads::decode_for_drive(page)?,
        })
    }
}

/// The KEY field, and the KEY FORMAT that goes with it. `Debug` shows no key.
#[derive(Debug)]
pub enum KeyField {
    /// No key: KEY FORMAT 00h and length 0.
    None,
    /// The data key in clear: KEY FORMAT 00h.
    Plain(SecretBox<[u8; 32]>),
    /// Wrapped by the public key of the device server: KEY FORMAT 02h.
    Wrapped(WrappedKey),
}

impl KeyField {
    /// The KEY FORMAT.
    pub fn format(&self) -> KeyFormat {
        match self {
            Self::None | Self::Plain(_) => KeyFormat::Plain,
            Self::Wrapped(_) => KeyFormat::Wrapped,
        }
    }

    fn decode(format: KeyFormat, key: &[u8]) -> Result<Self, PageError> {
        match format {
            KeyFormat::Plain if key.is_empty() => Ok(Self::None),
            KeyFormat::Plain => {
                let mut plain = [0; 32];
                if key.len() != plain.len() {
                    return Err(PageError::Length {
                        field: "a key",
                        expected: "0 or 32",
                        got: key.len(),
                    });
                }
                plain.copy_from_slice(key);
                let boxed = SecretBox::init_with_mut(|secret: &mut [u8; 32]| *secret = plain);
                zeroize::Zeroize::zeroize(&mut plain);
                Ok(Self::Plain(boxed))
            }
            KeyFormat::Wrapped => WrappedKey::decode(key).map(Self::Wrapped),
            KeyFormat::Reference | KeyFormat::Encapsulated => Err(PageError::Code {
                field: "KEY FORMAT",
                got: format.code(),
            }),
        }
    }
}

/// When a drive forgets the key by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clearing {
    /// CKOD: when the cartridge is demounted.
    pub on_demount: bool,
    /// CKORP: when a persistent reservation is preempted.
    pub on_reservation_preempted: bool,
    /// CKORL: when a reservation is lost.
    pub on_reservation_lost: bool,
}

impl Clearing {
    fn bits(self) -> u8 {
        let Self {
            on_demount,
            on_reservation_preempted,
            on_reservation_lost,
        } = self;
        bit(on_demount, 2) | bit(on_reservation_preempted, 1) | bit(on_reservation_lost, 0)
    }

    fn from_bits(bits: u8) -> Self {
        Self {
            on_demount: is_set(bits, 2),
            on_reservation_preempted: is_set(bits, 1),
            on_reservation_lost: is_set(bits, 0),
        }
    }
}

codes! {
    /// For whom parameters hold (SCOPE).
    Scope, "SCOPE" {
        /// For nobody's own: those of other initiators are shared.
        Public = 0,
        /// For this initiator alone.
        Local = 1,
        /// ALL I_T NEXUS: for every initiator.
        AllNexus = 2,
    }
}

codes! {
    /// What a drive checks of the blocks that it reads (CEEM).
    CheckMode, "CEEM" {
        /// As the vendor thinks best.
        VendorDefault = 0,
        /// Nothing.
        NoCheck = 1,
        /// An error where the block was written in EXTERNAL mode.
        NotExternal = 2,
        /// An error where the block was written in ENCRYPT mode.
        NotEncrypt = 3,
    }
}

codes! {
    /// Whether blocks may be read without decryption (RDMC).
    RawDecryption, "RDMC" {
        /// As the algorithm has it.
        Default = 0,
        /// They may.
        Allow = 2,
        /// They may not.
        Disallow = 3,
    }
}

codes! {
    /// What a drive does on writing (ENCRYPTION MODE).
    EncryptionMode, "ENCRYPTION MODE" {
        /// Nothing.
        Disable = 0,
        /// It takes blocks that are encrypted already.
        External = 1,
        /// It encrypts.
        Encrypt = 2,
    }
}

codes! {
    /// What a drive does on reading (DECRYPTION MODE).
    DecryptionMode, "DECRYPTION MODE" {
        /// Nothing; encrypted blocks are not read.
        Disable = 0,
        /// It gives encrypted blocks as they are.
        Raw = 1,
        /// It decrypts; other blocks are not read.
        Decrypt = 2,
        /// It decrypts; other blocks are read too.
        Mixed = 3,
    }
}

const STRUCTURE: &str = "set data encryption page";
const PAGE_CODE: u16 = 0x0010;
const HEADER_LEN: usize = 20;

#[cfg(test)]
mod tests;
