//! Commands that move the tape, to places that the caller knows.

use zeroize::Zeroizing;

use super::{Asked, Command, Drive, DriveError, WINDING};
use crate::scsi::{Data, Transport};

impl<T: Transport> Drive<T> {
    /// REWIND, and waits for it.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn rewind(&mut self) -> Result<(), DriveError> {
        self.wind(Asked::Rewind, &[0x01, 0, 0, 0, 0, 0])
    }

    /// LOCATE to a logical object of the partition: LOCATE(10), and LOCATE(16) beyond its reach.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; 08/00/05 where the data end before it.
    pub fn locate(&mut self, object: u64) -> Result<(), DriveError> {
        let asked = Asked::Locate(object);
        if let Ok(object) = u32::try_from(object) {
            let [b0, b1, b2, b3] = object.to_be_bytes();
            return self.wind(asked, &[0x2b, 0, 0, b0, b1, b2, b3, 0, 0, 0]);
        }
        let [b0, b1, b2, b3, b4, b5, b6, b7] = object.to_be_bytes();
        let cdb = [0x92, 0, 0, 0, b0, b1, b2, b3, b4, b5, b6, b7, 0, 0, 0, 0];
        self.wind(asked, &cdb)
    }

    /// SPACE over filemarks, at most 7F_FFFFh of them, towards the end.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; 08/00/05 where there are fewer.
    pub fn space_filemarks(&mut self, count: u32) -> Result<(), DriveError> {
        let [_, b0, b1, b2] = count.min(MAX_SPACE).to_be_bytes();
        self.wind(Asked::Space, &[0x11, FILEMARKS, b0, b1, b2, 0])
    }

    /// SPACE to the end of data.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn space_to_end(&mut self) -> Result<(), DriveError> {
        self.wind(Asked::Space, &[0x11, END_OF_DATA, 0, 0, 0, 0])
    }

    /// Reads the next block, whose beginning is brought and wiped: whether the drive can decrypt it.
    /// The tape is behind it then.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; 07/74/01 and 07/74/03 where the drive lacks the key or has another.
    pub fn probe_block(&mut self) -> Result<(), DriveError> {
        let mut block = Zeroizing::new(vec![0; PROBE]);
        self.read_block(&mut block).map(drop)
    }

    fn wind(&mut self, asked: Asked, cdb: &[u8]) -> Result<(), DriveError> {
        self.run(&Command::changing(asked, cdb, WINDING), Data::None)
            .map(drop)
    }
}

/// Longest beginning of a block that is brought, bytes.
const PROBE: usize = 64 * 1024;
/// A count has 24 bits and a sign.
const MAX_SPACE: u32 = 0x7f_ffff;
const FILEMARKS: u8 = 1;
const END_OF_DATA: u8 = 3;
