//! What a drive was asked, for messages.

use std::fmt;

use crate::t10::AttributeId;

/// A command with what it was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// INQUIRY.
    Inquiry,
    /// INQUIRY for a page of vital product data.
    VitalProductData(u8),
    /// TEST UNIT READY.
    TestUnitReady,
    /// SECURITY PROTOCOL IN: protocol and page.
    SecurityIn(u8, u16),
    /// SECURITY PROTOCOL OUT: protocol and page.
    SecurityOut(u8, u16),
    /// READ ATTRIBUTE, values from this attribute on.
    ReadAttribute(AttributeId),
    /// READ ATTRIBUTE, the identifiers of those that there are.
    AttributeList,
    /// READ ATTRIBUTE, the identifiers of those that the drive supports.
    SupportedAttributes,
    /// WRITE ATTRIBUTE, beginning with this one.
    WriteAttribute(AttributeId),
    /// LOG SENSE.
    LogSense(u8),
    /// MODE SENSE(10): page and subpage.
    ModeSense(u8, u8),
    /// MODE SELECT(10): page.
    ModeSelect(u8),
    /// READ POSITION.
    ReadPosition,
    /// LOAD UNLOAD with LOAD.
    Load,
    /// LOAD UNLOAD without LOAD.
    Unload,
    /// PREVENT ALLOW MEDIUM REMOVAL, prevent.
    Prevent,
    /// PREVENT ALLOW MEDIUM REMOVAL, allow.
    Allow,
    /// REWIND.
    Rewind,
    /// LOCATE, to that object.
    Locate(u64),
    /// SPACE.
    Space,
    /// READ.
    Read,
    /// WRITE.
    Write,
    /// WRITE FILEMARKS.
    WriteFilemark,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Inquiry => f.write_str("INQUIRY"),
            Self::VitalProductData(page) => {
                write!(f, "INQUIRY for page {page:02X}h")?;
                named(
                    f,
                    match page {
                        0x80 => "serial number",
                        0x83 => "device identification",
                        _ => "",
                    },
                )
            }
            Self::TestUnitReady => f.write_str("TEST UNIT READY"),
            Self::SecurityIn(protocol, page) => {
                write!(
                    f,
                    "SECURITY PROTOCOL IN for page {page:04X}h of protocol {protocol:02X}h"
                )?;
                named(
                    f,
                    match (protocol, page) {
                        (0x00, 0x0000) => "protocols",
                        (0x20, 0x0000 | 0x0001) => "pages",
                        (0x20, 0x0010) => "encryption capabilities",
                        (0x20, 0x0011) => "key formats",
                        (0x20, 0x0012) => "management capabilities",
                        (0x20, 0x0020) => "encryption status",
                        (0x20, 0x0021) => "next block's encryption status",
                        (0x20, 0x0030) => "random number",
                        (0x20, 0x0031) => "key wrapping public key",
                        _ => "",
                    },
                )
            }
            Self::SecurityOut(protocol, page) => {
                write!(
                    f,
                    "SECURITY PROTOCOL OUT with page {page:04X}h of protocol {protocol:02X}h"
                )?;
                named(
                    f,
                    if (protocol, page) == (0x20, 0x0010) {
                        "set data encryption"
                    } else {
                        ""
                    },
                )
            }
            Self::ReadAttribute(id) => {
                write!(f, "READ ATTRIBUTE {id}")?;
                named(
                    f,
                    match id {
                        AttributeId::SPACE_REMAINING => "space in cartridge memory",
                        AttributeId::FIRST_ENCRYPTED => "first encrypted block",
                        AttributeId::FIRST_UNENCRYPTED => "first unencrypted block",
                        AttributeId::MEDIUM_SERIAL => "medium serial number",
                        AttributeId::CAPACITY => "size of cartridge memory",
                        AttributeId::BARCODE => "barcode",
                        _ => "",
                    },
                )
            }
            Self::AttributeList => f.write_str("READ ATTRIBUTE for the list of attributes"),
            Self::SupportedAttributes => {
                f.write_str("READ ATTRIBUTE for the list of supported attributes")
            }
            Self::WriteAttribute(id) => write!(f, "WRITE ATTRIBUTE {id}"),
            Self::LogSense(page) => {
                write!(f, "LOG SENSE for page {page:02X}h")?;
                named(
                    f,
                    match page {
                        0x00 => "pages",
                        0x12 => "TapeAlert response",
                        0x2e => "TapeAlert",
                        _ => "",
                    },
                )
            }
            Self::ModeSense(page, subpage) => {
                write!(f, "MODE SENSE(10) for page {page:02X}h")?;
                if subpage != 0 {
                    write!(f, ", subpage {subpage:02X}h")?;
                }
                named(f, mode_page(page, subpage))
            }
            Self::ModeSelect(page) => {
                write!(f, "MODE SELECT(10) with page {page:02X}h")?;
                named(f, mode_page(page, 0))
            }
            Self::ReadPosition => f.write_str("READ POSITION"),
            Self::Load => f.write_str("LOAD"),
            Self::Unload => f.write_str("UNLOAD"),
            Self::Prevent => f.write_str("PREVENT MEDIUM REMOVAL"),
            Self::Allow => f.write_str("ALLOW MEDIUM REMOVAL"),
            Self::Rewind => f.write_str("REWIND"),
            Self::Locate(object) => write!(f, "LOCATE to object {object}"),
            Self::Space => f.write_str("SPACE"),
            Self::Read => f.write_str("READ"),
            Self::Write => f.write_str("WRITE"),
            Self::WriteFilemark => f.write_str("WRITE FILEMARKS"),
        }
    }
}

const fn mode_page(page: u8, subpage: u8) -> &'static str {
    match (page, subpage) {
        (0x10, 0) => "device configuration",
        (0x24, 0) => "IBM's vendor page",
        (0x25, 0) | (0x30, 0x20) => "IBM's encryption method",
        _ => "",
    }
}

fn named(f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    if name.is_empty() {
        return Ok(());
    }
    write!(f, " ({name})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_named() {
        for (asked, words) in [
            (
                Asked::SecurityIn(0x20, 0x31),
                "SECURITY PROTOCOL IN for page 0031h of protocol 20h (key wrapping public key)",
            ),
            (
                Asked::ModeSense(0x30, 0x20),
                "MODE SENSE(10) for page 30h, subpage 20h (IBM's encryption method)",
            ),
            (Asked::VitalProductData(0xb1), "INQUIRY for page B1h"),
            (
                Asked::ReadAttribute(AttributeId::BARCODE),
                "READ ATTRIBUTE 0806h (barcode)",
            ),
        ] {
            assert_eq!(asked.to_string(), words);
        }
    }
}
