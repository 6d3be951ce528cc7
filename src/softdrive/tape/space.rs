//! Moving the tape: SPACE, LOCATE, REWIND, LOAD UNLOAD, and READ POSITION.

use std::path::PathBuf;

use super::{
    TapeDrive,
    command::{Check, Command, op},
    image::{Found, Image, Kind},
    motion::{READ_ERROR, read_error},
};
use crate::t10::{Sense, SenseKey};

impl TapeDrive {
    /// REWIND.
    pub(super) fn rewind(&mut self) -> Result<usize, Check> {
        self.image()?.rewind();
        Ok(0)
    }

    /// SPACE(6) and SPACE(16): blocks, filemarks, or to the end of the data.
    ///
    /// INFORMATION of what was not spaced over is a positive number in both directions.
    pub(super) fn space(&mut self, command: Command<'_>) -> Result<usize, Check> {
        let long = command.operation() == op::SPACE_16;
        let count = if long {
            i64::from_be_bytes(command.u64(4).to_be_bytes())
        } else {
            // The sign of 24 bits.
            let unsigned = i64::from(command.u24(2));
            if unsigned >= 1 << 23 {
                unsigned - (1 << 24)
            } else {
                unsigned
            }
        };
        let image = self.image()?;
        match command.u8(1) & 0x0f {
            0 if count >= 0 => blocks_forward(image, count.unsigned_abs()),
            0 => blocks_back(image, count.unsigned_abs()),
            1 if count >= 0 => filemarks_forward(image, count.unsigned_abs()),
            1 => filemarks_back(image, count.unsigned_abs()),
            3 => {
                image.wind();
                Ok(())
            }
            _ => Err(Sense::INVALID_FIELD_IN_CDB.into()),
        }?;
        Ok(0)
    }

    /// LOCATE(10) and LOCATE(16): an object, a file, or the end of the data.
    pub(super) fn locate(&mut self, command: Command<'_>) -> Result<usize, Check> {
        let (kind, target, partition) = if command.operation() == op::LOCATE_16 {
            (command.u8(1) >> 3 & 7, command.u64(4), command.u8(3))
        } else {
            (0, u64::from(command.u32(3)), command.u8(8))
        };
        let change_partition = command.bit(1, 1);
        if change_partition && partition != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let image = self.image()?;
        let there = match kind {
            0 => image.seek(target).map_err(read_error)?,
            1 => image.seek_file(target).map_err(read_error)?,
            3 => {
                image.wind();
                true
            }
            _ => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
        };
        if there {
            Ok(0)
        } else {
            Err(Sense::new(SenseKey::BlankCheck, 0x00, 0x05).into())
        }
    }

    /// READ POSITION: short form (00h, and 01h, which numbers objects too), long form (06h).
    pub(super) fn read_position(&mut self, command: Command<'_>) -> Result<Vec<u8>, Check> {
        let near_end = self.near_end()?;
        let at = self.image()?.at();
        let flags = u8::from(at.object == 0) << 7 | u8::from(near_end) << 6;
        match command.service_action() {
            0x00 | 0x01 => {
                let (object, too_large) = match u32::try_from(at.object) {
                    Ok(object) => (object, 0),
                    Err(_) => (0, 0x02 | 0x04),
                };
                let mut answer = vec![flags | too_large, 0, 0, 0];
                answer.extend(object.to_be_bytes());
                answer.extend(object.to_be_bytes());
                answer.extend([0; 8]);
                Ok(answer)
            }
            0x06 => {
                let mut answer = vec![flags, 0, 0, 0, 0, 0, 0, 0];
                answer.extend(at.object.to_be_bytes());
                answer.extend(at.filemarks.to_be_bytes());
                answer.extend([0; 8]);
                Ok(answer)
            }
            _ => Err(Sense::INVALID_FIELD_IN_CDB.into()),
        }
    }

    /// LOAD UNLOAD. A cartridge that was unloaded stays in the mouth of the drive.
    pub(super) fn load_unload(&mut self, command: Command<'_>) -> Result<usize, Check> {
        let load = command.bit(4, 0);
        if load {
            if let Some(image) = &mut self.image {
                image.rewind();
                return Ok(0);
            }
            let path: PathBuf = self
                .unloaded
                .clone()
                .ok_or(Check::from(Sense::MEDIUM_NOT_PRESENT))?;
            self.thread(&path).map_err(read_error)?;
            return Ok(0);
        }
        if self.image.is_some() {
            if self.removal_prevented {
                return Err(REMOVAL_PREVENTED.into());
            }
            self.image()?.flush().map_err(read_error)?;
        }
        self.unthread();
        Ok(0)
    }

    /// PREVENT ALLOW MEDIUM REMOVAL.
    pub(super) fn prevent_allow(&mut self, command: Command<'_>) -> Result<usize, Check> {
        match command.u8(4) & 3 {
            0 => self.removal_prevented = false,
            1 => self.removal_prevented = true,
            _ => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
        }
        Ok(0)
    }
}

fn blocks_forward(image: &mut Image, count: u64) -> Result<(), Check> {
    for done in 0..count {
        let residual = residual(count - done);
        match image.next().map_err(read_error)? {
            Found::Object(object) => {
                image.pass(&object);
                if object.kind == Kind::Filemark {
                    return Err(Check::filemark(residual));
                }
            }
            Found::EndOfData => return Err(Check::end_of_data(residual)),
            Found::Damage => return Err(Check::from(READ_ERROR).residual(residual)),
        }
    }
    Ok(())
}

fn blocks_back(image: &mut Image, count: u64) -> Result<(), Check> {
    for done in 0..count {
        let residual = residual(count - done);
        match image.back().map_err(read_error)? {
            Some(object) if object.kind == Kind::Filemark => {
                return Err(Check::filemark(residual));
            }
            Some(_) => {}
            None => return Err(Check::beginning(residual)),
        }
    }
    Ok(())
}

fn filemarks_forward(image: &mut Image, count: u64) -> Result<(), Check> {
    let mut left = count;
    while left > 0 {
        match image.next().map_err(read_error)? {
            Found::Object(object) => {
                image.pass(&object);
                left -= u64::from(object.kind == Kind::Filemark);
            }
            Found::EndOfData => return Err(Check::end_of_data(residual(left))),
            Found::Damage => return Err(Check::from(READ_ERROR).residual(residual(left))),
        }
    }
    Ok(())
}

fn filemarks_back(image: &mut Image, count: u64) -> Result<(), Check> {
    let mut left = count;
    while left > 0 {
        match image.back().map_err(read_error)? {
            Some(object) => left -= u64::from(object.kind == Kind::Filemark),
            None => return Err(Check::beginning(residual(left))),
        }
    }
    Ok(())
}

fn residual(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

const REMOVAL_PREVENTED: Sense = Sense::new(SenseKey::IllegalRequest, 0x53, 0x02);
