//! Software write protection that outlasts a reset.

use super::setting::{ModeValues, PAGE_FORMAT};
use super::{Asked, Command, Drive, DriveError, QUICK};
use crate::scsi::{Data, Transport};
use crate::t10::DeviceConfiguration;

/// SWP of the device configuration page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteProtection {
    /// What is in force; none where the drive has no such page.
    pub current: Option<bool>,
    /// What is in force after a reset; none where the drive saves nothing.
    pub saved: Option<bool>,
}

impl<T: Transport> Drive<T> {
    /// Software write protection, now and after a reset.
    ///
    /// # Errors
    ///
    /// [`DriveError`], where it is not that the drive has no such page or values.
    pub fn write_protection(&mut self) -> Result<WriteProtection, DriveError> {
        Ok(WriteProtection {
            current: self.swp(ModeValues::Current)?,
            saved: self.swp(ModeValues::Saved)?,
        })
    }

    fn swp(&mut self, values: ModeValues) -> Result<Option<bool>, DriveError> {
        match self.device_configuration(values) {
            Ok((_, page)) => Ok(Some(page.software_write_protect())),
            // 39/00: saving parameters not supported.
            Err(error)
                if error.is_unsupported()
                    || error.sense().is_some_and(|sense| sense.asc == 0x39) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Sets software write protection: the current value, and with `save` the saved one too (SP).
    /// Everything else of the page stays as it is. Sent once.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; unsupported where the drive has no such bit, or saves nothing.
    pub fn set_write_protection(&mut self, on: bool, save: bool) -> Result<(), DriveError> {
        let (data, configuration) = self.device_configuration(ModeValues::Current)?;
        let page = configuration.with_software_write_protect(on);
        let list = data.select(page.page());
        let [high, low] = u16::try_from(list.len()).unwrap_or(u16::MAX).to_be_bytes();
        let flags = PAGE_FORMAT | u8::from(save);
        let cdb = [0x55, flags, 0, 0, 0, 0, 0, high, low, 0];
        let asked = Asked::ModeSelect(DeviceConfiguration::PAGE);
        self.run(&Command::changing(asked, &cdb, QUICK), Data::Out(&list))
            .map(drop)
    }
}
