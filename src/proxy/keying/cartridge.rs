//! What a cartridge says of itself, read at load point without its key.

use serde::Serialize;

use super::error::JobRefused;
use super::home::Memory;
use super::seams::{Unit, means_absent};
use crate::key::{DataKeyId, Eedk};
use crate::proxy::decision::Loaded;
use crate::scsi::DriveError;
use crate::t10::{Attribute, AttributeId, EncryptionStatus, KadType, NextBlock};
use crate::volser::Volser;

/// Positions from here on are none: FFFF_FFFF_FFFF_FFFEh "not known", FFFF_FFFF_FFFF_FFFFh "none".
const NO_POSITION: u64 = u64::MAX - 1;

/// How often a drive may say that it cannot tell now.
const NOT_NOW: usize = 5;

/// A cartridge at load point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cartridge {
    /// Its barcode, where its memory has one.
    pub barcode: Option<String>,
    /// The manufacturer's serial, where its memory has one.
    pub medium_serial: Option<String>,
    /// The block at load point.
    pub first: FirstBlock,
    /// Where the first encrypted block is, if there is any, and the A-KAD that it shows.
    pub encrypted: Option<Encrypted>,
    /// The first block in clear, as the drive keeps count of it; none where it does not or there is none.
    pub first_clear: Option<u64>,
    pub(super) kept: Vec<Vec<u8>>,
    pub(super) memory: Memory,
}

/// The block at load point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "is", content = "why")]
pub enum FirstBlock {
    /// A filemark, or nothing.
    None,
    /// In clear.
    Clear,
    /// Encrypted.
    Encrypted,
    /// The drive does not tell.
    Unknown(String),
}

/// The first encrypted block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encrypted {
    /// Its number, where it is known.
    pub block: Option<u64>,
    /// Its A-KAD; empty where it shows none.
    pub named: Vec<u8>,
}

impl Encrypted {
    /// The data key's identifier, where it is one of ours or of the same form.
    #[must_use]
    pub fn dki(&self) -> Option<DataKeyId> {
        DataKeyId::try_from(self.named.as_slice()).ok()
    }
}

impl Cartridge {
    /// Rewinds, and looks.
    pub(super) fn look(unit: &mut Unit) -> Result<Self, JobRefused> {
        let barcode = text(unit, AttributeId::BARCODE)?;
        let medium_serial = text(unit, AttributeId::MEDIUM_SERIAL)?;
        let memory = Memory::read(unit)?;
        let block = at_load_point(unit)?;
        let (first, mut encrypted, mut kept) = match &block {
            Ok(block) => match block.encryption {
                EncryptionStatus::NotABlock => (FirstBlock::None, None, Vec::new()),
                EncryptionStatus::NotEncrypted => (FirstBlock::Clear, None, Vec::new()),
                EncryptionStatus::UnsupportedAlgorithm
                | EncryptionStatus::Decryptable
                | EncryptionStatus::KeyMissing => {
                    (FirstBlock::Encrypted, Some(named(block)), wrapped(block))
                }
                EncryptionStatus::Incapable | EncryptionStatus::NotNow => {
                    let why = "the drive cannot tell whether the block at load point is encrypted";
                    (FirstBlock::Unknown(why.to_owned()), None, Vec::new())
                }
            },
            Err(why) => (FirstBlock::Unknown(why.clone()), None, Vec::new()),
        };
        if encrypted.is_none() {
            // A label in clear, and data behind it.
            (encrypted, kept) = further(unit)?;
        }
        Ok(Self {
            barcode,
            medium_serial,
            first,
            encrypted,
            first_clear: position(unit, AttributeId::FIRST_UNENCRYPTED)?,
            kept,
            memory,
        })
    }

    /// Whether it is still the cartridge in the drive, asked before anything of it is changed.
    ///
    /// # Errors
    /// It is another, or may be.
    pub(super) fn still_in(&self, unit: &mut Unit) -> Result<(), JobRefused> {
        let barcode = text(unit, AttributeId::BARCODE)?;
        let medium_serial = text(unit, AttributeId::MEDIUM_SERIAL)?;
        // 28/xx: a cartridge came in; 29/xx: the drive began anew.
        let told = unit.attentions().iter();
        let happened = told
            .filter(|sense| matches!(sense.asc, 0x28 | 0x29))
            .map(ToString::to_string)
            .next_back();
        let what = match happened {
            Some(what) => what,
            None if (&barcode, &medium_serial) == (&self.barcode, &self.medium_serial) => {
                return Ok(());
            }
            None => "another cartridge is in".to_owned(),
        };
        Err(JobRefused::Disturbed {
            drive: unit.name().to_owned(),
            what,
        })
    }

