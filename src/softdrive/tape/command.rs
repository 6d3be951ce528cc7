//! Commands as a drive takes them, and the CHECK CONDITIONs that it ends them with.

use crate::t10::{Sense, SenseKey};

/// A command descriptor block, whose fields are read by their place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command<'a>(&'a [u8]);

impl<'a> Command<'a> {
    /// A block of the length that its operation code says; what is behind that is ignored.
    pub(super) fn new(cdb: &'a [u8]) -> Option<Self> {
        let length = match cdb.first()? >> 5 {
            0 => 6,
            1 | 2 => 10,
            4 => 16,
            5 => 12,
            _ => return None,
        };
        cdb.get(..length).map(Self)
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn operation(self) -> u8 {
        self.u8(0)
    }

    pub(super) fn u8(self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or_default()
    }

    pub(super) fn bit(self, at: usize, bit: u8) -> bool {
        self.u8(at) >> bit & 1 == 1
    }

    pub(super) fn u16(self, at: usize) -> u16 {
        u16::from_be_bytes([self.u8(at), self.u8(at + 1)])
    }

    pub(super) fn u24(self, at: usize) -> u32 {
        u32::from(self.u8(at)) << 16 | u32::from(self.u16(at + 1))
    }

    pub(super) fn u32(self, at: usize) -> u32 {
        u32::from(self.u16(at)) << 16 | u32::from(self.u16(at + 2))
    }

    pub(super) fn u64(self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }

    /// SERVICE ACTION, in byte 1.
    pub(super) fn service_action(self) -> u8 {
        self.u8(1) & 0x1f
    }
}

/// A CHECK CONDITION: sense data in fixed format, and how far the data got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Check {
    sense: Sense,
    /// FILEMARK, EOM and ILI.
    marks: u8,
    information: Option<u32>,
    /// Bytes of the data phase.
    pub(super) transferred: usize,
}

impl Check {
    const FILEMARK: u8 = 0x80;
    const EOM: u8 = 0x40;
    const ILI: u8 = 0x20;

    fn new(sense: Sense, marks: u8, information: u32) -> Self {
        Self {
            sense,
            marks,
            information: Some(information),
            transferred: 0,
        }
    }

    /// A filemark was met; so much of what was asked for was not done.
    pub(super) fn filemark(residual: u32) -> Self {
        let sense = Sense::new(SenseKey::NoSense, 0x00, 0x01);
        Self::new(sense, Self::FILEMARK, residual)
    }

    /// The end of the data was met.
    pub(super) fn end_of_data(residual: u32) -> Self {
        let sense = Sense::new(SenseKey::BlankCheck, 0x00, 0x05);
        Self::new(sense, 0, residual)
    }

    /// The beginning of the tape was met.
    pub(super) fn beginning(residual: u32) -> Self {
        let sense = Sense::new(SenseKey::NoSense, 0x00, 0x04);
        Self::new(sense, Self::EOM, residual)
    }

    /// All was written, and the tape will end soon.
    pub(super) fn early_warning() -> Self {
        let sense = Sense::new(SenseKey::NoSense, 0x00, 0x02);
        Self::new(sense, Self::EOM, 0)
    }

    /// The tape is full.
    pub(super) fn overflow(residual: u32) -> Self {
        let sense = Sense::new(SenseKey::VolumeOverflow, 0x00, 0x02);
        Self::new(sense, Self::EOM, residual)
    }

    /// The block is of another length; requested length less actual length, in two's complement.
    pub(super) fn other_length(difference: u32) -> Self {
        let sense = Sense::new(SenseKey::NoSense, 0x00, 0x00);
        Self::new(sense, Self::ILI, difference)
    }

    /// The same, with INFORMATION.
    pub(super) fn residual(self, residual: u32) -> Self {
        Self {
            information: Some(residual),
            ..self
        }
    }

    /// The same; where the tape is full, with so much that was not written.
    pub(super) fn full(self, residual: u32) -> Self {
        if self.sense.key == SenseKey::VolumeOverflow {
            self.residual(residual)
        } else {
            self
        }
    }

    /// The same, with so many bytes transferred.
    pub(super) fn after(self, transferred: usize) -> Self {
        Self {
            transferred,
            ..self
        }
    }

    /// Source: SPC-4, "Fixed format sense data".
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.sense.encode();
        let [response, _, key, i0, i1, i2, i3, ..] = &mut bytes;
        *key |= self.marks;
        if let Some(information) = self.information {
            *response |= 0x80;
            [*i0, *i1, *i2, *i3] = information.to_be_bytes();
        }
        bytes.to_vec()
    }
}

impl From<Sense> for Check {
    fn from(sense: Sense) -> Self {
        Self {
            sense,
            marks: 0,
            information: None,
            transferred: 0,
        }
    }
}

/// Operation codes (SPC-4, SSC-4).
pub(super) mod op {
    pub(in super::super) const TEST_UNIT_READY: u8 = 0x00;
    pub(in super::super) const REWIND: u8 = 0x01;
    pub(in super::super) const REQUEST_SENSE: u8 = 0x03;
    pub(in super::super) const READ_BLOCK_LIMITS: u8 = 0x05;
    pub(in super::super) const READ: u8 = 0x08;
    pub(in super::super) const WRITE: u8 = 0x0a;
    pub(in super::super) const WRITE_FILEMARKS: u8 = 0x10;
    pub(in super::super) const SPACE: u8 = 0x11;
    pub(in super::super) const INQUIRY: u8 = 0x12;
    pub(in super::super) const MODE_SELECT_6: u8 = 0x15;
    pub(in super::super) const RESERVE: u8 = 0x16;
    pub(in super::super) const RELEASE: u8 = 0x17;
    pub(in super::super) const ERASE: u8 = 0x19;
    pub(in super::super) const MODE_SENSE_6: u8 = 0x1a;
    pub(in super::super) const LOAD_UNLOAD: u8 = 0x1b;
    pub(in super::super) const PREVENT_ALLOW: u8 = 0x1e;
    pub(in super::super) const LOCATE_10: u8 = 0x2b;
    pub(in super::super) const READ_POSITION: u8 = 0x34;
    pub(in super::super) const LOG_SENSE: u8 = 0x4d;
    pub(in super::super) const MODE_SELECT_10: u8 = 0x55;
    pub(in super::super) const MODE_SENSE_10: u8 = 0x5a;
    pub(in super::super) const READ_ATTRIBUTE: u8 = 0x8c;
    pub(in super::super) const WRITE_ATTRIBUTE: u8 = 0x8d;
    pub(in super::super) const SPACE_16: u8 = 0x91;
    pub(in super::super) const LOCATE_16: u8 = 0x92;
    pub(in super::super) const REPORT_LUNS: u8 = 0xa0;
    pub(in super::super) const SECURITY_PROTOCOL_IN: u8 = 0xa2;
    pub(in super::super) const SECURITY_PROTOCOL_OUT: u8 = 0xb5;
}
