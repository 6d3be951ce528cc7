//! Cartridge memory (MAM): its attributes, as READ and WRITE ATTRIBUTE carry them.

use std::fmt;

use super::{
    PageError,
    code::codes,
    inquiry::text,
    reader::{Reader, bit, is_set, length},
};

/// The identifier of an attribute.
///
/// ```text
/// 0000-03FF  device               0400-07FF  medium               0800-0BFF  host
/// 0C00-0FFF  device, vendor's     1000-13FF  medium, vendor's     1400-17FF  host, vendor's
/// ```
///
/// Source: SPC-4, "MAM attributes".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributeId(pub u16);

impl AttributeId {
    /// MAM SPACE REMAINING, bytes.
    pub const SPACE_REMAINING: Self = Self(0x0004);
    /// FIRST ENCRYPTED LOGICAL OBJECT IDENTIFIER(S).
    pub const FIRST_ENCRYPTED: Self = Self(0x0224);
    /// FIRST UNENCRYPTED LOGICAL OBJECT IDENTIFIER after the first encrypted one.
    pub const FIRST_UNENCRYPTED: Self = Self(0x0225);
    /// MEDIUM SERIAL NUMBER.
    pub const MEDIUM_SERIAL: Self = Self(0x0401);
    /// MAM CAPACITY, bytes.
    pub const CAPACITY: Self = Self(0x0407);
    /// BARCODE: the volume serial on the label, as software has written it.
    pub const BARCODE: Self = Self(0x0806);

    /// Whether software on a host may write it.
    pub const fn is_of_host(self) -> bool {
        matches!(self.0, 0x0800..=0x0bff | 0x1400..=0x17ff)
    }
}

impl fmt::Display for AttributeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04X}h", self.0)
    }
}

codes! {
    /// How an attribute's value is to be read (FORMAT).
    AttributeFormat, "FORMAT" {
        /// Bytes, or a number.
        Binary = 0,
        /// ASCII.
        Ascii = 1,
        /// Text in the character set that attribute 0805h names.
        Text = 2,
    }
}

/// One attribute with its value.
///
/// ```text
/// byte 0-1  ATTRIBUTE IDENTIFIER
///      2    READ ONLY (7), FORMAT (1-0)
///      3-4  ATTRIBUTE LENGTH
///      5..  ATTRIBUTE VALUE
/// ```
///
/// Source: SPC-4, "MAM attribute format".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Which one.
    pub id: AttributeId,
    /// READ ONLY: a host cannot write it.
    pub read_only: bool,
    /// How its value is to be read.
    pub format: AttributeFormat,
    /// Its value.
    pub value: Vec<u8>,
}

impl Attribute {
    /// The bytes before the value.
    pub const HEADER_LEN: usize = 5;

    /// An attribute to be written. An empty value takes it away.
    pub const fn new(id: AttributeId, format: AttributeFormat, value: Vec<u8>) -> Self {
        Self {
            id,
            read_only: false,
            format,
            value,
        }
    }

    /// The value as a number, where it has 1 to 8 bytes.
    pub fn number(&self) -> Option<u64> {
        if self.value.is_empty() || self.value.len() > 8 {
            return None;
        }
        Some(
            self.value
                .iter()
                .fold(0, |number, &byte| number << 8 | u64::from(byte)),
        )
    }

    /// The value as text, without blanks around it; what is not printable ASCII as `?`.
    pub fn text(&self) -> String {
        text(&self.value)
    }

    fn decode(list: &mut Reader<'_>) -> Result<Self, PageError> {
        let id = AttributeId(list.u16()?);
        let flags = list.u8()?;
        let len = list.u16()?;
        Ok(Self {
            id,
            read_only: is_set(flags, 7),
            format: AttributeFormat::from_code(flags & 3)?,
            value: list.take(usize::from(len))?.to_vec(),
        })
    }
}

/// The attributes of a cartridge memory, with their values.
///
/// ```text
/// byte 0-3  AVAILABLE DATA or PARAMETER DATA LENGTH: of what follows
///      4..  attributes, ascending
/// ```
///
/// Source: SPC-4, "READ ATTRIBUTE command", ATTRIBUTE VALUES, and "WRITE ATTRIBUTE command".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(pub Vec<Attribute>);

impl Attributes {
    /// The attribute with an identifier.
    pub fn of(&self, id: AttributeId) -> Option<&Attribute> {
        self.0.iter().find(|attribute| attribute.id == id)
    }

