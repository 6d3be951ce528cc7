//! Where a cartridge's EEDKs are kept.
//!
//! 1. By the drive itself, as WK-KAD descriptors of the key that is set, where it says that it keeps
//!    enough of them (page 0010h, MAXIMUM EEDK COUNT and SIZE).
//! 2. In the cartridge's memory, as attributes of the host's vendor range, as below.
//! 3. In the server's catalog alone, by the DKi that the blocks show.
//!
//! ```text
//! attribute 1480h to 148Fh   binary, at most 512 bytes each, written from 1480h on without a gap
//! their values, one after the other: the EEDKs, DER, one after the other
//! ```
//!
//! The DER says where an EEDK ends, so nothing else is stored: a small memory (LTO-4: some 1,000
//! bytes for hosts) then has room for two EEDKs of RSA-3072. Other applications' attributes are
//! never touched.

use serde::{Deserialize, Serialize};

use super::seams::{Unit, means_absent};
use crate::api::MAX_EEDKS;
use crate::key::Eedk;
use crate::scsi::DriveError;
use crate::t10::{Attribute, AttributeFormat, AttributeId, Attributes};

/// First attribute.
const FIRST: u16 = 0x1480;
/// How many there are.
const COUNT: u16 = 16;
/// Longest values, bytes: as long as a drive takes them, since each attribute costs room of its own.
const CHUNKS: [usize; 3] = [512, 250, 120];
/// What an attribute takes beside its value: identifier, format, length.
const OVERHEAD: usize = 5;

/// Where EEDKs are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "where", content = "why")]
pub enum Home {
    /// The drive keeps them on the cartridge.
    Drive,
    /// The cartridge's memory.
    Memory,
    /// The key server's catalog, and nowhere else: whoever has the cartridge alone cannot read it.
    Catalog(String),
}

/// What the cartridge's memory holds of ours, attribute by attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory(Vec<Vec<u8>>);

impl Memory {
    /// Reads it; what a drive does not have is as if it were empty.
    ///
    /// # Errors
    /// The drive could not be asked.
    pub(super) fn read(unit: &mut Unit) -> Result<Self, DriveError> {
        let mut values = Vec::new();
        for id in FIRST..FIRST + COUNT {
            match unit.attribute(AttributeId(id)) {
                Ok(Some(found)) if !found.value.is_empty() => values.push(found.value),
                Ok(_) => break,
                Err(error) if means_absent(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Self(values))
    }

    /// These EEDKs, cut into attributes of that length.
    fn of(eedks: &[Vec<u8>], chunk: usize) -> Self {
        Self(eedks.concat().chunks(chunk).map(<[u8]>::to_vec).collect())
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What may be anything in the place of this.
    pub(super) fn unknown(&self) -> Self {
        Self(vec![Vec::new(); self.0.len()])
    }

    /// Each EEDK, or what is wrong with it. What follows them is left: an earlier content that could
    /// not be taken away.
    pub(super) fn eedks(&self) -> Vec<Result<Eedk, String>> {
        let all = self.0.concat();
        let mut rest = all.as_slice();
        let mut eedks = Vec::new();
        while eedks.len() < MAX_EEDKS
            && let Some(length) = der_length(rest)
        {
            let Some((der, after)) = rest.split_at_checked(length) else {
                eedks.push(Err("it is cut short".to_owned()));
                break;
            };
            eedks.push(Eedk::decode(der).map_err(|error| error.to_string()));
            rest = after;
        }
        if eedks.is_empty() && !all.is_empty() {
            eedks.push(Err("it is no EEDK".to_owned()));
        }
        eedks
    }

    /// All that is there, for the history.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.concat()
    }

    fn size(&self) -> usize {
        self.0.iter().map(|value| value.len() + OVERHEAD).sum()
    }

    /// Stores these EEDKs in place of `self`, and reads them back.
    ///
    /// # Errors
    /// Why they are not there, in words; what is there then is not known.
    pub(super) fn replace(&self, unit: &mut Unit, eedks: &[Vec<u8>]) -> Result<Self, NotStored> {
        let mut old = self.clone();
        let mut refused = None;
        for chunk in CHUNKS {
            let new = Self::of(eedks, chunk);
            if new.0.len() > usize::from(COUNT) {
                break;
            }
            if let Some(free) = free(unit)? {
                let room = free + old.size();
                if new.size() > room {
                    refused = Some(NotStored::Unfit(format!(
                        "they take {} bytes, and the cartridge's memory has room for {room}",
                        new.size()
                    )));
                    break;
                }
            }
            match old.overwrite(unit, &new) {
                Ok(()) => return Ok(new),
                // Attributes of that length, perhaps.
                Err(NotStored::Drive(error)) if means_absent(&error) => {
                    refused = Some(NotStored::Drive(error));
                    old = Self::read(unit)?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| {
            NotStored::Unfit(format!(
                "they have {} bytes, which {COUNT} attributes do not hold",
                eedks.concat().len()
            ))
        }))
    }

    /// Puts `other` where `self` is, and reads it back.
    ///
    /// # Errors
    /// Why it is not there.
    pub(super) fn overwrite(&self, unit: &mut Unit, other: &Self) -> Result<(), NotStored> {
        // The memory may not have room for both. From the end, so that no gap hides what is left.
        for index in (other.0.len()..self.0.len()).rev() {
            write(unit, index, &[])?;
        }
        for (index, value) in other.0.iter().enumerate() {
            if self.0.get(index) != Some(value) {
                write(unit, index, value)?;
            }
        }
        let read = Self::read(unit)?;
        if read == *other {
            return Ok(());
        }
        Err(NotStored::Changed)
    }
}

/// Why EEDKs are not in a cartridge's memory.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotStored {
    /// Nothing was written.
    #[error("{0}")]
    Unfit(String),
    /// They were written, and are not what is read.
    #[error("the cartridge's memory gives back something else than was written")]
    Changed,
    /// The drive does not do it.
    #[error(transparent)]
    Drive(#[from] DriveError),
}

fn write(unit: &mut Unit, index: usize, value: &[u8]) -> Result<(), DriveError> {
    let id = FIRST + u16::try_from(index).unwrap_or(COUNT - 1);
    let attribute = Attribute::new(AttributeId(id), AttributeFormat::Binary, value.to_vec());
    unit.write_attributes(&Attributes(vec![attribute]))
}

/// What is free, bytes, where the drive says so.
fn free(unit: &mut Unit) -> Result<Option<usize>, DriveError> {
    match unit.attribute(AttributeId::SPACE_REMAINING) {
        Ok(value) => Ok(value
            .and_then(|value| value.number())
            .map(|free| usize::try_from(free).unwrap_or(usize::MAX >> 1))),
        Err(error) if means_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The whole length of a DER SEQUENCE of 128 bytes or more, as every EEDK is.
fn der_length(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [0x30, 0x81, length, ..] => Some(3 + usize::from(length)),
        [0x30, 0x82, high, low, ..] => Some(4 + usize::from(u16::from_be_bytes([high, low]))),
        _ => None,
    }
}
