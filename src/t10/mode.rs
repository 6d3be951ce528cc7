//! Mode pages: how a drive is set.

use std::fmt;

use super::{
    PageError,
    reader::{Reader, bit, is_set},
};

/// What MODE SENSE(10) brings: a header and pages.
///
/// ```text
/// byte 0-1  MODE DATA LENGTH: of what follows
///      2    MEDIUM TYPE
///      3    DEVICE-SPECIFIC PARAMETER: WP (7), BUFFERED MODE (6-4), SPEED (3-0)
///      4    LONGLBA (0)
///      6-7  BLOCK DESCRIPTOR LENGTH
///      8..  block descriptors, mode pages
/// ```
///
/// Source: SPC-4, "Mode parameter header formats"; SSC-4, "Device-specific parameter".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeData {
    /// MEDIUM TYPE.
    pub medium_type: u8,
    /// DEVICE-SPECIFIC PARAMETER.
    pub device_specific: u8,
    /// The pages, in the order in which they came.
    pub pages: Vec<ModePage>,
}

impl ModeData {
    /// Reads the data.
    ///
    /// # Errors
    ///
    /// [`PageError`] where its lengths do not fit.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let mut data = Reader::new(STRUCTURE, bytes);
        let len = data.u16()?;
        let mut body = data.sub(STRUCTURE, usize::from(len))?;
        data.finish()?;
        let [medium_type, device_specific] = body.array()?;
        body.skip(2)?;
        let descriptors = body.u16()?;
        body.skip(usize::from(descriptors))?;
        let mut pages = Vec::new();
        while !body.is_empty() {
            pages.push(ModePage::decode(&mut body)?);
        }
        Ok(Self {
            medium_type,
            device_specific,
            pages,
        })
    }

    /// The page with these codes; subpage 0 is the page without one.
    pub fn page(&self, code: u8, subpage: u8) -> Option<&ModePage> {
        self.pages
            .iter()
            .find(|page| page.code() == code && page.subpage() == subpage)
    }

    /// WP: the cartridge in the drive cannot be written.
    pub fn write_protected(&self) -> bool {
        is_set(self.device_specific, 7)
    }

    /// The parameter list of MODE SELECT(10) that sets one page and leaves the rest: the header
    /// of this data, without block descriptors, and the page without its PS bit.
    pub fn select(&self, page: &ModePage) -> Vec<u8> {
        // MODE DATA LENGTH is reserved here, and WP is not for a host to set.
        let mut list = vec![
            0,
            0,
            self.medium_type,
            self.device_specific & 0x7f,
            0,
            0,
            0,
            0,
        ];
        let start = list.len();
        list.extend(&page.0);
        if let Some(code) = list.get_mut(start) {
            *code &= 0x7f;
        }
        list
    }
}

/// One mode page, whole.
///
/// ```text
/// byte 0    PS (7), SPF (6) = 0, PAGE CODE (5-0)     byte 0    PS (7), SPF (6) = 1, PAGE CODE
///      1    PAGE LENGTH                                   1    SUBPAGE CODE
///      2..  parameters                                    2-3  PAGE LENGTH
///                                                         4..  parameters
/// ```
///
/// Source: SPC-4, "Mode page and subpage formats".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModePage(Vec<u8>);

impl ModePage {
    /// PAGE CODE.
    pub fn code(&self) -> u8 {
        self.byte(0) & 0x3f
    }

    /// SUBPAGE CODE, 0 where the page has none.
    pub fn subpage(&self) -> u8 {
        if is_set(self.byte(0), 6) {
            self.byte(1)
        } else {
            0
        }
    }

    /// PS: the drive keeps it where no power is.
    pub fn saveable(&self) -> bool {
        is_set(self.byte(0), 7)
    }

    /// The whole page.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A byte as the standard counts them, from the page code on; 0 where the page is shorter.
    fn byte(&self, at: usize) -> u8 {
        self.get(at).unwrap_or(0)
    }

