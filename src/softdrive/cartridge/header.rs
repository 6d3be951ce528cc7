//! The two header slots of a cartridge file.

use std::io::Read;

use sha2::{Digest, Sha256};

use super::CartridgeError;
use crate::{
    key::{DataKeyId, Eedk},
    volser::Volser,
};

/// What a cartridge says without a key: its name, the name of its data key, and its EEDKs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    volser: Volser,
    dki: DataKeyId,
    eedks: Vec<Eedk>,
}

impl Header {
    /// The most EEDKs that a cartridge holds.
    pub const MAX_EEDKS: usize = 2;

    /// A header. There are no EEDKs where the drive keeps none on the cartridge.
    ///
    /// # Errors
    ///
    /// [`CartridgeError::TooManyEedks`], and [`CartridgeError::OtherDataKey`] where an EEDK is
    /// of another data key.
    pub fn new(volser: Volser, dki: DataKeyId, eedks: Vec<Eedk>) -> Result<Self, CartridgeError> {
        if eedks.len() > Self::MAX_EEDKS {
            return Err(CartridgeError::TooManyEedks {
                limit: Self::MAX_EEDKS,
                got: eedks.len(),
            });
        }
        if let Some(other) = eedks.iter().find(|eedk| eedk.dki() != dki) {
            return Err(CartridgeError::OtherDataKey {
                expected: dki,
                got: other.dki(),
            });
        }
        Ok(Self { volser, dki, eedks })
    }

    /// The name of the cartridge.
    pub fn volser(&self) -> &Volser {
        &self.volser
    }

    /// The name of its data key.
    pub fn dki(&self) -> DataKeyId {
        self.dki
    }

    /// Its EEDKs.
    pub fn eedks(&self) -> &[Eedk] {
        &self.eedks
    }

    /// Volume serial, padded with blanks, and DKi: what every block is bound to.
    pub(super) fn names(&self) -> Vec<u8> {
        let mut names = format!("{:<6}", self.volser).into_bytes();
        names.extend(self.dki.as_bytes());
        names
    }
}

/// A header and how new it is.
///
/// ```text
/// byte 0-7        "EKMCART1"
///      8-15       generation
///      16-21      volume serial, padded with blanks
///      22-33      DKi
///      34         how many EEDKs, 0 to 2
///      35..       each EEDK: its length, two bytes, and its DER
///      ..4063     zeros
///      4064-4095  SHA-256 of all that
/// ```
#[derive(Debug)]
pub(super) struct Slot {
    generation: u64,
    pub(super) header: Header,
}

impl Slot {
    pub(super) fn first(header: &Header) -> Self {
        Self {
            generation: 1,
            header: header.clone(),
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, CartridgeError> {
        let Self { generation, header } = self;
        let mut slot = MAGIC.to_vec();
        slot.extend(generation.to_be_bytes());
        slot.extend(header.names());
        slot.push(u8::try_from(header.eedks.len()).map_err(|_| CartridgeError::Header)?);
        for eedk in &header.eedks {
            let der = eedk.as_der();
            let len = u16::try_from(der.len()).map_err(|_| CartridgeError::Header)?;
            slot.extend(len.to_be_bytes());
            slot.extend(der);
        }
        slot.resize(CHECKED_LEN, 0);
        let checksum = Sha256::digest(&slot);
        slot.extend(checksum);
        Ok(slot)
    }

    fn decode(slot: &[u8]) -> Option<Self> {
        let (checked, checksum) = slot.split_at_checked(CHECKED_LEN)?;
        if Sha256::digest(checked).as_slice() != checksum {
            return None;
        }
        let rest = checked.strip_prefix(MAGIC)?;
        let (generation, rest) = rest.split_first_chunk()?;
        let (volser, rest) = rest.split_at_checked(Volser::MAX_CHARS)?;
        let (dki, rest) = rest.split_at_checked(DataKeyId::LEN)?;
        let (count, mut rest) = rest.split_first()?;
        let mut eedks = Vec::new();
        for _ in 0..*count {
            let (len, after) = rest.split_first_chunk()?;
            let (der, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
            eedks.push(Eedk::decode(der).ok()?);
            rest = after;
        }
        let slot = Self {
            generation: u64::from_be_bytes(*generation),
            header: Header::new(
                std::str::from_utf8(volser).ok()?.parse().ok()?,
                DataKeyId::try_from(dki).ok()?,
                eedks,
            )
            .ok()?,
        };
        // One encoding of one header: whatever else is in the slot, we did not write it.
        (slot.encode().ok()?.get(..CHECKED_LEN)? == checked).then_some(slot)
    }
}

/// Both slots of a file, as far as they are whole.
#[derive(Debug)]
pub(super) struct Slots {
    a: Option<Slot>,
    b: Option<Slot>,
}

impl Slots {
    /// Reads both slots, and nothing behind them.
    pub(super) fn read(input: &mut impl Read) -> Result<Self, CartridgeError> {
        let mut slots = Vec::with_capacity(2 * SLOT_LEN);
        let limit = u64::try_from(2 * SLOT_LEN).map_err(|_| CartridgeError::Header)?;
        input.take(limit).read_to_end(&mut slots)?;
        let known = [0, SLOT_LEN].into_iter().any(|start| {
            slots
                .get(start..)
                .is_some_and(|slot| slot.starts_with(MAGIC))
        });
        if !known {
            return Err(CartridgeError::NotACartridge);
        }
        let (a, b) = slots
            .split_at_checked(SLOT_LEN)
            .filter(|(_, b)| b.len() == SLOT_LEN)
            .ok_or(CartridgeError::Truncated)?;
        Ok(Self {
            a: Slot::decode(a),
            b: Slot::decode(b),
        })
    }

    /// The slot that counts.
    pub(super) fn current(&self) -> Result<&Slot, CartridgeError> {
        self.a
            .iter()
            .chain(&self.b)
            .max_by_key(|slot| slot.generation)
            .ok_or(CartridgeError::Header)
    }

    /// A newer header, and where it goes: over the slot that does not count.
    pub(super) fn next(&self, header: &Header) -> Result<(u64, Vec<u8>), CartridgeError> {
        let generation = self.current()?.generation;
        let b_counts = self
            .b
            .as_ref()
            .is_some_and(|slot| slot.generation == generation);
        let offset = if b_counts { 0 } else { SLOT_LEN };
        let slot = Slot {
            generation: generation.checked_add(1).ok_or(CartridgeError::Header)?,
            header: header.clone(),
        };
        Ok((
            u64::try_from(offset).map_err(|_| CartridgeError::Header)?,
            slot.encode()?,
        ))
    }
}

const MAGIC: &[u8] = b"EKMCART1";

/// The length of a slot, in bytes: a file system block, so that one is never half in another.
pub(super) const SLOT_LEN: usize = 4096;

const CHECKED_LEN: usize = SLOT_LEN - 32;
