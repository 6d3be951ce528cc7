//! Blocks and filemarks, where the tape stands.

use super::{Asked, Command, Drive, DriveError, WINDING};
use crate::scsi::{Data, Transport};
use crate::t10::SenseKey;

impl<T: Transport> Drive<T> {
    /// WRITE(6) of one block, of a length below 16 MiB.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; 07/27 where the drive is write protected.
    pub fn write_block(&mut self, block: &[u8]) -> Result<(), DriveError> {
        let [_, b0, b1, b2] = length(block.len());
        let cdb = [0x0a, 0, b0, b1, b2, 0];
        let command = Command::changing(Asked::Write, &cdb, WINDING);
        self.run(&command, Data::Out(block)).map(drop)
    }

    /// WRITE FILEMARKS(6) of one filemark; what was written before is on the tape then.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn write_filemark(&mut self) -> Result<(), DriveError> {
        let cdb = [0x10, 0, 0, 0, 1, 0];
        let command = Command::changing(Asked::WriteFilemark, &cdb, WINDING);
        self.run(&command, Data::None).map(drop)
    }

    /// READ(6) of one block, cut to the buffer: its length, or none at a filemark and at the end of
    /// data. A filemark is passed.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; 07/74 where the drive cannot decrypt it.
    pub fn read_block(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, DriveError> {
        let [_, b0, b1, b2] = length(buffer.len());
        // SILI: a block of another length is as good.
        let cdb = [0x08, 0x02, b0, b1, b2, 0];
        let command = Command::changing(Asked::Read, &cdb, WINDING);
        match self.run(&command, Data::In(buffer)) {
            Ok(got) => Ok(Some(got).filter(|got| *got > 0)),
            Err(DriveError::Refused { sense, .. }) if sense.key == SenseKey::BlankCheck => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A length in the three bytes that a CDB has for it.
fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes)
        .unwrap_or(u32::MAX)
        .min(0x00ff_ffff)
        .to_be_bytes()
}
