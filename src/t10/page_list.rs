//! The lists of what a drive supports.

use super::{
    InPage, OutPage, PageError, SecurityProtocol,
    reader::{Reader, length, page},
};

/// The page codes that a drive supports, for one direction.
///
/// ```text
/// byte 0-1  page code, 0000h for SPIN pages and 0001h for SPOUT pages
///      2-3  page length
///      4..  page codes, two bytes each, ascending
/// ```
///
/// Source: SSC-4, "Tape Data Encryption In Support page" and "... Out Support page".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageList {
    list: InPage,
    codes: Vec<u16>,
}

impl PageList {
    /// The pages that can be read.
    pub fn of_in(pages: &[InPage]) -> Self {
        Self::new(InPage::InSupport, pages.iter().map(|page| page.code()))
    }

    /// The pages that can be sent.
    pub fn of_out(pages: &[OutPage]) -> Self {
        Self::new(InPage::OutSupport, pages.iter().map(|page| page.code()))
    }

    fn new(list: InPage, codes: impl Iterator<Item = u8>) -> Self {
        let mut codes: Vec<u16> = codes.map(u16::from).collect();
        codes.sort_unstable();
        codes.dedup();
        Self { list, codes }
    }

    /// Whether this page can be read; always false of a list of SPOUT pages.
    pub fn can_read(&self, page: InPage) -> bool {
        self.list == InPage::InSupport && self.codes.contains(&page.code().into())
    }

    /// Whether this page can be sent; always false of a list of SPIN pages.
    pub fn can_write(&self, page: OutPage) -> bool {
        self.list == InPage::OutSupport && self.codes.contains(&page.code().into())
    }

    /// All codes, also those that we do not know.
    pub fn codes(&self) -> &[u16] {
        &self.codes
    }

    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let body: Vec<u8> = self
            .codes
            .iter()
            .flat_map(|code| code.to_be_bytes())
            .collect();
        page(self.list.code().into(), &body)
    }

    /// Reads the list of SPIN pages.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page.
    pub fn decode_in(bytes: &[u8]) -> Result<Self, PageError> {
        Self::decode(InPage::InSupport, bytes)
    }

    /// Reads the list of SPOUT pages.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page.
    pub fn decode_out(bytes: &[u8]) -> Result<Self, PageError> {
        Self::decode(InPage::OutSupport, bytes)
    }

    fn decode(list: InPage, bytes: &[u8]) -> Result<Self, PageError> {
        let mut page = Reader::page("list of pages", list.code().into(), bytes)?;
        let mut codes = Vec::new();
        while !page.is_empty() {
            codes.push(page.u16()?);
        }
        Ok(Self { list, codes })
    }
}

/// The security protocols that a drive supports: protocol 00h, page 0000h.
///
/// ```text
/// byte 0-5  reserved
///      6-7  list length
///      8..  SECURITY PROTOCOLs, one byte each, ascending
/// ```
///
/// Source: SPC-4, "Supported security protocols list".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolList(Vec<u8>);

impl ProtocolList {
    /// The protocols.
    pub fn new(protocols: &[SecurityProtocol]) -> Self {
        let mut codes: Vec<u8> = protocols.iter().map(|protocol| protocol.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        Self(codes)
    }

    /// Whether the drive has this protocol.
    pub fn contains(&self, protocol: SecurityProtocol) -> bool {
        self.0.contains(&protocol.code())
    }

    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let mut list = vec![0; 6];
        list.extend(length(&self.0).to_be_bytes());
        list.extend(&self.0);
        list
    }

    /// Reads the page.
    ///
    /// # Errors
    ///
    /// [`PageError`] where its length field does not fit.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut list = Reader::new("list of security protocols", bytes);
        list.skip(6)?;
        let len = list.u16()?;
        let codes = list.take(usize::from(len))?.to_vec();
        list.finish()?;
        Ok(Self(codes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN: &[u8] = include_bytes!("../../integration/golden/t10/spin-0000.bin");
    const OUT: &[u8] = include_bytes!("../../integration/golden/t10/spin-0001.bin");
    const PROTOCOLS: &[u8] = include_bytes!("../../integration/golden/t10/protocols.bin");

    #[test]
    fn lists_the_pages_that_can_be_read() {
        let list = PageList::of_in(InPage::ALL);
        assert_eq!(list.encode(), IN);
        assert_eq!(PageList::decode_in(IN), Ok(list.clone()));
        assert!(list.can_read(InPage::PublicKey));
        assert!(!list.can_write(OutPage::SetDataEncryption));
    }

    #[test]
    fn lists_the_pages_that_can_be_sent() {
        let list = PageList::of_out(OutPage::ALL);
        assert_eq!(list.encode(), OUT);
        assert_eq!(PageList::decode_out(OUT), Ok(list.clone()));
        assert!(list.can_write(OutPage::SetDataEncryption));
        assert!(!list.can_read(InPage::Capabilities));
    }

    #[test]
    fn list_for_the_other_direction_is_refused() {
        assert!(matches!(
            PageList::decode_in(OUT),
            Err(PageError::PageCode { got: 1, .. })
        ));
    }

    #[test]
    fn unknown_pages_are_kept() {
        let list = PageList::decode_in(&[0, 0, 0, 2, 0, 0x22]).unwrap();
        assert_eq!(list.codes(), [0x22]);
    }

    #[test]
    fn half_a_page_code_is_refused() {
        assert!(matches!(
            PageList::decode_in(&[0, 0, 0, 1, 0]),
            Err(PageError::Truncated { missing: 1, .. })
        ));
    }

    #[test]
    fn lists_the_protocols() {
        let list = ProtocolList::new(SecurityProtocol::ALL);
        assert_eq!(list.encode(), PROTOCOLS);
        assert_eq!(ProtocolList::decode(PROTOCOLS), Ok(list.clone()));
        assert!(list.contains(SecurityProtocol::TapeDataEncryption));
        assert!(ProtocolList::decode(&PROTOCOLS[..9]).is_err());
        assert!(ProtocolList::decode(&[PROTOCOLS, &[0]].concat()).is_err());
    }
}
