//! Who the drive is, and whether it is ready.

use super::{Asked, Command, Drive, DriveError, QUICK, Repeat};
use crate::scsi::{Data, Transport};
use crate::t10::{Designators, Inquiry, Sense, SenseKey, UnitSerial};

impl<T: Transport> Drive<T> {
    /// INQUIRY. Takes no unit attention.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn inquiry(&mut self) -> Result<Inquiry, DriveError> {
        let asked = Asked::Inquiry;
        let bytes: [u8; 36] = self.read_exact(asked, &[0x12, 0, 0, 0, Inquiry::LEN, 0])?;
        Inquiry::decode(&bytes).map_err(|source| self.odd(asked, source))
    }

    /// The serial number of VPD page 80h, as the drive spells it. Takes no unit attention.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn unit_serial(&mut self) -> Result<UnitSerial, DriveError> {
        let (asked, bytes) = self.vital(UnitSerial::PAGE)?;
        UnitSerial::decode(&bytes).map_err(|source| self.odd(asked, source))
    }

    /// The designators of VPD page 83h. Takes no unit attention.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn designators(&mut self) -> Result<Designators, DriveError> {
        let (asked, bytes) = self.vital(Designators::PAGE)?;
        Designators::decode(&bytes).map_err(|source| self.odd(asked, source))
    }

    fn vital(&mut self, page: u8) -> Result<(Asked, Vec<u8>), DriveError> {
        let asked = Asked::VitalProductData(page);
        let cdb = |len: u32| {
            let [_, _, high, low] = len.to_be_bytes();
            [0x12, 1, page, high, low, 0]
        };
        let bytes = self.read_page(asked, 4, MAX_VITAL, cdb, |head| match head {
            [_, _, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => 0,
        })?;
        Ok((asked, bytes))
    }

    /// TEST UNIT READY. A unit attention that waits is taken, kept and told.
    ///
    /// # Errors
    ///
    /// [`DriveError`] where the answer is none of the three.
    pub fn test_unit_ready(&mut self) -> Result<Readiness, DriveError> {
        let command = Command {
            asked: Asked::TestUnitReady,
            cdb: &[0; 6],
            limit: QUICK,
            repeat: Repeat::Never,
        };
        match self.run(&command, Data::None) {
            Ok(_) => Ok(Readiness::Ready),
            Err(DriveError::Attention { sense, .. }) => Ok(Readiness::Attention(sense)),
            Err(DriveError::Refused {
                sense,
                deferred: false,
                ..
            }) if sense.key == SenseKey::NotReady => Ok(Readiness::NotReady(sense.into())),
            Err(error) => Err(error),
        }
    }
}

/// What TEST UNIT READY says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// A cartridge is in and loaded.
    Ready,
    /// It is not.
    NotReady(NotReady),
    /// Something has changed since the last command; ask again.
    Attention(Sense),
}

/// Why a drive is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// No cartridge.
    NoMedium,
    /// It is loading, rewinding or testing itself.
    Becoming,
    /// A cartridge is in, but not loaded.
    Unloaded,
    /// Another reason.
    Other(Sense),
}

impl From<Sense> for NotReady {
    fn from(sense: Sense) -> Self {
        match (sense.asc, sense.ascq) {
            (0x3a, _) => Self::NoMedium,
            (0x04, 0x01 | 0x07 | 0x09) => Self::Becoming,
            (0x04, 0x02) => Self::Unloaded,
            _ => Self::Other(sense),
        }
    }
}

/// No drive names itself at greater length, in bytes.
const MAX_VITAL: usize = 4096;