    fn get(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn decode(list: &mut Reader<'_>) -> Result<Self, PageError> {
        let code = list.u8()?;
        let mut page = vec![code];
        let len = if is_set(code, 6) {
            page.push(list.u8()?);
            let len = list.u16()?;
            page.extend(len.to_be_bytes());
            usize::from(len)
        } else {
            let len = list.u8()?;
            page.push(len);
            usize::from(len)
        };
        page.extend(list.take(len)?);
        Ok(Self(page))
    }
}

/// The device configuration page, 10h, as far as it is about writing.
///
/// ```text
/// byte 10  SWP (2): software write protection, for every cartridge until it is taken away
///      15  ASOCWP (2), PERSWP (1), PRMWP (0): protection of the cartridge that is in
/// ```
///
/// Source: SSC-4, "Device Configuration mode page".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfiguration(ModePage);

impl DeviceConfiguration {
    /// The page's code.
    pub const PAGE: u8 = 0x10;

    /// SWP.
    pub fn software_write_protect(&self) -> bool {
        is_set(self.0.byte(SWP_BYTE), SWP_BIT)
    }

    /// The page with another SWP, and everything else as it is.
    #[must_use]
    pub fn with_software_write_protect(mut self, protect: bool) -> Self {
        if let Some(byte) = self.0.0.get_mut(SWP_BYTE) {
            *byte = *byte & !bit(true, SWP_BIT) | bit(protect, SWP_BIT);
        }
        self
    }

    /// PRMWP, PERSWP or ASOCWP: the cartridge is protected by its own marks.
    pub fn cartridge_protected(&self) -> bool {
        self.0.byte(15) & 0x07 != 0
    }

    /// Whether the drive can keep it where no power is (PS).
    pub fn saveable(&self) -> bool {
        self.0.saveable()
    }

    /// The page.
    pub fn page(&self) -> &ModePage {
        &self.0
    }
}

impl TryFrom<&ModeData> for DeviceConfiguration {
    type Error = PageError;

    fn try_from(data: &ModeData) -> Result<Self, PageError> {
        let page = data
            .page(Self::PAGE, 0)
            .ok_or_else(|| missing(Self::PAGE, data))?;
        if page.get(SWP_BYTE).is_none() {
            return Err(PageError::Truncated {
                structure: "device configuration mode page",
                missing: SWP_BYTE + 1 - page.0.len(),
            });
        }
        Ok(Self(page.clone()))
    }
}

/// Who manages the encryption of an IBM drive.
///
/// Source: LTFS, `is_ame` and lin_tape's interface; IBM's manuals are not public.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncryptionMethod {
    /// Nobody: no encryption.
    None,
    /// The host's system, by IBM's own key path.
    System,
    /// A control unit.
    Controller,
    /// An application on the host, by T10's pages: what `ekm` needs.
    Application,
    /// The library.
    Library,
    /// The drive itself.
    Internal,
    /// A mixture that was set up by hand.
    Custom,
    /// A code without meaning to us.
    Other(u8),
}

impl EncryptionMethod {
    /// The page that holds it, on IBM drives: byte 27.
    pub const PAGE: u8 = 0x25;
    /// The subpage of page 30h that holds it too: byte 5.
    pub const ATTRIBUTE_PAGE: (u8, u8) = (0x30, 0x20);

    /// What page 25h says.
    pub fn of_page(data: &ModeData) -> Option<Self> {
        Some(match data.page(Self::PAGE, 0)?.get(27)? {
            0x00 => Self::None,
            0x10 => Self::System,
            0x1f => Self::Controller,
            0x50 => Self::Application,
            0x60 => Self::Library,
            0x70 => Self::Internal,
            0xff => Self::Custom,
            code => Self::Other(code),
        })
    }

    /// What page 30h, subpage 20h, says. Of its codes only 03h, application, has been seen; the
    /// others are those that lin_tape gives the methods.
    pub fn of_attribute_page(data: &ModeData) -> Option<Self> {
        let (code, subpage) = Self::ATTRIBUTE_PAGE;
        Some(match data.page(code, subpage)?.get(5)? {
            0 => Self::None,
            1 => Self::Library,
            2 => Self::System,
            3 => Self::Application,
            4 => Self::Custom,
            code => Self::Other(code),
        })
    }
}

