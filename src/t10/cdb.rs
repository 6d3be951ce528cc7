//! The command descriptor blocks of SECURITY PROTOCOL IN and OUT.

use super::{PageError, code::codes, reader::Reader};

/// A SECURITY PROTOCOL IN or OUT command.
///
/// ```text
/// byte 0    A2h in, B5h out
///      1    SECURITY PROTOCOL
///      2-3  SECURITY PROTOCOL SPECIFIC: the page code
///      4    INC_512 (bit 7), which tape drives want to be 0
///      5    reserved
///      6-9  ALLOCATION LENGTH (in) or TRANSFER LENGTH (out), in bytes
///      10   reserved
///      11   CONTROL
/// ```
///
/// Source: SPC-4, "SECURITY PROTOCOL IN command" and "SECURITY PROTOCOL OUT command".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb {
    /// Which way the data goes.
    pub direction: Direction,
    /// Whose page it is.
    pub protocol: SecurityProtocol,
    /// The code of the page.
    pub page: u16,
    /// How many bytes the initiator takes or sends.
    pub length: u32,
}

impl Cdb {
    /// The length of the block, in bytes.
    pub const LEN: usize = 12;

    /// Asks for a page of protocol 20h, at most `length` bytes of it.
    ///
    /// Some drives refuse a length that is longer than they expect, so ask for
    /// [`Self::HEADER_LEN`] bytes first and then for the length that those say.
    pub fn read(page: InPage, length: u32) -> Self {
        Self {
            direction: Direction::In,
            protocol: SecurityProtocol::TapeDataEncryption,
            page: page.code().into(),
            length,
        }
    }

    /// Sends a page of protocol 20h, `length` bytes of it.
    pub fn write(page: OutPage, length: u32) -> Self {
        Self {
            direction: Direction::Out,
            protocol: SecurityProtocol::TapeDataEncryption,
            page: page.code().into(),
            length,
        }
    }

    /// The bytes that say how long a page is: its code and its length field.
    pub const HEADER_LEN: u32 = 4;

    /// The whole length of a page that begins with `header`, in bytes.
    pub fn page_length(header: [u8; 4]) -> u32 {
        let [_, _, high, low] = header;
        Self::HEADER_LEN + u32::from(u16::from_be_bytes([high, low]))
    }

    /// The 12 bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let [page0, page1] = self.page.to_be_bytes();
        let [len0, len1, len2, len3] = self.length.to_be_bytes();
        [
            self.direction.code(),
            self.protocol.code(),
            page0,
            page1,
            0,
            0,
            len0,
            len1,
            len2,
            len3,
            0,
            0,
        ]
    }

    /// Reads a command as a drive does.
    ///
    /// # Errors
    ///
    /// [`PageError`] for another length, another operation, a protocol that tape encryption does
    /// not use, or a reserved bit (INC_512 and CONTROL among them) that is set.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut cdb = Reader::new("CDB", bytes);
        let operation = cdb.u8()?;
        let direction = Direction::from_code(operation)
            .map_err(|_| PageError::OperationCode { got: operation })?;
        let protocol = SecurityProtocol::from_code(cdb.u8()?)?;
        let page = cdb.u16()?;
        cdb.zeros(2)?;
        let length = cdb.u32()?;
        cdb.zeros(2)?;
        cdb.finish()?;
        Ok(Self {
            direction,
            protocol,
            page,
            length,
        })
    }
}

codes! {
    /// The operation code: which way the data goes.
    Direction, "OPERATION CODE" {
        /// SECURITY PROTOCOL IN, from the drive.
        In = 0xa2,
        /// SECURITY PROTOCOL OUT, to the drive.
        Out = 0xb5,
    }
}

codes! {
    /// The security protocols that tape encryption uses.
    SecurityProtocol, "SECURITY PROTOCOL" {
        /// What the drive supports.
        Information = 0x00,
        /// Tape data encryption.
        TapeDataEncryption = 0x20,
    }
}

