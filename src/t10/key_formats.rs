//! The supported key formats page.

use std::fmt;

use super::{
    PageError,
    code::codes,
    reader::{Reader, page},
};

/// The forms in which a drive takes keys.
///
/// ```text
/// byte 0-1  page code, 0011h
///      2-3  page length
///      4..  KEY FORMATs, one byte each, ascending
/// ```
///
/// Source: SSC-4, "Supported Key Formats page".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFormats(Vec<KeyFormat>);

impl KeyFormats {
    /// The formats, in any order.
    pub fn new(formats: impl IntoIterator<Item = KeyFormat>) -> Self {
        let mut formats: Vec<_> = formats.into_iter().collect();
        formats.sort();
        formats.dedup();
        Self(formats)
    }

    /// The formats, ascending.
    pub fn as_slice(&self) -> &[KeyFormat] {
        &self.0
    }

    /// Whether the drive takes keys in this format.
    pub fn contains(&self, format: KeyFormat) -> bool {
        self.0.contains(&format)
    }

    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let codes: Vec<u8> = self.0.iter().map(|format| format.code()).collect();
        page(PAGE_CODE, &codes)
    }

    /// Reads the page, as a set: a known virtual drive lists 00h twice. Formats that we do not
    /// know are left out, since a drive may have more than we can use.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut page = Reader::page("key formats page", PAGE_CODE, bytes)?;
        let known = page
            .rest()
            .iter()
            .filter_map(|&code| KeyFormat::from_code(code).ok());
        Ok(Self::new(known))
    }
}

codes! {
    /// How a key is given to a drive (KEY FORMAT).
    KeyFormat, "KEY FORMAT" {
        /// In clear.
        Plain = 0x00,
        /// A vendor's reference to a key that the drive knows.
        Reference = 0x01,
        /// Wrapped by the public key of the device server.
        Wrapped = 0x02,
        /// Encapsulated by ESP-SCSI.
        Encapsulated = 0x03,
    }
}

impl fmt::Display for KeyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02X}h", self.code())
    }
}

const PAGE_CODE: u16 = 0x0011;

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::subsequence};

    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../../integration/golden/t10/spin-0011.bin");

    #[test]
    fn lists_plain_and_wrapped() {
        let formats = KeyFormats::new([KeyFormat::Wrapped, KeyFormat::Plain]);
        assert_eq!(formats.encode(), GOLDEN);
        assert_eq!(KeyFormats::decode(GOLDEN), Ok(formats));
    }

    #[test]
    fn doubled_format_counts_once() {
        let read = KeyFormats::decode(&[0, 0x11, 0, 2, 0, 0]).unwrap();
        assert_eq!(read.as_slice(), [KeyFormat::Plain]);
    }

    #[test]
    fn unknown_format_is_left_out() {
        let read = KeyFormats::decode(&[0, 0x11, 0, 2, 0, 0x80]).unwrap();
        assert_eq!(read.as_slice(), [KeyFormat::Plain]);
    }

    #[test]
    fn truncated_page_is_refused() {
        assert!(matches!(
            KeyFormats::decode(&GOLDEN[..5]),
            Err(PageError::Truncated { missing: 1, .. })
        ));
    }

    proptest! {
        #[test]
        fn round_trips(formats in subsequence(KeyFormat::ALL, 0..=4)) {
            let formats = KeyFormats::new(formats);
            prop_assert_eq!(KeyFormats::decode(&formats.encode()), Ok(formats));
        }
    }
}
