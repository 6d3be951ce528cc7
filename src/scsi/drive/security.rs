//! SECURITY PROTOCOL IN and OUT: encryption.

use super::{Asked, Command, Drive, DriveError, QUICK};
use crate::scsi::{Data, Transport};
use crate::t10::{
    Capabilities, Cdb, DevicePublicKey, Direction, InPage, KeyFormats, ManagementCapabilities,
    NextBlock, OutPage, PageError, PageList, ProtocolList, RandomNumber, SecurityProtocol, Status,
};

impl<T: Transport> Drive<T> {
    /// The security protocols that the drive has: protocol 00h, page 0000h.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; unsupported where it has no SECURITY PROTOCOL IN at all.
    pub fn protocols(&mut self) -> Result<ProtocolList, DriveError> {
        let asked = Asked::SecurityIn(0x00, 0x0000);
        let cdb = |length| {
            Cdb {
                direction: Direction::In,
                protocol: SecurityProtocol::Information,
                page: 0x0000,
                length,
            }
            .encode()
        };
        let bytes = self.read_page(asked, 8, MAX_PROTOCOLS, cdb, |head| match head {
            [_, _, _, _, _, _, high, low, ..] => 8 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => 0,
        })?;
        ProtocolList::decode(&bytes).map_err(|source| self.odd(asked, source))
    }

    /// The pages that can be read, 0000h.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn pages_in(&mut self) -> Result<PageList, DriveError> {
        self.security_page(InPage::InSupport, PageList::decode_in)
    }

    /// The pages that can be sent, 0001h.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn pages_out(&mut self) -> Result<PageList, DriveError> {
        self.security_page(InPage::OutSupport, PageList::decode_out)
    }

    /// What encryption the drive can do, 0010h.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn capabilities(&mut self) -> Result<Capabilities, DriveError> {
        self.security_page(InPage::Capabilities, Capabilities::decode)
    }

    /// The forms in which the drive takes keys, 0011h.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn key_formats(&mut self) -> Result<KeyFormats, DriveError> {
        self.security_page(InPage::KeyFormats, KeyFormats::decode)
    }

    /// What else the drive can do with keys, 0012h.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn management_capabilities(&mut self) -> Result<ManagementCapabilities, DriveError> {
        self.security_page(InPage::Management, ManagementCapabilities::decode)
    }

    /// What the drive is set to do, 0020h.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn encryption_status(&mut self) -> Result<Status, DriveError> {
        self.security_page(InPage::Status, Status::decode)
    }

    /// What the block at the tape's position is, 0021h. Moves no tape.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn next_block(&mut self) -> Result<NextBlock, DriveError> {
        self.security_page(InPage::NextBlock, NextBlock::decode)
    }

    /// A random number of the drive's, 0030h.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn random_number(&mut self) -> Result<RandomNumber, DriveError> {
        self.security_page(InPage::Random, RandomNumber::decode)
    }

    /// The key that data keys for this drive are wrapped under, 0031h. Nothing vouches for it.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn wrapping_key(&mut self) -> Result<DevicePublicKey, DriveError> {
        self.security_page(InPage::PublicKey, DevicePublicKey::decode)
    }

    /// Sends a whole set data encryption page, 0010h, from where it lies: no copy of it is made
    /// here. Sent once: after a unit attention the caller decides anew.
    ///
    /// # Errors
    ///
    /// [`DriveError::Unsendable`] where the bytes are no such page, [`DriveError::Attention`] where
    /// something has changed, such as the cartridge, and the others.
    pub fn set_encryption(&mut self, page: &[u8]) -> Result<(), DriveError> {
        let code = OutPage::SetDataEncryption;
        let asked = Asked::SecurityOut(0x20, code.code().into());
        let length = whole(page, code.code().into()).map_err(|source| DriveError::Unsendable {
            device: self.name().to_owned(),
            asked,
            source,
        })?;
        let cdb = Cdb::write(code, length).encode();
        self.run(&Command::changing(asked, &cdb, QUICK), Data::Out(page))
            .map(drop)
    }

    fn security_page<P>(
        &mut self,
        page: InPage,
        decode: impl FnOnce(&[u8]) -> Result<P, PageError>,
    ) -> Result<P, DriveError> {
        let asked = Asked::SecurityIn(0x20, page.code().into());
        let cdb = |length| Cdb::read(page, length).encode();
        let bytes = self.read_page(asked, 4, MAX_PAGE, cdb, |head| {
            head.first_chunk::<4>().map_or(0, |head| {
                usize::try_from(Cdb::page_length(*head)).unwrap_or(usize::MAX)
            })
        })?;
        decode(&bytes).map_err(|source| self.odd(asked, source))
    }
}

/// The length of a page that says its own length right. What else it says is the drive's to judge.
fn whole(page: &[u8], expected: u16) -> Result<u32, PageError> {
    const STRUCTURE: &str = "set data encryption page";
    let Some([code0, code1, len0, len1]) = page.first_chunk::<4>().copied() else {
        return Err(PageError::Truncated {
            structure: STRUCTURE,
            missing: 4 - page.len(),
        });
    };
    let got = u16::from_be_bytes([code0, code1]);
    if got != expected {
        return Err(PageError::PageCode { expected, got });
    }
    let len = usize::from(u16::from_be_bytes([len0, len1])) + 4;
    match page.len() {
        shorter if shorter < len => Err(PageError::Truncated {
            structure: STRUCTURE,
            missing: len - shorter,
        }),
        longer if longer > len => Err(PageError::TrailingBytes {
            structure: STRUCTURE,
            got: longer - len,
        }),
        len => Ok(u32::try_from(len).unwrap_or(u32::MAX)),
    }
}

/// There are 256 protocols.
const MAX_PROTOCOLS: usize = 8 + 256;

/// Eight descriptors of 1024 bytes and their headers; capabilities and keys are far shorter.
const MAX_PAGE: usize = 16 * 1024;
