//! Mode pages, log pages, position, and the cartridge's way in and out.

use super::{Asked, Command, Drive, DriveError, QUICK, WINDING};
use crate::scsi::{Data, Transport};
use crate::t10::{
    DeviceConfiguration, EncryptionMethod, LogPageList, ModeData, PageError, Position, TapeAlerts,
};

impl<T: Transport> Drive<T> {
    /// MODE SENSE(10) for one page; subpage 0 is the page without one.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; unsupported where the drive does not have the page, or not these values.
    pub fn mode_sense(
        &mut self,
        page: u8,
        subpage: u8,
        values: ModeValues,
    ) -> Result<ModeData, DriveError> {
        let asked = Asked::ModeSense(page, subpage);
        let cdb = |length: u32| {
            let [_, _, high, low] = length.to_be_bytes();
            let control = values.code() << 6 | page & 0x3f;
            [0x5a, 0, control, subpage, 0, 0, 0, high, low, 0]
        };
        let bytes = self.read_page(asked, 8, MAX_MODE, cdb, |head| {
            head.first_chunk::<2>()
                .map_or(0, |len| usize::from(u16::from_be_bytes(*len)) + 2)
        })?;
        ModeData::decode(&bytes).map_err(|source| self.odd(asked, source))
    }

    /// The device configuration page, with SWP.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; unsupported for saved values, where the drive saves none.
    pub fn device_configuration(
        &mut self,
        values: ModeValues,
    ) -> Result<(ModeData, DeviceConfiguration), DriveError> {
        let page = DeviceConfiguration::PAGE;
        let data = self.mode_sense(page, 0, values)?;
        let configuration = DeviceConfiguration::try_from(&data)
            .map_err(|source| self.odd(Asked::ModeSense(page, 0), source))?;
        Ok((data, configuration))
    }

    /// Sets software write protection (SWP) and leaves everything else of the page: it is read,
    /// changed and sent. Only the current value is set, none that the drive would keep without
    /// power. Answers what it was.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; [`DriveError::Attention`] where something changed in between.
    pub fn set_software_write_protect(&mut self, protect: bool) -> Result<bool, DriveError> {
        let (data, configuration) = self.device_configuration(ModeValues::Current)?;
        let was = configuration.software_write_protect();
        if was != protect {
            let page = configuration.with_software_write_protect(protect);
            self.mode_select(DeviceConfiguration::PAGE, &data.select(page.page()))?;
        }
        Ok(was)
    }

