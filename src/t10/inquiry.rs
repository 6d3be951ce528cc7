//! Who a logical unit is: INQUIRY and its vital product data.

use super::{
    PageError,
    code::codes,
    reader::{Reader, length},
};
use crate::drive::Wwn;

/// Standard INQUIRY data, its first 36 bytes.
///
/// ```text
/// byte 0      PERIPHERAL QUALIFIER (7-5), PERIPHERAL DEVICE TYPE (4-0): 01h is a tape drive
///      1      RMB (7)
///      2      VERSION
///      3      RESPONSE DATA FORMAT (3-0)
///      4      ADDITIONAL LENGTH
///      8-15   T10 VENDOR IDENTIFICATION
///      16-31  PRODUCT IDENTIFICATION
///      32-35  PRODUCT REVISION LEVEL
/// ```
///
/// Source: SPC-4, "Standard INQUIRY data".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// PERIPHERAL DEVICE TYPE.
    pub device_type: u8,
    /// T10 VENDOR IDENTIFICATION, without trailing blanks.
    pub vendor: String,
    /// PRODUCT IDENTIFICATION, without trailing blanks.
    pub product: String,
    /// PRODUCT REVISION LEVEL: the firmware.
    pub revision: String,
}

impl Inquiry {
    /// The bytes that hold all of it.
    pub const LEN: u8 = 36;
    /// PERIPHERAL DEVICE TYPE of a tape drive.
    pub const TAPE: u8 = 0x01;

    /// Reads the data.
    ///
    /// # Errors
    ///
    /// [`PageError::Truncated`].
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut data = Reader::new("INQUIRY data", bytes);
        let device_type = data.u8()? & 0x1f;
        data.skip(7)?;
        Ok(Self {
            device_type,
            vendor: text(data.take(8)?),
            product: text(data.take(16)?),
            revision: text(data.take(4)?),
        })
    }

    /// The 36 bytes, of a unit with removable medium. Texts that are too long are cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut data = vec![self.device_type & 0x1f, 0x80, 0x06, 0x02, Self::LEN - 5];
        data.extend([0; 3]);
        for (text, len) in [(&self.vendor, 8), (&self.product, 16), (&self.revision, 4)] {
            data.extend(text.bytes().chain(std::iter::repeat(b' ')).take(len));
        }
        data
    }
}

/// A page of vital product data: what follows its header.
///
/// ```text
/// byte 0    PERIPHERAL QUALIFIER, PERIPHERAL DEVICE TYPE
///      1    PAGE CODE
///      2-3  PAGE LENGTH
/// ```
fn vital<'a>(
    structure: &'static str,
    expected: u8,
    bytes: &'a [u8],
) -> Result<Reader<'a>, PageError> {
    let mut page = Reader::new(structure, bytes);
    page.skip(1)?;
    let got = page.u8()?;
    if got != expected {
        return Err(PageError::PageCode {
            expected: expected.into(),
            got: got.into(),
        });
    }
    let len = page.u16()?;
    let body = page.sub(structure, usize::from(len))?;
    page.finish()?;
    Ok(body)
}

/// The unit serial number, VPD page 80h, without blanks around it.
///
/// Source: SPC-4, "Unit Serial Number VPD page".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitSerial(pub String);

impl UnitSerial {
    /// The page's code.
    pub const PAGE: u8 = 0x80;

    /// Reads the page.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut page = vital("unit serial number page", Self::PAGE, bytes)?;
        Ok(Self(text(page.rest())))
    }

    /// The page, of a tape drive.
    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![Inquiry::TAPE, Self::PAGE];
        page.extend(length(self.0.as_bytes()).to_be_bytes());
        page.extend(self.0.bytes());
        page
    }
}

/// The device identification VPD page, 83h.
///
/// ```text
/// byte 0    PROTOCOL IDENTIFIER (7-4), CODE SET (3-0)
///      1    PIV (7), ASSOCIATION (5-4), DESIGNATOR TYPE (3-0)
///      2    reserved
///      3    DESIGNATOR LENGTH
///      4..  DESIGNATOR
/// ```
///
/// Source: SPC-4, "Device Identification VPD page".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Designators(Vec<Designator>);

/// One designator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Designator {
    /// What it names; none for a code without meaning.
    pub association: Option<Association>,
    /// DESIGNATOR TYPE: 2h EUI-64, 3h NAA …
    pub kind: u8,
    /// The name.
    pub name: Vec<u8>,
}

codes! {
    /// What a designator names (ASSOCIATION).
    Association, "ASSOCIATION" {
        /// The logical unit.
        LogicalUnit = 0,
        /// The port by which it was asked.
        Port = 1,
        /// The device that the unit is in.
        Device = 2,
    }
}

impl Designators {
    /// The page's code.
    pub const PAGE: u8 = 0x83;

