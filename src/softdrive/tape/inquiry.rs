//! Who the drive is: INQUIRY with its pages, READ BLOCK LIMITS, LOG SENSE, REQUEST SENSE.

use super::{
    TapeDrive,
    command::{Check, Command},
    image::MAX_BLOCK,
};
use crate::{
    softdrive::DriveKind,
    t10::{Sense, SenseKey},
};

impl TapeDrive {
    /// INQUIRY: standard data, and VPD pages 00h, 80h and 83h.
    pub(super) fn inquiry(&self, command: Command<'_>) -> Result<Vec<u8>, Sense> {
        let (vital, page) = (command.bit(1, 0), command.u8(2));
        let body = match (vital, page) {
            (false, 0) => return Ok(self.standard_inquiry()),
            (true, 0x00) => vec![0x00, 0x80, 0x83],
            (true, 0x80) => self.target.drive().serial().as_str().as_bytes().to_vec(),
            (true, 0x83) => self.designators(),
            _ => return Err(Sense::INVALID_FIELD_IN_CDB),
        };
        let mut answer = vec![SEQUENTIAL, page];
        answer.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
        answer.extend(body);
        Ok(answer)
    }

    fn standard_inquiry(&self) -> Vec<u8> {
        // Removable medium, SPC-4, response data format 2, additional length.
        let mut answer = vec![SEQUENTIAL, 0x80, 0x06, 0x02, 31, 0, 0, 0];
        answer.extend(VENDOR);
        answer.extend(self.product());
        answer.extend(b"0001");
        answer
    }

    fn product(&self) -> &'static [u8; 16] {
        match self.target.drive().kind() {
            DriveKind::Enterprise => b"SOFTDRIVE 3592  ",
            DriveKind::Lto | DriveKind::LtoPlain => b"SOFTDRIVE LTO   ",
        }
    }

    /// The logical unit by its NAA, which wrapped keys are bound to, and by its T10 vendor id.
    fn designators(&self) -> Vec<u8> {
        let drive = self.target.drive();
        let mut page = vec![0x01, 0x03, 0x00, 0x08];
        page.extend(drive.wwn().as_bytes());
        let mut name = VENDOR.to_vec();
        name.extend(self.product());
        name.extend(drive.serial().as_str().as_bytes());
        page.extend([0x02, 0x01, 0x00]);
        page.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        page.extend(name);
        page
    }

    /// READ BLOCK LIMITS: any length from 1 byte to 8 MiB.
    pub(super) fn block_limits(&self, command: Command<'_>) -> Result<Vec<u8>, Sense> {
        // MLOI
        if command.bit(1, 0) {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        // The high byte is GRANULARITY, 0.
        let mut answer = MAX_BLOCK.to_be_bytes().to_vec();
        answer.extend(1_u16.to_be_bytes());
        Ok(answer)
    }

    /// REQUEST SENSE: a unit attention that nobody has heard of, or nothing.
    pub(super) fn request_sense(&mut self) -> Vec<u8> {
        let sense =
            self.attentions
                .pop_front()
                .unwrap_or(Sense::new(SenseKey::NoSense, 0x00, 0x00));
        Check::from(sense).encode()
    }

    /// REPORT LUNS: this one.
    pub(super) fn report_luns(&self) -> Vec<u8> {
        let mut answer = 8_u32.to_be_bytes().to_vec();
        answer.extend([0; 12]);
        answer
    }

    /// LOG SENSE: the list of pages, and TapeAlert, of which no flag is ever set.
    pub(super) fn log_sense(&self, command: Command<'_>) -> Result<Vec<u8>, Sense> {
        let page = command.u8(2) & 0x3f;
        // SUBPAGE CODE
        if command.u8(3) != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        let body = match page {
            0x00 => vec![0x00, TAPE_ALERT],
            TAPE_ALERT => (1..=64).flat_map(|flag| [0, flag, 0, 1, 0]).collect(),
            _ => return Err(Sense::INVALID_FIELD_IN_CDB),
        };
        let mut answer = vec![page, 0];
        answer.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
        answer.extend(body);
        Ok(answer)
    }
}

/// PERIPHERAL DEVICE TYPE of a tape drive.
const SEQUENTIAL: u8 = 0x01;

const VENDOR: &[u8; 8] = b"EKM     ";
const TAPE_ALERT: u8 = 0x2e;
