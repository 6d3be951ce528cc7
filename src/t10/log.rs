//! Log pages: TapeAlert.

use std::collections::BTreeSet;

use super::{PageError, reader::Reader};

/// The TapeAlert flags that are up, by number, 1 to 64.
///
/// Two pages carry them. Reading page 2Eh takes the flags away from whoever reads it next, on many
/// drives; reading page 12h, of later drives, does not.
///
/// ```text
/// page 12h                                     page 2Eh
/// byte 0    PAGE CODE (5-0)                    byte 0    PAGE CODE (5-0)
///      1    SUBPAGE CODE                            1    SUBPAGE CODE
///      2-3  PAGE LENGTH                             2-3  PAGE LENGTH
///      4-5  PARAMETER CODE, 0000h                   4..  for each flag:
///      6    control                                      0-1  PARAMETER CODE: its number
///      7    PARAMETER LENGTH, 08h                        2    control
///      8-15 FLAG 01h (bit 7 of byte 8)                   3    PARAMETER LENGTH, 01h
///           to FLAG 40h (bit 0 of byte 15)               4    FLAG (0)
/// ```
///
/// Source: SSC-4, "TapeAlert log page" and "TapeAlert Response log page".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapeAlerts(pub BTreeSet<u8>);

impl TapeAlerts {
    /// The TapeAlert log page.
    pub const PAGE: u8 = 0x2e;
    /// The TapeAlert response log page.
    pub const RESPONSE_PAGE: u8 = 0x12;

    /// Reads page 2Eh.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut flags = BTreeSet::new();
        for_each_parameter(Self::PAGE, bytes, |code, value| {
            let set = value.first().is_some_and(|byte| byte & 1 == 1);
            if let (true, Ok(flag @ 1..=64)) = (set, u8::try_from(code)) {
                flags.insert(flag);
            }
        })?;
        Ok(Self(flags))
    }

    /// Reads page 12h.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page.
    pub fn decode_response(bytes: &[u8]) -> Result<Self, PageError> {
        let mut flags = BTreeSet::new();
        for_each_parameter(Self::RESPONSE_PAGE, bytes, |code, value| {
            if let (0, Some(bits)) = (code, value.first_chunk::<8>()) {
                let bits = u64::from_be_bytes(*bits);
                flags.extend((1..=64u8).filter(|flag| bits >> (64 - flag) & 1 == 1));
            }
        })?;
        Ok(Self(flags))
    }

    /// What a flag says, where it matters for encryption or for whoever looks after the drive.
    ///
    /// Source: SSC-4, "TapeAlert flags".
    pub const fn meaning(flag: u8) -> Option<&'static str> {
        Some(match flag {
            3 => "hard error",
            4 => "medium worn or damaged",
            5 => "read failure",
            6 => "write failure",
            7 => "medium at the end of its life",
            9 => "write to a protected cartridge",
            15 => "cartridge memory failure",
            20 => "clean now",
            21 => "clean soon",
            22 => "cleaning cartridge expired",
            30 | 31 => "drive hardware failure",
            47 => "encryption: the drive cannot reach its key manager",
            48 => "encryption: its key manager answered with an error",
            59 => "WORM cartridge failed its integrity check",
            60 => "WORM cartridge, overwrite attempted",
            61 => "encryption policy violation",
            _ => return None,
        })
    }
}

/// The pages that a drive has: log page 00h.
///
/// Source: SPC-4, "Supported Log Pages log page".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPageList(Vec<u8>);

impl LogPageList {
    /// The page's code.
    pub const PAGE: u8 = 0x00;

    /// Whether the drive has a page.
    pub fn contains(&self, page: u8) -> bool {
        self.0.contains(&page)
    }

    /// Reads the page.
    ///
    /// # Errors
    ///
    /// [`PageError`] where it is not this page.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut list = log_page("list of log pages", Self::PAGE, bytes)?;
        Ok(Self(list.rest().iter().map(|code| code & 0x3f).collect()))
    }
}

fn log_page<'a>(
    structure: &'static str,
    expected: u8,
    bytes: &'a [u8],
) -> Result<Reader<'a>, PageError> {
    let mut page = Reader::new(structure, bytes);
    let [code, _] = page.array()?;
    let got = code & 0x3f;
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

fn for_each_parameter(
    code: u8,
    bytes: &[u8],
    mut each: impl FnMut(u16, &[u8]),
) -> Result<(), PageError> {
    let mut page = log_page("TapeAlert log page", code, bytes)?;
    while !page.is_empty() {
        let code = page.u16()?;
        page.skip(1)?;
        let len = page.u8()?;
        each(code, page.take(usize::from(len))?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn flags_of_both_pages() {
        let mut page = vec![0x2e, 0, 1, 64];
        for flag in 1..=64 {
            page.extend([0, flag, 0x40, 1, u8::from([47, 61].contains(&flag))]);
        }
        let flags = TapeAlerts::decode(&page).unwrap();
        assert_eq!(flags.0, BTreeSet::from([47, 61]));

        let mut page = vec![0x12, 0, 0, 12, 0, 0, 0x40, 8];
        page.extend((1u64 << (64 - 47) | 1 << (64 - 61)).to_be_bytes());
        assert_eq!(TapeAlerts::decode_response(&page).unwrap(), flags);
        assert!(TapeAlerts::decode(&page).is_err());
        for flag in [47, 48, 61] {
            assert!(TapeAlerts::meaning(flag).unwrap().contains("encryption"));
        }
    }

    #[test]
    fn flags_beyond_the_standard_are_left_out() {
        let page = b"\x2e\0\0\x0f\0\x41\0\x01\x01\x01\x01\0\x01\x01\0\x2f\0\x01\x01";
        assert_eq!(TapeAlerts::decode(page).unwrap().0, BTreeSet::from([47]));
    }

    #[test]
    fn parameter_that_is_cut_is_refused() {
        assert!(matches!(
            TapeAlerts::decode(b"\x2e\0\0\x04\0\x01\0\x01"),
            Err(PageError::Truncated { missing: 1, .. })
        ));
    }

    #[test]
    fn lists_the_pages() {
        let list = LogPageList::decode(b"\0\0\0\x03\0\x12\x2e").unwrap();
        assert!(list.contains(0x2e) && !list.contains(0x11));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(mut bytes in vec(any::<u8>(), 4..80), code in 0usize..3) {
            bytes[0] = [0x00, 0x12, 0x2e][code];
            bytes[2] = 0;
            bytes[3] = u8::try_from(bytes.len() - 4).unwrap();
            let _ = (TapeAlerts::decode(&bytes), TapeAlerts::decode_response(&bytes));
            let _ = LogPageList::decode(&bytes);
        }
    }
}
