//! What additional sense codes mean to who runs the drive, and what he can do.
//!
//! Source: SPC-4, "ASC and ASCQ assignments"; codes 74/80 and 74/82 as HP's tools name them.

use super::ibm;

/// One additional sense code with its qualifier.
#[derive(Clone, Copy, Debug)]
pub(super) struct Code {
    asc: u8,
    ascq: u8,
    /// What it says.
    pub(super) meaning: &'static str,
    /// What can be done, where that is not plain.
    pub(super) advice: Option<&'static str>,
}

impl Code {
    pub(super) const fn new(asc: u8, ascq: u8, meaning: &'static str) -> Self {
        Self {
            asc,
            ascq,
            meaning,
            advice: None,
        }
    }

    pub(super) const fn advise(self, advice: &'static str) -> Self {
        Self {
            advice: Some(advice),
            ..self
        }
    }
}

/// The row of a code.
pub(super) fn find(asc: u8, ascq: u8) -> Option<&'static Code> {
    [CODES, ibm::CODES]
        .into_iter()
        .flatten()
        .find(|code| (code.asc, code.ascq) == (asc, ascq))
}

/// How a drive is freed from a library's or a manager's control.
pub(super) const LIBRARY_MANAGED: &str = "the drive takes no keys from a host; set its encryption \
    method to application-managed at the library (IBM: Modify Encryption Method), or have the \
    maker's service do so where the drive has left its library";

const KEY_MANAGER: &str = "the drive asked a key manager through its library, not this host; look at the library's \
     encryption settings, or make the drive application-managed";

const OTHER_KEY: &str = "the drive has another key than the block was written with; set the key \
    that the block names";

const WAIT: &str = "wait until the drive has loaded, and try again";