    /// MODE SELECT(10) of a parameter list with one page, by [`ModeData::select`]; not saved. Sent
    /// once: after a unit attention the caller decides anew.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn mode_select(&mut self, page: u8, list: &[u8]) -> Result<(), DriveError> {
        let asked = Asked::ModeSelect(page);
        let Ok(length) = u16::try_from(list.len()) else {
            return Err(DriveError::Unsendable {
                device: self.name().to_owned(),
                asked,
                source: PageError::TooMany {
                    structure: "bytes of mode pages",
                    limit: u16::MAX.into(),
                },
            });
        };
        let [high, low] = length.to_be_bytes();
        let cdb = [0x55, PAGE_FORMAT, 0, 0, 0, 0, 0, high, low, 0];
        self.run(&Command::changing(asked, &cdb, QUICK), Data::Out(list))
            .map(drop)
    }

    /// Who manages the encryption of an IBM drive: mode page 25h, else page 30h, subpage 20h.
    /// None where the drive has neither. Other makers' drives may have other pages under these
    /// codes, so ask only one whose vendor is `IBM`.
    ///
    /// # Errors
    ///
    /// [`DriveError`], where it is not that the drive does not have the page.
    pub fn ibm_encryption_method(&mut self) -> Result<Option<EncryptionMethod>, DriveError> {
        let (code, subpage) = EncryptionMethod::ATTRIBUTE_PAGE;
        match self.mode_sense(EncryptionMethod::PAGE, 0, ModeValues::Current) {
            Ok(data) => {
                if let Some(method) = EncryptionMethod::of_page(&data) {
                    return Ok(Some(method));
                }
            }
            Err(error) if error.is_unsupported() => {}
            Err(error) => return Err(error),
        }
        match self.mode_sense(code, subpage, ModeValues::Current) {
            Ok(data) => Ok(EncryptionMethod::of_attribute_page(&data)),
            Err(error) if error.is_unsupported() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The log pages that the drive has.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn log_pages(&mut self) -> Result<LogPageList, DriveError> {
        let bytes = self.log_sense(LogPageList::PAGE)?;
        LogPageList::decode(&bytes)
            .map_err(|source| self.odd(Asked::LogSense(LogPageList::PAGE), source))
    }

    /// TapeAlert flags from log page 12h, which leaves them up for others.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; unsupported on older drives.
    pub fn tape_alert_response(&mut self) -> Result<TapeAlerts, DriveError> {
        let bytes = self.log_sense(TapeAlerts::RESPONSE_PAGE)?;
        TapeAlerts::decode_response(&bytes)
            .map_err(|source| self.odd(Asked::LogSense(TapeAlerts::RESPONSE_PAGE), source))
    }

    /// TapeAlert flags from log page 2Eh. On many drives this takes them away from whoever asks
    /// next, a backup program for one.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn take_tape_alerts(&mut self) -> Result<TapeAlerts, DriveError> {
        let bytes = self.log_sense(TapeAlerts::PAGE)?;
        TapeAlerts::decode(&bytes)
            .map_err(|source| self.odd(Asked::LogSense(TapeAlerts::PAGE), source))
    }

    fn log_sense(&mut self, page: u8) -> Result<Vec<u8>, DriveError> {
        let cdb = |length: u32| {
            let [_, _, high, low] = length.to_be_bytes();
            [0x4d, 0, CUMULATIVE | page & 0x3f, 0, 0, 0, 0, high, low, 0]
        };
        self.read_page(Asked::LogSense(page), 4, MAX_LOG, cdb, |head| match head {
            [_, _, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => 0,
        })
    }

    /// READ POSITION, in the long form, else in the short one. Moves no tape.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; 02/3A where no cartridge is in.
    pub fn position(&mut self) -> Result<Position, DriveError> {
        let asked = Asked::ReadPosition;
        match self.read_exact::<{ Position::LONG_LEN }>(asked, &[0x34, 6, 0, 0, 0, 0, 0, 0, 0, 0]) {
            Ok(bytes) => Position::decode_long(&bytes).map_err(|source| self.odd(asked, source)),
            Err(error) if error.is_unsupported() => {
                let bytes: [u8; Position::SHORT_LEN] =
                    self.read_exact(asked, &[0x34, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
                Position::decode_short(&bytes).map_err(|source| self.odd(asked, source))
            }
            Err(error) => Err(error),
        }
    }

    /// LOAD: threads the cartridge that is in, and waits for it, minutes at times.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn load(&mut self) -> Result<(), DriveError> {
        let command = Command::changing(Asked::Load, &[0x1b, 0, 0, 0, 1, 0], WINDING);
        self.run(&command, Data::None).map(drop)
    }

    /// UNLOAD: rewinds and ejects the cartridge, and waits for it, minutes at times.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; 53/02 where somebody prevents it.
    pub fn unload(&mut self) -> Result<(), DriveError> {
        let command = Command::changing(Asked::Unload, &[0x1b, 0, 0, 0, 0, 0], WINDING);
        self.run(&command, Data::None).map(drop)
    }

    /// Keeps the cartridge in until [`Self::allow_removal`].
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn prevent_removal(&mut self) -> Result<(), DriveError> {
        let command = Command::changing(Asked::Prevent, &[0x1e, 0, 0, 0, 1, 0], QUICK);
        self.run(&command, Data::None).map(drop)
    }

    /// Lets the cartridge go again.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn allow_removal(&mut self) -> Result<(), DriveError> {
        let command = Command::changing(Asked::Allow, &[0x1e, 0, 0, 0, 0, 0], QUICK);
        self.run(&command, Data::None).map(drop)
    }
}

/// Which values of a mode page (PC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeValues {
    /// Those in force.
    Current,
    /// A mask of what can be changed.
    Changeable,
    /// Those of the factory.
    Default,
    /// Those that are in force after power on.
    Saved,
}

impl ModeValues {
    const fn code(self) -> u8 {
        match self {
            Self::Current => 0,
            Self::Changeable => 1,
            Self::Default => 2,
            Self::Saved => 3,
        }
    }
}

/// PF: the list has pages.
pub(super) const PAGE_FORMAT: u8 = 0x10;

/// PC: cumulative values.
const CUMULATIVE: u8 = 0x40;

/// Pages of a drive have some hundred bytes.
const MAX_MODE: usize = 4096;

/// 64 TapeAlert flags take 324 bytes.
const MAX_LOG: usize = 4096;
