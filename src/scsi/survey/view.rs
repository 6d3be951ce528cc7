//! What a survey finds, as it is shown and as JSON.

use serde::Serialize;

use super::Verdict;
use crate::drive::{DriveSerial, Wwn};
use crate::key::DataKeyId;
use crate::t10::DevicePublicKey;

/// What a drive says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// The device that it was asked by.
    pub device: String,
    /// T10 VENDOR IDENTIFICATION.
    pub vendor: String,
    /// PRODUCT IDENTIFICATION.
    pub product: String,
    /// PRODUCT REVISION LEVEL: the firmware.
    pub revision: String,
    /// Its serial number, as it spells it.
    pub serial: Option<String>,
    /// Its serial number, as the drive table has it.
    pub drive: Option<DriveSerial>,
    /// World-wide name of its logical unit.
    pub wwn: Option<Wwn>,
    /// What else it says; none where only its names were asked.
    pub state: Option<State>,
    /// What it could not say, with the reasons.
    pub faults: Vec<String>,
    /// What ekm can do with it; none where only its names were asked.
    pub verdict: Option<Verdict>,
}

/// What a drive says beside its names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct State {
    /// Unit attentions that were taken, in words; of those that came in a row one.
    pub attentions: Vec<String>,
    /// Whether a cartridge is in, in words.
    pub medium: String,
    /// The cartridge, where one is loaded.
    pub cartridge: Option<Cartridge>,
    /// What encryption it can do; none where it cannot at all.
    pub encryption: Option<Encryption>,
    /// What it is set to do (page 0020h).
    pub setting: Option<Setting>,
    /// TapeAlert flags that are up; none where asking would take them away from others.
    pub alerts: Option<Vec<Alert>>,
}

/// A cartridge, as the drive tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cartridge {
    /// It cannot be written.
    pub write_protected: Option<bool>,
    /// SWP of the drive, now.
    pub software_write_protect: Option<bool>,
    /// SWP of the drive after power on, where it keeps such.
    pub saved_software_write_protect: Option<bool>,
    /// The block that comes next.
    pub block: Option<u64>,
    /// What that block is (page 0021h).
    pub next_block: Option<NextBlock>,
    /// The barcode that software has written into its memory.
    pub barcode: Option<String>,
    /// The serial number of the medium.
    pub medium_serial: Option<String>,
    /// Size of its memory, bytes.
    pub memory: Option<u64>,
    /// What is free of it, bytes.
    pub memory_free: Option<u64>,
    /// The first encrypted block, where there is one.
    pub first_encrypted: Option<u64>,
    /// The first unencrypted block behind it, where there is one.
    pub first_unencrypted: Option<u64>,
}

/// The block at the tape's position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextBlock {
    /// In words.
    pub status: &'static str,
    /// Its key's identifier, where it names one of 12 bytes.
    pub dki: Option<DataKeyId>,
    /// Its key-associated data.
    pub kads: Vec<KadView>,
}

/// What encryption a drive can do, and who may set it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Encryption {
    /// By AES-256-GCM, as ekm wants it.
    pub aes_256_gcm: bool,
    /// ALGORITHM INDEX of that.
    pub algorithm_index: u8,
    /// Who encrypts, in words.
    pub engine: &'static str,
    /// KEY FORMATs that it takes.
    pub key_formats: Vec<String>,
    /// The fingerprint of its key wrapping public key (page 0031h), as the drive table has it.
    pub wrapping_key: Option<String>,
    /// It gave one key at the first question and another at the second.
    pub wrapping_key_changes: bool,
    /// How many EEDKs it keeps on a cartridge.
    pub max_eedks: u8,
    /// The longest of them, bytes.
    pub max_eedk_len: u16,
    /// Longest U-KAD, bytes.
    pub max_ukad_len: u16,
    /// Longest A-KAD, bytes. The DKi needs 12.
    pub max_akad_len: u16,
    /// CKOD: it forgets the key when the cartridge leaves.
    pub clears_on_demount: Option<bool>,
    /// LOCK: it pins a host to its parameters.
    pub lock: Option<bool>,
    /// It takes parameters for all hosts (ALL I_T NEXUS).
    pub all_nexus: Option<bool>,
    /// CFG_P, in words.
    pub configuration: &'static str,
    /// PARAMETERS CONTROL, in words.
    pub control: Option<&'static str>,
    /// Who manages its encryption, on IBM drives.
    pub method: Option<String>,
    /// It is not a host that may set keys.
    pub managed_elsewhere: bool,
    #[serde(skip)]
    pub(super) key: Option<DevicePublicKey>,
}

/// What a drive is set to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// On writing, in words.
    pub writing: &'static str,
    /// On reading, in words.
    pub reading: &'static str,
    /// For whom, in words.
    pub scope: &'static str,
    /// What is checked on reading, in words.
    pub check: &'static str,
    /// Blocks may not be read raw.
    pub raw_disabled: bool,
    /// How many keys it has accepted.
    pub key_instance: u32,
    /// The cartridge has encrypted blocks.
    pub volume_encrypted: bool,
    /// The identifier of the key that is set, where it has one of 12 bytes.
    pub dki: Option<DataKeyId>,
    /// What the key was given as key-associated data.
    pub kads: Vec<KadView>,
}

/// One key-associated data descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KadView {
    /// `A-KAD`, `U-KAD` …
    pub kind: &'static str,
    /// Its bytes, in hexadecimal digits.
    pub hex: String,
    /// The same as text, where all of it is printable.
    pub text: Option<String>,
}

/// A TapeAlert flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// Its number, 1 to 64.
    pub flag: u8,
    /// What it says.
    pub meaning: Option<&'static str>,
}
