//! The random number page.

use super::{
    PageError,
    reader::{Reader, page},
};

/// A random number of the drive's, another at every read.
///
/// ```text
/// byte 0-1   page code, 0030h
///      2-3   page length, 0020h
///      4-35  random number
/// ```
///
/// Source: SSC-4, "Random Number page".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomNumber(pub [u8; 32]);

impl RandomNumber {
    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        page(PAGE_CODE, &self.0)
    }

    /// Reads the page.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut page = Reader::page("random number page", PAGE_CODE, bytes)?;
        let number = page.array()?;
        page.finish()?;
        Ok(Self(number))
    }
}

const PAGE_CODE: u16 = 0x0030;

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../../integration/golden/t10/spin-0030.bin");

    #[test]
    fn holds_thirty_two_bytes() {
        let number = RandomNumber([0xa5; 32]);
        assert_eq!(number.encode(), GOLDEN);
        assert_eq!(RandomNumber::decode(GOLDEN), Ok(number));
    }

    #[test]
    fn short_number_is_refused() {
        assert!(RandomNumber::decode(&page(PAGE_CODE, &[0; 31])).is_err());
        assert!(RandomNumber::decode(&page(PAGE_CODE, &[0; 33])).is_err());
    }
}
