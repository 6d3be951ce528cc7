//! IBM's own sense codes: what drives say of the key path that they have with IBM's key managers.
//!
//! Its messages are not public, so `ekm` does not speak it. A drive that says these things is
//! system- or library-managed, and takes keys from a host only once that is changed.
//!
//! Source: the sense tables of IBM's Linux driver, as LTFS publishes them.

use super::table::Code;

const SYSTEM_MANAGED: &str = "the drive is in system- or library-managed mode and waits for IBM's \
    own key path, which ekm does not speak; set its encryption method to application-managed at \
    the library (Modify Encryption Method) or with IBM's ITDT";

const KEY_SERVICE: &str = "the drive's key path goes through its library or IBM's driver, not \
    through ekm; mend that path, or set the drive to application-managed";

const EXCHANGE: &str =
    "the exchange between the drive and an IBM key manager failed; look at the key manager's log";

pub(super) const CODES: &[Code] = &[
    Code::new(0xee, 0x00, "IBM: encryption key service not enabled").advise(KEY_SERVICE),
    Code::new(0xee, 0x01, "IBM: encryption key service not configured").advise(KEY_SERVICE),
    Code::new(0xee, 0x02, "IBM: encryption key service not available").advise(KEY_SERVICE),
    Code::new(0xee, 0x0e, "IBM: encryption key service timed out").advise(KEY_SERVICE),
    Code::new(0xee, 0x0f, "IBM: encryption key service failed").advise(KEY_SERVICE),
    Code::new(0xee, 0x11, "IBM: encryption key generation required").advise(SYSTEM_MANAGED),
    Code::new(0xee, 0x12, "IBM: encryption key change detected").advise(SYSTEM_MANAGED),
    Code::new(0xee, 0x20, "IBM: encryption key count exceeded")
        .advise("a cartridge holds two EEDKs at most"),
    Code::new(0xee, 0x21, "IBM: encryption key alias exceeded")
        .advise("a key label has 64 characters at most"),
    Code::new(
        0xee,
        0x26,
        "IBM: unauthorized request, drive authentication key (dAK)",
    )
    .advise(EXCHANGE),
    Code::new(
        0xee,
        0x27,
        "IBM: unauthorized request, drive session key (dSK)",
    )
    .advise(EXCHANGE),
    Code::new(
        0xee,
        0x28,
        "IBM: unauthorized request, key manager's key (eAK)",
    )
    .advise(EXCHANGE),
    Code::new(0xee, 0x29, "IBM: authentication failed").advise(EXCHANGE),
    Code::new(0xee, 0x2a, "IBM: invalid data key identifier (RDKi)").advise(EXCHANGE),
    Code::new(0xee, 0x2b, "IBM: key incorrect").advise(EXCHANGE),
    Code::new(0xee, 0x2c, "IBM: key wrapping failed").advise(EXCHANGE),
    Code::new(0xee, 0x2d, "IBM: key exchange out of sequence").advise(EXCHANGE),
    Code::new(0xee, 0x30, "IBM: encryption request prohibited").advise(EXCHANGE),
    Code::new(0xee, 0x31, "IBM: key unknown to the key manager").advise(EXCHANGE),
    Code::new(0xee, 0x32, "IBM: unauthorized drive certificate (dCERT)").advise(EXCHANGE),
    Code::new(0xee, 0x40, "IBM: key manager identifier changed").advise(SYSTEM_MANAGED),
    Code::new(0xee, 0x41, "IBM: key manager challenge changed").advise(SYSTEM_MANAGED),
    Code::new(0xee, 0x42, "IBM: key manager challenge pending").advise(SYSTEM_MANAGED),
    Code::new(0xee, 0x50, "IBM: initiator identifier changed").advise(SYSTEM_MANAGED),
    Code::new(0xee, 0x51, "IBM: initiator response changed").advise(SYSTEM_MANAGED),
    Code::new(0xee, 0x60, "IBM: encryption proxy command error").advise(KEY_SERVICE),
    Code::new(0xef, 0x10, "IBM: encryption key required").advise(SYSTEM_MANAGED),
    Code::new(0xef, 0x11, "IBM: encryption key generation required").advise(SYSTEM_MANAGED),
    Code::new(0xef, 0x13, "IBM: encryption key translation required").advise(SYSTEM_MANAGED),
    Code::new(0xef, 0x1a, "IBM: encryption key optional").advise(SYSTEM_MANAGED),
    Code::new(0xef, 0xc0, "IBM: encryption, no operation").advise(SYSTEM_MANAGED),
];