    /// Reads the list.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it ends within an attribute.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut list = sized("list of attributes", bytes)?;
        let mut attributes = Vec::new();
        while !list.is_empty() {
            attributes.push(Attribute::decode(&mut list)?);
        }
        Ok(Self(attributes))
    }

    /// The list.
    pub fn encode(&self) -> Vec<u8> {
        let mut list = vec![0; 4];
        for attribute in &self.0 {
            list.extend(attribute.id.0.to_be_bytes());
            list.push(bit(attribute.read_only, 7) | attribute.format.code());
            list.extend(length(&attribute.value).to_be_bytes());
            list.extend(&attribute.value);
        }
        set_size(&mut list);
        list
    }
}

/// Identifiers of attributes: those that there are, or those that the drive supports.
///
/// ```text
/// byte 0-3  AVAILABLE DATA: of what follows
///      4..  ATTRIBUTE IDENTIFIERs, two bytes each, ascending
/// ```
///
/// Source: SPC-4, "READ ATTRIBUTE command", ATTRIBUTE LIST and SUPPORTED ATTRIBUTES.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttributeList(pub Vec<AttributeId>);

impl AttributeList {
    /// Whether an identifier is in the list.
    pub fn contains(&self, id: AttributeId) -> bool {
        self.0.contains(&id)
    }

    /// Reads the list.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it ends within an identifier.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut list = sized("list of attribute identifiers", bytes)?;
        let mut ids = Vec::new();
        while !list.is_empty() {
            ids.push(AttributeId(list.u16()?));
        }
        Ok(Self(ids))
    }

    /// The list.
    pub fn encode(&self) -> Vec<u8> {
        let mut list = vec![0; 4];
        list.extend(self.0.iter().flat_map(|id| id.0.to_be_bytes()));
        set_size(&mut list);
        list
    }
}

fn sized<'a>(structure: &'static str, bytes: &'a [u8]) -> Result<Reader<'a>, PageError> {
    let mut list = Reader::new(structure, bytes);
    let len = usize::try_from(list.u32()?).unwrap_or(usize::MAX);
    let body = list.sub(structure, len)?;
    list.finish()?;
    Ok(body)
}

fn set_size(list: &mut [u8]) {
    let size = u32::try_from(list.len().saturating_sub(4)).unwrap_or(u32::MAX);
    if let Some(field) = list.first_chunk_mut::<4>() {
        *field = size.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn reads_a_barcode_and_the_space_left() {
        let list = b"\0\0\0\x32\
            \x00\x04\x80\0\x08\0\0\0\0\0\0\x03\xf6\
            \x08\x06\x01\0\x20A00001L6                        ";
        let read = Attributes::decode(list).unwrap();
        assert_eq!(
            read.of(AttributeId::SPACE_REMAINING).unwrap().number(),
            Some(1014)
        );
        let barcode = read.of(AttributeId::BARCODE).unwrap();
        assert_eq!(barcode.text(), "A00001L6");
        assert_eq!(barcode.format, AttributeFormat::Ascii);
        assert!(!barcode.read_only && barcode.id.is_of_host());
        assert_eq!(read.encode(), list);
    }

    #[test]
    fn list_that_ends_within_an_attribute_is_refused() {
        assert!(matches!(
            Attributes::decode(b"\0\0\0\x06\x08\x06\x01\0\x20A"),
            Err(PageError::Truncated { missing: 31, .. })
        ));
        assert!(Attributes::decode(b"\xff\xff\xff\xff").is_err());
        assert!(AttributeList::decode(b"\0\0\0\x01\x08").is_err());
    }

    #[test]
    fn long_values_are_no_numbers() {
        let attribute = |len| {
            Attribute::new(
                AttributeId(0x1400),
                AttributeFormat::Binary,
                vec![0xff; len],
            )
        };
        assert_eq!(attribute(0).number(), None);
        assert_eq!(attribute(8).number(), Some(u64::MAX));
        assert_eq!(attribute(9).number(), None);
    }

    proptest! {
        #[test]
        fn what_decodes_round_trips(body in vec(any::<u8>(), 0..64)) {
            let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
            bytes.extend(&body);
            if let Ok(read) = Attributes::decode(&bytes) {
                prop_assert_eq!(Attributes::decode(&read.encode()), Ok(read));
            }
            if let Ok(read) = AttributeList::decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes);
            }
        }
    }
}
