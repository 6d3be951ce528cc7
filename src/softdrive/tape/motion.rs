//! READ and WRITE.

use super::{
    Quirk, TapeDrive,
    command::{Check, Command},
    give,
    image::{Found, ImageError, Kind, MAX_BLOCK},
    security::{WRITE_ERROR, clear_allowed},
};
use crate::{
    scsi::Data,
    t10::{Sense, SenseKey},
};

impl TapeDrive {
    /// READ(6). The tape stays before a block that cannot be decrypted.
    pub(super) fn read(&mut self, command: Command<'_>, buffer: &mut [u8]) -> Result<usize, Check> {
        let (fixed, silent, count) = (command.bit(1, 0), command.bit(1, 1), command.u24(2));
        let block_length = self.modes.block_length();
        if fixed && (silent || block_length == 0) {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        self.image()?;
        self.keys.check_lock(&self.target)?;
        if !fixed {
            if count == 0 {
                return Ok(0);
            }
            let room = buffer
                .len()
                .min(usize::try_from(count).unwrap_or(usize::MAX));
            let buffer = buffer.get_mut(..room).unwrap_or_default();
            let (length, copied) = self.read_block(buffer, count)?;
            let quiet = silent && (length <= count || block_length == 0);
            return if length == count || quiet {
                Ok(copied)
            } else {
                Err(Check::other_length(count.wrapping_sub(length)).after(copied))
            };
        }
        let step = usize::try_from(block_length).unwrap_or(usize::MAX);
        let mut done = 0;
        let mut blocks = buffer.chunks_mut(step);
        for read in 0..count {
            let residual = count - read;
            let block = blocks.next().unwrap_or_default();
            let (length, copied) = self
                .read_block(block, residual)
                .map_err(|check| check.after(done))?;
            if length != block_length {
                return Err(Check::other_length(residual).after(done));
            }
            done += copied;
        }
        Ok(done)
    }

    /// The next block, cut to the buffer: its length and how much was copied.
    fn read_block(&mut self, buffer: &mut [u8], residual: u32) -> Result<(u32, usize), Check> {
        let Some(image) = &mut self.image else {
            return Err(Sense::MEDIUM_NOT_PRESENT.into());
        };
        let object = match image.next().map_err(read_error)? {
            Found::Object(object) => object,
            Found::EndOfData => return Err(Check::end_of_data(residual)),
            Found::Damage => return Err(Check::from(READ_ERROR).residual(residual)),
        };
        let data: &[u8] = match &object.kind {
            Kind::Filemark => {
                image.pass(&object);
                return Err(Check::filemark(residual));
            }
            Kind::Clear => {
                clear_allowed(&self.target)
                    .map_err(|sense| Check::from(sense).residual(residual))?;
                image.stored(&object).map_err(read_error)?
            }
            Kind::Encrypted(seal) => {
                let key = self
                    .keys
                    .for_reading(&self.target, seal)
                    .map_err(|sense| Check::from(sense).residual(residual))?;
                let bound = image.bound(&object);
                let stored = image.stored(&object).map_err(read_error)?;
                key.open(seal, &bound, stored)
                    .map_err(|_| Check::from(Sense::INTEGRITY_FAILED).residual(residual))?
            }
        };
        let copied = give(data, Data::In(buffer));
        image.pass(&object);
        Ok((object.length, copied))
    }

    /// WRITE(6).
    pub(super) fn write(&mut self, command: Command<'_>, data: &[u8]) -> Result<usize, Check> {
        let (fixed, count) = (command.bit(1, 0), command.u24(2));
        let block_length = self.modes.block_length();
        if fixed && block_length == 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let (blocks, step) = if fixed {
            (count, block_length)
        } else {
            (u32::from(count > 0), count)
        };
        let length = u64::from(blocks) * u64::from(step);
        if step > MAX_BLOCK || u64::try_from(data.len()).unwrap_or(u64::MAX) < length {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        self.writable()?;
        let step = usize::try_from(step).unwrap_or(usize::MAX).max(1);
        let mut done = 0;
        for (written, block) in (0..blocks).zip(data.chunks(step)) {
            let residual = if fixed { blocks - written } else { count };
            self.write_block(block)
                .map_err(|check| check.full(residual).after(done))?;
            done += block.len();
        }
        self.early_warning()
            .map(|()| done)
            .map_err(|check| check.after(done))
    }

    fn write_block(&mut self, block: &[u8]) -> Result<(), Check> {
        let room = self.room()?;
        if u64::try_from(block.len()).unwrap_or(u64::MAX) > room {
            return Err(Check::overflow(0));
        }
        let lies = self.has(Quirk::ClaimsEncryption);
        if !lies {
            self.keep_eedks()?;
        }
        let Some(image) = &mut self.image else {
            return Err(Sense::MEDIUM_NOT_PRESENT.into());
        };
        let (kind, key) = if lies {
            (Kind::Clear, None)
        } else {
            self.keys.for_writing(&self.target)?
        };
        image.write(kind, block, key).map_err(write_error)
    }

    /// WRITE FILEMARKS(6). Those of no number wait until everything is on the medium.
    pub(super) fn write_filemarks(&mut self, command: Command<'_>) -> Result<usize, Check> {
        let count = command.u24(2);
        // SETMARK of old, and bits that were never used.
        if command.u8(1) & 0xfe != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        self.image()?;
        if count > 0 {
            self.writable()?;
        }
        for written in 0..count {
            if self.room()? == 0 {
                return Err(Check::overflow(count - written));
            }
            self.image()?
                .write(Kind::Filemark, &[], None)
                .map_err(write_error)?;
        }
        // IMMED
        if !command.bit(1, 0) {
            self.image()?.flush().map_err(write_error)?;
        }
        if count > 0 {
            self.early_warning()?;
        }
        Ok(0)
    }

    /// ERASE(6): there is nothing behind the position any more, be it LONG or not.
    pub(super) fn erase(&mut self) -> Result<usize, Check> {
        self.image()?;
        self.writable()?;
        let image = self.image()?;
        image.cut().map_err(write_error)?;
        image.flush().map_err(write_error)?;
        Ok(0)
    }

    /// Whether anything may be written.
    fn writable(&mut self) -> Result<(), Check> {
        self.image()?;
        if self.modes.write_protected() {
            return Err(SOFTWARE_WRITE_PROTECTED.into());
        }
        self.keys.check_lock(&self.target)?;
        Ok(())
    }

    /// Bytes that still fit.
    fn room(&mut self) -> Result<u64, Check> {
        let image = self.image()?;
        Ok(image.label().capacity.saturating_sub(image.used()))
    }

    fn early_warning(&mut self) -> Result<(), Check> {
        if self.near_end()? {
            Err(Check::early_warning())
        } else {
            Ok(())
        }
    }

    /// Whether the tape is behind its early warning.
    pub(super) fn near_end(&mut self) -> Result<bool, Check> {
        let room = self.room()?;
        let image = self.image()?;
        Ok(room < image.label().capacity / EARLY_WARNING)
    }
}

/// What a host learns of a file that cannot be read.
pub(super) fn read_error(_: ImageError) -> Check {
    READ_ERROR.into()
}

fn write_error(_: ImageError) -> Check {
    WRITE_ERROR.into()
}

/// The last sixteenth of a tape is behind its early warning.
const EARLY_WARNING: u64 = 16;

/// Unrecovered read error.
pub(super) const READ_ERROR: Sense = Sense::new(SenseKey::MediumError, 0x11, 0x00);

const SOFTWARE_WRITE_PROTECTED: Sense = Sense::new(SenseKey::DataProtect, 0x27, 0x02);