impl fmt::Display for EncryptionMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::System => "system managed",
            Self::Controller => "controller managed",
            Self::Application => "application managed",
            Self::Library => "library managed",
            Self::Internal => "internal",
            Self::Custom => "custom",
            Self::Other(code) => return write!(f, "unknown method {code:02X}h"),
        })
    }
}

fn missing(expected: u8, data: &ModeData) -> PageError {
    PageError::PageCode {
        expected: expected.into(),
        got: data.pages.first().map_or(0, |page| page.code().into()),
    }
}

const STRUCTURE: &str = "mode data";
const SWP_BYTE: usize = 10;
const SWP_BIT: u8 = 2;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// A device configuration page as an LTO drive has it, behind one block descriptor.
    fn configuration(swp: u8) -> Vec<u8> {
        let mut data = b"\0\x1e\0\x10\0\0\0\x08\x58\0\0\0\0\0\0\0\
            \x90\x0e\0\0\0\0\0\x64\x40\0\x18\0\0\0\x01\0"
            .to_vec();
        data[26] |= swp;
        data
    }

    #[test]
    fn swp_is_set_and_the_rest_stays() {
        let data = ModeData::decode(&configuration(0)).unwrap();
        let page = DeviceConfiguration::try_from(&data).unwrap();
        assert!(!page.software_write_protect() && page.saveable());
        let list = data.select(page.with_software_write_protect(true).page());
        let mut expected = b"\0\0\0\x10\0\0\0\0".to_vec();
        expected.extend(&configuration(4)[16..]);
        expected[8] &= 0x7f;
        assert_eq!(list, expected);

        let data = ModeData::decode(&configuration(4)).unwrap();
        let page = DeviceConfiguration::try_from(&data).unwrap();
        assert!(page.software_write_protect());
        let page = page.with_software_write_protect(false);
        assert!(!page.software_write_protect());
        assert_eq!(page.page().as_bytes()[10], 0x18);
    }

    #[test]
    fn method_of_an_ibm_drive() {
        for (code, method) in [
            (0x50, EncryptionMethod::Application),
            (0x60, EncryptionMethod::Library),
            (0x42, EncryptionMethod::Other(0x42)),
        ] {
            let mut data = vec![0, 38, 0, 0, 0, 0, 0, 0, 0x25, 30];
            data.extend([0; 30]);
            data[8 + 27] = code;
            let data = ModeData::decode(&data).unwrap();
            assert_eq!(EncryptionMethod::of_page(&data), Some(method));
            assert_eq!(EncryptionMethod::of_attribute_page(&data), None);
        }
    }

    #[test]
    fn subpages_are_told_from_pages() {
        let data = b"\0\x0e\0\0\0\0\0\0\x70\x20\0\x04\0\x03\x01\x01";
        let data = ModeData::decode(data).unwrap();
        assert!(data.page(0x30, 0).is_none());
        assert_eq!(
            EncryptionMethod::of_attribute_page(&data),
            Some(EncryptionMethod::Application)
        );
    }

    #[test]
    fn short_configuration_page_is_refused() {
        let data = ModeData::decode(b"\0\x0a\0\0\0\0\0\0\x10\x02\0\0").unwrap();
        assert!(matches!(
            DeviceConfiguration::try_from(&data),
            Err(PageError::Truncated { missing: 7, .. })
        ));
        let other = ModeData::decode(b"\0\x0a\0\0\0\0\0\0\x0f\x02\0\0").unwrap();
        assert!(matches!(
            DeviceConfiguration::try_from(&other),
            Err(PageError::PageCode { got: 0x0f, .. })
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(body in vec(any::<u8>(), 0..80)) {
            let mut bytes = u16::try_from(body.len()).unwrap().to_be_bytes().to_vec();
            bytes.extend(&body);
            if let Ok(data) = ModeData::decode(&bytes) {
                let _ = EncryptionMethod::of_page(&data);
                let _ = EncryptionMethod::of_attribute_page(&data);
                if let Ok(page) = DeviceConfiguration::try_from(&data) {
                    prop_assert!(page.with_software_write_protect(true).software_write_protect());
                }
            }
        }
    }
}