const CODES: &[Code] = &[
    Code::new(0x00, 0x00, "no further information"),
    Code::new(0x00, 0x01, "filemark detected"),
    Code::new(0x00, 0x02, "end of partition or medium detected"),
    Code::new(0x00, 0x04, "beginning of partition or medium detected"),
    Code::new(0x00, 0x05, "end of data detected"),
    Code::new(0x00, 0x16, "operation in progress").advise("wait until it has ended, and try again"),
    Code::new(0x00, 0x17, "cleaning requested").advise("put a cleaning cartridge in"),
    Code::new(0x04, 0x00, "not ready, cause not reportable"),
    Code::new(0x04, 0x01, "becoming ready").advise(WAIT),
    Code::new(0x04, 0x02, "a cartridge is in, but not loaded")
        .advise("load it (mt load), or take it out"),
    Code::new(0x04, 0x03, "manual intervention required").advise("look at the drive's panel"),
    Code::new(0x04, 0x07, "not ready, operation in progress").advise(WAIT),
    Code::new(0x04, 0x09, "not ready, self-test in progress").advise(WAIT),
    Code::new(0x04, 0x12, "not ready, offline").advise("set the drive online at its library"),
    Code::new(0x04, 0x13, "not ready, SA creation in progress").advise(WAIT),
    Code::new(0x08, 0x00, "communication failure"),
    Code::new(0x0b, 0x01, "temperature exceeded").advise("look at the drive's cooling"),
    Code::new(0x0c, 0x00, "write error"),
    Code::new(0x0c, 0x0b, "cartridge memory write error")
        .advise("what was written there may be damaged; read it back"),
    Code::new(0x11, 0x00, "unrecovered read error"),
    Code::new(0x11, 0x12, "cartridge memory read error").advise("clean the drive, or try another"),
    Code::new(0x14, 0x00, "recorded entity not found"),
    Code::new(0x14, 0x01, "record not found"),
    Code::new(0x1a, 0x00, "parameter list length error"),
    Code::new(0x20, 0x00, "invalid command operation code"),
    Code::new(0x20, 0x02, "no access rights"),
    Code::new(0x24, 0x00, "invalid field in CDB"),
    Code::new(0x25, 0x00, "logical unit not supported"),
    Code::new(0x26, 0x00, "invalid field in parameter list"),
    Code::new(0x26, 0x01, "parameter not supported"),
    Code::new(0x26, 0x02, "parameter value invalid"),
    Code::new(0x26, 0x04, "invalid release of persistent reservation"),
    Code::new(0x26, 0x10, "data decryption key fail limit reached")
        .advise("too many wrong keys were tried; take the cartridge out and put it in again"),
    Code::new(0x26, 0x11, "incomplete key-associated data set")
        .advise("the key must come with the descriptors that the drive asks for"),
    Code::new(0x26, 0x12, "vendor specific key reference not found"),
    Code::new(0x27, 0x00, "write protected").advise("look at the cartridge's switch"),
    Code::new(0x27, 0x02, "logical unit software write protected")
        .advise("SWP is set in its device configuration page"),
    Code::new(0x28, 0x00, "medium may have changed")
        .advise("a cartridge was put in; what was known of the last one no longer holds"),
    Code::new(0x29, 0x00, "power on, reset or bus device reset"),
    Code::new(0x29, 0x01, "power on"),
    Code::new(0x29, 0x02, "bus reset"),
    Code::new(0x29, 0x03, "bus device reset"),
    Code::new(0x29, 0x04, "device internal reset"),
    Code::new(0x29, 0x07, "I_T nexus loss"),
    Code::new(0x2a, 0x00, "parameters changed"),
    Code::new(0x2a, 0x01, "mode parameters changed"),
    Code::new(0x2a, 0x02, "log parameters changed"),
    Code::new(0x2a, 0x03, "reservations preempted"),
    Code::new(0x2a, 0x04, "reservations released"),
    Code::new(0x2a, 0x05, "registrations preempted"),
    Code::new(0x2a, 0x0d, "data encryption capabilities changed"),
    Code::new(0x2a, 0x10, "timestamp changed"),
    Code::new(
        0x2a,
        0x11,
        "data encryption parameters changed by another host",
    )
    .advise("another host shares this drive and sets keys; only one may"),
    Code::new(
        0x2a,
        0x12,
        "data encryption parameters changed by the drive",
    )
    .advise("the key was cleared, as at a demount; it must be set again"),
    Code::new(0x2a, 0x13, "data encryption key instance counter changed")
        .advise("the key is no longer the one that was locked; set it again"),
    Code::new(0x2a, 0x14, "SA creation capabilities changed"),
    Code::new(0x2c, 0x00, "command sequence error"),
    Code::new(0x2c, 0x0b, "not reserved"),
    Code::new(0x2f, 0x00, "commands cleared by another initiator"),
    Code::new(0x30, 0x00, "incompatible medium installed"),
    Code::new(0x30, 0x01, "cannot read medium, unknown format"),
    Code::new(0x30, 0x02, "cannot read medium, incompatible format"),
    Code::new(0x30, 0x03, "cleaning cartridge installed"),
    Code::new(0x30, 0x05, "cannot write medium, incompatible format"),
    Code::new(0x30, 0x07, "cleaning failure"),
    Code::new(0x30, 0x0c, "WORM medium, overwrite attempted"),
    Code::new(0x30, 0x0d, "WORM medium, integrity check"),
    Code::new(0x31, 0x00, "medium format corrupted"),
    Code::new(0x37, 0x00, "rounded parameter"),
    Code::new(0x39, 0x00, "saving parameters not supported"),
    Code::new(0x3a, 0x00, "medium not present").advise("put a cartridge in"),
    Code::new(0x3a, 0x04, "medium not present, but its memory can be read")
        .advise("load the cartridge"),
    Code::new(0x3b, 0x00, "sequential positioning error"),
    Code::new(0x3e, 0x00, "logical unit not configured yet").advise(WAIT),
    Code::new(0x3f, 0x01, "microcode has been changed"),
    Code::new(0x3f, 0x03, "inquiry data has changed"),
    Code::new(0x3f, 0x0e, "reported LUNs have changed"),
    Code::new(0x40, 0x00, "diagnostic failure").advise("the drive needs service"),
    Code::new(0x44, 0x00, "internal target failure")
        .advise("switch the drive off and on; where that does not help it needs service"),
    Code::new(0x4e, 0x00, "overlapped commands attempted"),
    Code::new(0x50, 0x01, "write append position error"),
    Code::new(0x51, 0x00, "erase failure"),
    Code::new(0x52, 0x00, "cartridge fault"),
    Code::new(0x53, 0x00, "load or eject failed").advise("look at the drive's panel"),
    Code::new(0x53, 0x02, "medium removal prevented")
        .advise("whoever holds the drive must let the cartridge go (sg_prevent --allow)"),
    Code::new(0x55, 0x03, "insufficient resources"),
    Code::new(0x55, 0x06, "cartridge memory out of space")
        .advise("EEDKs do not fit beside what other software keeps there"),
    Code::new(0x55, 0x08, "too many supplemental decryption keys"),
    Code::new(0x55, 0x09, "cartridge memory not accessible").advise("load the cartridge"),
    Code::new(0x5a, 0x01, "operator asks for the medium"),
    Code::new(0x5a, 0x02, "operator selected write protect"),
    Code::new(0x5d, 0x00, "failure predicted").advise("the drive needs service"),
    Code::new(0x74, 0x00, "security error"),
    Code::new(0x74, 0x01, "unable to decrypt data")
        .advise("the drive has no key; the block's key must be set first"),
    Code::new(0x74, 0x02, "unencrypted data found while decrypting")
        .advise("decryption mode MIXED reads both"),
    Code::new(0x74, 0x03, "incorrect data encryption key").advise(OTHER_KEY),
    Code::new(0x74, 0x04, "cryptographic integrity validation failed")
        .advise("the block was changed or is damaged; the key is not to blame"),
    Code::new(0x74, 0x05, "error decrypting data"),
    Code::new(0x74, 0x06, "unknown signature verification key"),
    Code::new(0x74, 0x07, "encryption parameters not usable").advise(OTHER_KEY),
    Code::new(0x74, 0x08, "digital signature validation failed"),
    Code::new(0x74, 0x09, "encryption mode mismatch on read"),
    Code::new(0x74, 0x0a, "encrypted block not enabled for raw read"),
    Code::new(0x74, 0x0b, "incorrect encryption parameters").advise(OTHER_KEY),
    Code::new(
        0x74,
        0x0c,
        "unable to decrypt parameter list: the drive cannot unwrap the key",
    )
    .advise(
        "the key was wrapped for another drive or for a key that the drive no longer has; \
         compare its fingerprint (ekm drive status) with the drive table (ekm drive show)",
    ),
    Code::new(0x74, 0x0d, "encryption algorithm disabled").advise(LIBRARY_MANAGED),
    Code::new(0x74, 0x10, "SA creation parameter value invalid"),
    Code::new(0x74, 0x11, "SA creation parameter value rejected"),
    Code::new(0x74, 0x12, "invalid SA usage"),
    Code::new(
        0x74,
        0x21,
        "data encryption configuration prevented by a library or manager",
    )
    .advise(LIBRARY_MANAGED),
    Code::new(0x74, 0x30, "SA creation parameter not supported"),
    Code::new(0x74, 0x40, "authentication failed"),
    Code::new(0x74, 0x61, "external key manager access error").advise(KEY_MANAGER),
    Code::new(0x74, 0x62, "external key manager error").advise(KEY_MANAGER),
    Code::new(0x74, 0x63, "external key not found").advise(KEY_MANAGER),
    Code::new(0x74, 0x64, "external request not authorized").advise(KEY_MANAGER),
    Code::new(0x74, 0x6e, "external data encryption control timed out").advise(KEY_MANAGER),
    Code::new(0x74, 0x6f, "external data encryption control failed").advise(KEY_MANAGER),
    Code::new(0x74, 0x71, "logical unit access not authorized"),
    Code::new(0x74, 0x80, "HP: key-associated data has changed").advise(OTHER_KEY),
    Code::new(
        0x74,
        0x82,
        "HP: key-associated data in cartridge memory is unreadable",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_row_in_order() {
        for codes in [CODES, ibm::CODES] {
            for (code, next) in codes.iter().zip(&codes[1..]) {
                assert!(
                    (code.asc, code.ascq) < (next.asc, next.ascq),
                    "{:02X}/{:02X}",
                    next.asc,
                    next.ascq
                );
            }
        }
    }

    #[test]
    fn rows_are_phrases_that_fit_a_sentence() {
        for code in [CODES, ibm::CODES].into_iter().flatten() {
            for text in [Some(code.meaning), code.advice].into_iter().flatten() {
                assert!(!text.is_empty() && !text.ends_with('.') && !text.contains("  "));
            }
        }
    }
}
