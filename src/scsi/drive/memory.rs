//! READ and WRITE ATTRIBUTE: cartridge memory.

use super::{Asked, Command, Drive, DriveError, QUICK};
use crate::scsi::{Data, Transport};
use crate::t10::{Attribute, AttributeId, AttributeList, Attributes, PageError};

impl<T: Transport> Drive<T> {
    /// The value of one attribute; none where the cartridge does not have it.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; unsupported where the drive does not know the attribute or the command.
    pub fn attribute(&mut self, id: AttributeId) -> Result<Option<Attribute>, DriveError> {
        let asked = Asked::ReadAttribute(id);
        let cdb = |length| read_attribute(VALUES, id, length);
        let head = self.read_some(asked, HEAD_LEN, cdb)?;
        let Some(size) = head.first_chunk::<4>() else {
            return Err(self.truncated(asked, 4 - head.len()));
        };
        if list_end(size) < HEAD_LEN {
            return Ok(None);
        }
        let Ok([_, _, _, _, id0, id1, _, len0, len1]) = <[u8; HEAD_LEN]>::try_from(head.as_slice())
        else {
            return Err(self.truncated(asked, HEAD_LEN - head.len()));
        };
        if AttributeId(u16::from_be_bytes([id0, id1])) != id {
            return Ok(None);
        }
        let len = HEAD_LEN + usize::from(u16::from_be_bytes([len0, len1]));
        if len > MAX_VALUE {
            return Err(DriveError::TooLong {
                device: self.name().to_owned(),
                asked,
                got: len,
                limit: MAX_VALUE,
            });
        }
        let mut list = self.read_some(asked, len, cdb)?;
        // The list goes on behind the allocation length; what is here is all of it to us.
        let size = u32::try_from(list.len().saturating_sub(4)).unwrap_or(u32::MAX);
        if let Some(field) = list.first_chunk_mut::<4>() {
            *field = size.to_be_bytes();
        }
        let read = Attributes::decode(&list).map_err(|source| self.odd(asked, source))?;
        Ok(read.0.into_iter().find(|attribute| attribute.id == id))
    }

    /// All attributes from this one on, with their values.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn attributes_from(&mut self, first: AttributeId) -> Result<Attributes, DriveError> {
        let asked = Asked::ReadAttribute(first);
        let cdb = |length| read_attribute(VALUES, first, length);
        let bytes = self.read_page(asked, 4, MAX_LIST, cdb, list_end)?;
        Attributes::decode(&bytes).map_err(|source| self.odd(asked, source))
    }

    /// The identifiers of the attributes that the cartridge has.
    ///
    /// # Errors
    ///
    /// [`DriveError`].
    pub fn attribute_list(&mut self) -> Result<AttributeList, DriveError> {
        self.identifiers(Asked::AttributeList, LIST)
    }

    /// The identifiers of the attributes that the drive can keep.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; unsupported on drives that are older than the question.
    pub fn supported_attributes(&mut self) -> Result<AttributeList, DriveError> {
        self.identifiers(Asked::SupportedAttributes, SUPPORTED)
    }

    fn identifiers(&mut self, asked: Asked, action: u8) -> Result<AttributeList, DriveError> {
        let cdb = |length| read_attribute(action, AttributeId(0), length);
        let bytes = self.read_page(asked, 4, MAX_LIST, cdb, list_end)?;
        AttributeList::decode(&bytes).map_err(|source| self.odd(asked, source))
    }

    /// Writes attributes, ascending; an empty value takes one away. Written through to the
    /// cartridge before it answers. Sent once: after a unit attention the caller decides anew.
    ///
    /// # Errors
    ///
    /// [`DriveError`]; 55/06 where the memory is full. The drive writes all of them or none.
    pub fn write_attributes(&mut self, attributes: &Attributes) -> Result<(), DriveError> {
        let first = attributes
            .0
            .first()
            .map_or(AttributeId(0), |attribute| attribute.id);
        let asked = Asked::WriteAttribute(first);
        let list = attributes.encode();
        if list.len() > MAX_LIST {
            return Err(DriveError::Unsendable {
                device: self.name().to_owned(),
                asked,
                source: PageError::TooMany {
                    structure: "bytes of attributes",
                    limit: MAX_LIST,
                },
            });
        }
        let [len0, len1, len2, len3] = u32::try_from(list.len()).unwrap_or(u32::MAX).to_be_bytes();
        let cdb = [
            0x8d,
            WRITE_THROUGH,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            len0,
            len1,
            len2,
            len3,
            0,
            0,
        ];
        self.run(&Command::changing(asked, &cdb, QUICK), Data::Out(&list))
            .map(drop)
    }
}

/// READ ATTRIBUTE of the whole volume, partition 0.
///
/// ```text
/// byte 0      8Ch
///      1      SERVICE ACTION (4-0)
///      5      LOGICAL VOLUME NUMBER
///      7      PARTITION NUMBER
///      8-9    FIRST ATTRIBUTE IDENTIFIER
///      10-13  ALLOCATION LENGTH
/// ```
///
/// Source: SPC-4, "READ ATTRIBUTE command".
fn read_attribute(action: u8, first: AttributeId, length: u32) -> [u8; 16] {
    let [id0, id1] = first.0.to_be_bytes();
    let [len0, len1, len2, len3] = length.to_be_bytes();
    [
        0x8c, action, 0, 0, 0, 0, 0, 0, id0, id1, len0, len1, len2, len3, 0, 0,
    ]
}

/// Where a list ends.
fn list_end(head: &[u8]) -> usize {
    head.first_chunk::<4>().map_or(0, |size| {
        usize::try_from(u32::from_be_bytes(*size))
            .unwrap_or(usize::MAX)
            .saturating_add(4)
    })
}

const VALUES: u8 = 0x00;
const LIST: u8 = 0x01;
const SUPPORTED: u8 = 0x05;

/// WTC: written to the cartridge, not to the drive's copy of its memory.
const WRITE_THROUGH: u8 = 0x01;

/// The length of a list, and the header of its first attribute.
const HEAD_LEN: usize = 4 + Attribute::HEADER_LEN;

/// The longest attribute, EEDKs among them, is shorter.
const MAX_VALUE: usize = HEAD_LEN + 8192;

/// The largest cartridge memory is 32 KiB.
const MAX_LIST: usize = 64 * 1024;