codes! {
    /// The pages of SECURITY PROTOCOL IN, protocol 20h. All codes are below 100h.
    InPage, "page code" {
        /// The pages that can be read.
        InSupport = 0x00,
        /// The pages that can be sent.
        OutSupport = 0x01,
        /// Data encryption capabilities.
        Capabilities = 0x10,
        /// Supported key formats.
        KeyFormats = 0x11,
        /// Data encryption management capabilities.
        Management = 0x12,
        /// Data encryption status.
        Status = 0x20,
        /// Next block encryption status.
        NextBlock = 0x21,
        /// Random number.
        Random = 0x30,
        /// Device server key wrapping public key.
        PublicKey = 0x31,
    }
}

codes! {
    /// The pages of SECURITY PROTOCOL OUT, protocol 20h. All codes are below 100h.
    OutPage, "page code" {
        /// Set data encryption.
        SetDataEncryption = 0x10,
    }
}

impl TryFrom<u16> for InPage {
    type Error = PageError;

    fn try_from(code: u16) -> Result<Self, PageError> {
        page_from(code, Self::from_code)
    }
}

impl TryFrom<u16> for OutPage {
    type Error = PageError;

    fn try_from(code: u16) -> Result<Self, PageError> {
        page_from(code, Self::from_code)
    }
}

fn page_from<P>(
    code: u16,
    from_code: impl FnOnce(u8) -> Result<P, PageError>,
) -> Result<P, PageError> {
    let [high, low] = code.to_be_bytes();
    if high != 0 {
        return Err(PageError::Code {
            field: "page code (high byte)",
            got: high,
        });
    }
    from_code(low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn read_of_the_capabilities_page() {
        let cdb = Cdb::read(InPage::Capabilities, 4);
        assert_eq!(
            cdb.encode(),
            [0xa2, 0x20, 0x00, 0x10, 0, 0, 0, 0, 0, 4, 0, 0]
        );
        assert_eq!(Cdb::page_length([0x00, 0x10, 0x00, 0x28]), 44);
    }

    #[test]
    fn write_of_a_wrapped_key_page() {
        let cdb = Cdb::write(OutPage::SetDataEncryption, 0x13e);
        assert_eq!(
            cdb.encode(),
            [0xb5, 0x20, 0x00, 0x10, 0, 0, 0, 0, 1, 0x3e, 0, 0]
        );
    }

    #[test]
    fn inc_512_is_refused() {
        let mut bytes = Cdb::read(InPage::Status, 4).encode();
        bytes[4] = 0x80;
        assert_eq!(
            Cdb::decode(&bytes),
            Err(PageError::Reserved { structure: "CDB" })
        );
    }

    #[test]
    fn other_operation_is_refused() {
        let mut bytes = Cdb::read(InPage::Status, 4).encode();
        bytes[0] = 0x12;
        assert_eq!(
            Cdb::decode(&bytes),
            Err(PageError::OperationCode { got: 0x12 })
        );
    }

    #[test]
    fn truncated_cdb_is_refused() {
        let bytes = Cdb::read(InPage::Status, 4).encode();
        assert!(matches!(
            Cdb::decode(&bytes[..11]),
            Err(PageError::Truncated { .. })
        ));
    }

    #[test]
    fn page_code_of_two_bytes_is_refused() {
        assert!(InPage::try_from(0x0110).is_err());
        assert_eq!(InPage::try_from(0x0010), Ok(InPage::Capabilities));
        assert!(OutPage::try_from(0x0011).is_err());
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same(bytes: [u8; 12], page: u16, length: u32) {
            if let Ok(cdb) = Cdb::decode(&bytes) {
                prop_assert_eq!(cdb.encode(), bytes);
            }
            for &protocol in SecurityProtocol::ALL {
                for &direction in Direction::ALL {
                    let cdb = Cdb { direction, protocol, page, length };
                    prop_assert_eq!(Cdb::decode(&cdb.encode()), Ok(cdb));
                }
            }
        }
    }
}