    /// Reads the page. Designators of types that we do not know are kept.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut page = vital("device identification page", Self::PAGE, bytes)?;
        let mut designators = Vec::new();
        while !page.is_empty() {
            page.skip(1)?;
            let kind = page.u8()?;
            page.skip(1)?;
            let len = page.u8()?;
            designators.push(Designator {
                association: Association::from_code(kind >> 4 & 3).ok(),
                kind: kind & 0x0f,
                name: page.take(usize::from(len))?.to_vec(),
            });
        }
        Ok(Self(designators))
    }

    /// All designators, in the order of the page.
    pub fn as_slice(&self) -> &[Designator] {
        &self.0
    }

    /// What names the logical unit in the label of a wrapped key: its first NAA of 8 bytes, else
    /// its first EUI-64 of 8 bytes.
    pub fn logical_unit(&self) -> Option<Wwn> {
        [NAA, EUI_64].into_iter().find_map(|kind| {
            self.0
                .iter()
                .filter(|one| one.association == Some(Association::LogicalUnit))
                .filter(|one| one.kind == kind)
                .find_map(|one| <[u8; 8]>::try_from(one.name.as_slice()).ok())
                .map(Wwn::from)
        })
    }

    /// The page, of a tape drive whose unit has one NAA.
    pub fn of_naa(naa: Wwn) -> Vec<u8> {
        let mut page = vec![Inquiry::TAPE, Self::PAGE, 0, 12, 0x01, NAA, 0, 8];
        page.extend(naa.as_bytes());
        page
    }
}

/// What is printable of an ASCII field, without blanks and zeros around it.
pub(super) fn text(field: &[u8]) -> String {
    let text: String = field
        .iter()
        .map(|&byte| match byte {
            0 => ' ',
            b' '..=b'~' => char::from(byte),
            _ => '?',
        })
        .collect();
    text.trim().to_owned()
}

const EUI_64: u8 = 2;
const NAA: u8 = 3;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// What sg_inq shows of an HP LTO-6, as its manual lays it out.
    const HP_LTO6: &[u8] = b"\x01\x80\x06\x02\x5b\0\x01\x30HP      Ultrium 6-SCSI  J3UZ";

    #[test]
    fn names_an_hp_lto6() {
        let inquiry = Inquiry::decode(HP_LTO6).unwrap();
        assert_eq!(inquiry.device_type, Inquiry::TAPE);
        assert_eq!(
            [&inquiry.vendor, &inquiry.product, &inquiry.revision],
            ["HP", "Ultrium 6-SCSI", "J3UZ"]
        );
        assert_eq!(inquiry.encode()[8..], HP_LTO6[8..]);
        assert!(Inquiry::decode(&HP_LTO6[..35]).is_err());
    }

    #[test]
    fn serial_loses_its_padding() {
        let page = b"\x01\x80\0\x0c  HUJ5485716";
        assert_eq!(UnitSerial::decode(page).unwrap().0, "HUJ5485716");
        let serial = UnitSerial("001013000123".to_owned());
        assert_eq!(UnitSerial::decode(&serial.encode()), Ok(serial));
        assert!(UnitSerial::decode(b"\x01\x83\0\0").is_err());
    }

    #[test]
    fn terminal_escapes_in_a_serial_are_not_kept() {
        assert_eq!(
            UnitSerial::decode(b"\x01\x80\0\x05A\x1b[2J").unwrap().0,
            "A?[2J"
        );
    }

    #[test]
    fn the_unit_is_named_by_its_own_naa() {
        let mut page = b"\x01\x83\0\x28\
            \x01\x13\0\x08PORT-NAA\
            \x02\x01\0\x04T10V\
            \x01\x03\0\x08UNIT-NAA\
            \x01\x23\0\x04DEVI"
            .to_vec();
        page[3] = u8::try_from(page.len() - 4).unwrap();
        let designators = Designators::decode(&page).unwrap();
        assert_eq!(designators.as_slice().len(), 4);
        assert_eq!(designators.logical_unit(), Some((*b"UNIT-NAA").into()));
        assert_eq!(
            Designators::decode(&Designators::of_naa((*b"UNIT-NAA").into()))
                .unwrap()
                .logical_unit(),
            Some((*b"UNIT-NAA").into())
        );
    }

    #[test]
    fn eui_64_names_a_unit_without_naa() {
        let page = b"\x01\x83\0\x0c\x01\x02\0\x08UNIT-EUI";
        let designators = Designators::decode(page).unwrap();
        assert_eq!(designators.logical_unit(), Some((*b"UNIT-EUI").into()));
        let none = Designators::decode(b"\x01\x83\0\x04\x02\x01\0\0").unwrap();
        assert_eq!(none.logical_unit(), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..80)) {
            let _ = (Inquiry::decode(&bytes), UnitSerial::decode(&bytes), Designators::decode(&bytes));
            let page = [&[1, 0x83, 0, u8::try_from(bytes.len()).unwrap()], &bytes[..]].concat();
            let _ = Designators::decode(&page);
        }
    }
}