    /// What is in the drive in the place of this cartridge; none where it is this one. Where neither
    /// has a name of its own, the drive's word that one came in decides.
    ///
    /// # Errors
    /// The drive cannot be asked.
    pub(super) fn exchanged(&self, unit: &mut Unit) -> Result<Option<String>, DriveError> {
        let barcode = text(unit, AttributeId::BARCODE)?;
        let medium_serial = text(unit, AttributeId::MEDIUM_SERIAL)?;
        let told = unit.attentions().iter().find(|sense| sense.asc == 0x28);
        let same = if medium_serial.is_some() || self.medium_serial.is_some() {
            medium_serial == self.medium_serial
        } else if self.barcode.is_some() {
            barcode == self.barcode
        } else {
            // A barcode may have been written by the job.
            told.is_none()
        };
        if same {
            return Ok(None);
        }
        let named = |name: Option<String>| name.unwrap_or_else(|| "none".to_owned());
        Ok(Some(format!(
            "its barcode is {}, its serial number {}{}",
            named(barcode),
            named(medium_serial),
            told.map_or_else(String::new, |sense| format!("; the drive says: {sense}"))
        )))
    }

    /// Whether the cartridge in the drive holds what this one held; in doubt it does not.
    pub(super) fn is_unwritten(
        &self,
        unit: &mut Unit,
        now: Option<&NextBlock>,
    ) -> Result<bool, JobRefused> {
        let Some(block) = now else {
            return Ok(false);
        };
        let old = self.encrypted.as_ref();
        match (&self.first, block.encryption, old) {
            // Nothing then: is there still nothing?
            (FirstBlock::None, EncryptionStatus::NotABlock, None) => {
                unit.space_to_end()?;
                let end = unit.position()?;
                unit.rewind()?;
                Ok(end.at_beginning && end.object.is_none_or(|object| object == 0))
            }
            (FirstBlock::None, EncryptionStatus::NotABlock, Some(old)) => {
                let (found, _) = further(unit)?;
                Ok(!old.named.is_empty() && found.as_ref() == Some(old))
            }
            (
                FirstBlock::Encrypted,
                EncryptionStatus::Decryptable
                | EncryptionStatus::KeyMissing
                | EncryptionStatus::UnsupportedAlgorithm,
                Some(old),
            ) => Ok(!old.named.is_empty() && named(block).named == old.named),
            _ => Ok(false),
        }
    }

    /// Whether what it holds is encrypted, for the decision.
    pub(super) fn loaded(&self) -> Loaded {
        match (&self.encrypted, &self.first) {
            (Some(_), _) => Loaded::Encrypted,
            (None, FirstBlock::Unknown(_)) if !self.eedks().is_empty() => Loaded::Encrypted,
            (None, FirstBlock::Unknown(_)) => Loaded::Unknown,
            (None, FirstBlock::None | FirstBlock::Clear | FirstBlock::Encrypted) => Loaded::Clear,
        }
    }

    /// Whether there is nothing on it.
    pub(super) const fn is_blank(&self) -> bool {
        matches!(self.first, FirstBlock::None) && self.encrypted.is_none()
    }

    /// Whether it holds something of a key, which is lost when it is written over.
    pub(super) const fn is_keyed(&self) -> bool {
        self.encrypted.is_some() || !self.memory.is_empty() || !self.kept.is_empty()
    }

    /// The EEDKs that it holds: those that the drive keeps, else those of its memory.
    pub(super) fn eedks(&self) -> Vec<Result<Eedk, String>> {
        if self.kept.is_empty() {
            return self.memory.eedks();
        }
        self.kept
            .iter()
            .map(|der| Eedk::decode(der).map_err(|error| error.to_string()))
            .collect()
    }

