//! The cartridge memory of an image: attributes, and the EEDKs that the drive keeps.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt as _};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ImageError;

/// What the memory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::softdrive::tape) struct Memory {
    /// The attributes that hosts and libraries have written.
    pub(in crate::softdrive::tape) attributes: BTreeMap<u16, Attribute>,
    /// WK-KADs by the A-KAD of the blocks that they are for.
    pub(in crate::softdrive::tape) wrapped: Vec<Wrapped>,
    /// How often the cartridge has been loaded.
    pub(in crate::softdrive::tape) loads: u64,
}

/// An attribute: its FORMAT code and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::softdrive::tape) struct Attribute {
    pub(in crate::softdrive::tape) format: u8,
    pub(in crate::softdrive::tape) value: Vec<u8>,
}

/// The wrapped keys of one data key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::softdrive::tape) struct Wrapped {
    pub(in crate::softdrive::tape) akad: Vec<u8>,
    pub(in crate::softdrive::tape) eedks: Vec<Vec<u8>>,
}

impl Memory {
    /// The wrapped keys of the blocks with this A-KAD.
    pub(in crate::softdrive::tape) fn eedks(&self, akad: &[u8]) -> &[Vec<u8>] {
        self.wrapped
            .iter()
            .find(|wrapped| wrapped.akad == akad)
            .map_or(&[], |wrapped| &wrapped.eedks)
    }

    /// Keeps the wrapped keys for this A-KAD; the oldest go where there are too many.
    /// Says whether that changes anything.
    pub(in crate::softdrive::tape) fn keep(&mut self, akad: &[u8], eedks: Vec<Vec<u8>>) -> bool {
        if self.eedks(akad) == eedks {
            return false;
        }
        self.wrapped.retain(|wrapped| wrapped.akad != akad);
        self.wrapped.push(Wrapped {
            akad: akad.to_vec(),
            eedks,
        });
        let surplus = self.wrapped.len().saturating_sub(MAX_WRAPPED);
        self.wrapped.drain(..surplus);
        true
    }
}

/// The two slots of the memory, of which the newer whole one counts.
///
/// ```text
/// byte 0-7          generation
///      8-11         length of the content (n)
///      12..         content, as postcard has it; then zeros
///      32736-32767  SHA-256 of all that
/// ```
#[derive(Debug)]
pub(super) struct Slots {
    generation: u64,
}

impl Slots {
    /// The length of both, in bytes.
    pub(super) const LEN: u64 = 2 * SLOT;

    pub(super) const fn new() -> Self {
        Self { generation: 0 }
    }

    /// Reads the slot that counts.
    pub(super) fn read(file: &File, start: u64) -> Result<(Self, Memory), ImageError> {
        let mut newest: Option<(Self, Memory)> = None;
        for index in [0, 1] {
            let mut slot = vec![0; SLOT_LEN];
            match file.read_exact_at(&mut slot, start + index * SLOT) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(error) => return Err(error.into()),
            }
            if let Some((generation, memory)) = decode(&slot)
                && newest
                    .as_ref()
                    .is_none_or(|(best, _)| generation > best.generation)
            {
                newest = Some((Self { generation }, memory));
            }
        }
        newest.ok_or(ImageError::Memory)
    }

    /// Writes the memory over the slot that does not count, durably.
    pub(super) fn write(
        &mut self,
        file: &File,
        start: u64,
        memory: &Memory,
    ) -> Result<(), ImageError> {
        let content = postcard::to_allocvec(memory).map_err(|_| ImageError::Memory)?;
        let length = u32::try_from(content.len()).map_err(|_| ImageError::Memory)?;
        if content.len() > CHECKED - 12 {
            return Err(ImageError::Memory);
        }
        let generation = self.generation + 1;
        let mut slot = generation.to_be_bytes().to_vec();
        slot.extend(length.to_be_bytes());
        slot.extend(content);
        slot.resize(CHECKED, 0);
        let digest = Sha256::digest(&slot);
        slot.extend(digest);
        file.write_all_at(&slot, start + generation % 2 * SLOT)?;
        file.sync_data()?;
        self.generation = generation;
        Ok(())
    }
}

fn decode(slot: &[u8]) -> Option<(u64, Memory)> {
    let (checked, digest) = slot.split_at_checked(CHECKED)?;
    if Sha256::digest(checked).as_slice() != digest {
        return None;
    }
    let (generation, rest) = checked.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let memory = postcard::from_bytes(rest.get(..length)?).ok()?;
    Some((u64::from_be_bytes(*generation), memory))
}

const SLOT: u64 = 32 * 1024;
const SLOT_LEN: usize = 32 * 1024;
const CHECKED: usize = SLOT_LEN - 32;

/// Enough for a tape that several jobs have appended to; each may have two EEDKs of 896 bytes.
const MAX_WRAPPED: usize = 12;