    /// Whether the barcode is that volume's; true where there is none. Barcodes have the cartridge's
    /// type behind the volume serial: `VOL001L6`.
    pub(super) fn is_called(&self, volser: &Volser) -> bool {
        let Some(barcode) = &self.barcode else {
            return true;
        };
        let barcode = barcode.to_ascii_uppercase();
        match barcode.strip_prefix(volser.as_str()).map(str::trim) {
            Some("") => true,
            Some(rest) => {
                rest.len() == 2
                    && rest.chars().all(|c| c.is_ascii_alphanumeric())
                    && volser.as_str().len() == Volser::MAX_CHARS
            }
            None => false,
        }
    }
}

/// Rewinds, and asks for the block there; the inner error is that the drive does not tell.
pub(super) fn at_load_point(unit: &mut Unit) -> Result<Result<NextBlock, String>, JobRefused> {
    unit.rewind()?;
    let position = unit.position()?;
    if !position.at_beginning {
        return Err(JobRefused::NotAtLoadPoint {
            drive: unit.name().to_owned(),
            object: position.object.unwrap_or_default(),
        });
    }
    Ok(next_block(unit)?)
}

/// Asks for the block where the tape is; the inner error is that the drive does not tell.
pub(super) fn next_block(unit: &mut Unit) -> Result<Result<NextBlock, String>, DriveError> {
    let mut told = Err("the drive cannot tell now what the next block is".to_owned());
    for _ in 0..NOT_NOW {
        told = match unit.next_block() {
            Ok(block) if block.encryption == EncryptionStatus::NotNow => continue,
            Ok(block) => Ok(block),
            Err(error) if means_absent(&error) => Err(error.to_string()),
            Err(error) => return Err(error),
        };
        break;
    }
    Ok(told)
}

/// The first encrypted block behind load point, where the drive knows of one.
fn further(unit: &mut Unit) -> Result<(Option<Encrypted>, Vec<Vec<u8>>), JobRefused> {
    let Some(at) = position(unit, AttributeId::FIRST_ENCRYPTED)? else {
        let status = unit.encryption_status()?;
        let somewhere = status.volume_encrypted.then(|| Encrypted {
            block: None,
            named: Vec::new(),
        });
        return Ok((somewhere, Vec::new()));
    };
    unit.locate(at)?;
    let block = next_block(unit)?;
    unit.rewind()?;
    Ok(match block {
        Ok(block) => {
            let found = Encrypted {
                block: Some(at),
                ..named(&block)
            };
            (Some(found), wrapped(&block))
        }
        Err(_) => {
            let found = Encrypted {
                block: Some(at),
                named: Vec::new(),
            };
            (Some(found), Vec::new())
        }
    })
}

/// The first block in clear and the first encrypted one, as the drive counts them.
pub(super) fn counted(unit: &mut Unit) -> Result<(Option<u64>, Option<u64>), DriveError> {
    Ok((
        position(unit, AttributeId::FIRST_UNENCRYPTED)?,
        position(unit, AttributeId::FIRST_ENCRYPTED)?,
    ))
}

fn named(block: &NextBlock) -> Encrypted {
    Encrypted {
        block: Some(block.position),
        named: block
            .kads
            .of(KadType::Authenticated)
            .next()
            .unwrap_or_default()
            .to_vec(),
    }
}

fn wrapped(block: &NextBlock) -> Vec<Vec<u8>> {
    block
        .kads
        .of(KadType::WrappedKey)
        .map(<[u8]>::to_vec)
        .collect()
}

fn position(unit: &mut Unit, id: AttributeId) -> Result<Option<u64>, DriveError> {
    let value = attribute(unit, id)?;
    Ok(value
        .and_then(|value| value.number())
        .filter(|position| *position < NO_POSITION))
}

fn text(unit: &mut Unit, id: AttributeId) -> Result<Option<String>, DriveError> {
    let value = attribute(unit, id)?;
    Ok(value
        .map(|value| value.text())
        .filter(|text| !text.is_empty()))
}

/// An attribute; one that the drive does not give is not there.
fn attribute(unit: &mut Unit, id: AttributeId) -> Result<Option<Attribute>, DriveError> {
    match unit.attribute(id) {
        Ok(value) => Ok(value),
        Err(error) if means_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
