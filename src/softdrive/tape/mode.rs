//! MODE SENSE and MODE SELECT: block length, compression, and software write protection.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Quirk, TapeDrive,
    command::{Check, Command, op},
    image::MAX_BLOCK,
};
use crate::{
    files,
    t10::{Sense, SenseKey},
};

/// The modes of a drive: as they are, and as they were saved.
#[derive(Debug)]
pub(super) struct Modes {
    path: PathBuf,
    current: Mode,
    saved: Mode,
    block_length: u32,
    /// Whether SWP can be changed.
    protects: bool,
}

/// What the pages say that can be changed.
///
/// ```text
/// page 0Fh, data compression       byte 2  DCE (7), DCC (6)
/// page 10h, device configuration   byte 10 SWP (2)
///                                  byte 14 SELECT DATA COMPRESSION ALGORITHM
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mode {
    /// SWP: nothing is written.
    write_protected: bool,
    /// DCE: said and not done.
    compression: bool,
}

impl Modes {
    /// Those of a drive after power on: as they were saved in its directory.
    pub(super) fn new(directory: &Path) -> Self {
        let path = directory.join("modes.toml");
        let saved: Mode = fs::read_to_string(&path)
            .ok()
            .and_then(|text| toml::from_str(&text).ok())
            .unwrap_or_default();
        Self {
            path,
            current: saved,
            saved,
            block_length: 0,
            protects: true,
        }
    }

    pub(super) fn fix_write_protection(&mut self) {
        self.protects = false;
        self.current.write_protected = false;
        self.saved.write_protected = false;
    }

    pub(super) fn reset(&mut self) {
        self.current = self.saved;
        self.block_length = 0;
    }

    /// The length of blocks in bytes, 0 where they are of any length.
    pub(super) fn block_length(&self) -> u32 {
        self.block_length
    }

    pub(super) fn write_protected(&self) -> bool {
        self.current.write_protected
    }

    fn save(&mut self) -> Result<(), Sense> {
        let text = toml::to_string(&self.current).map_err(|_| Sense::INTERNAL_FAILURE)?;
        files::write_private(&self.path, text.as_bytes()).map_err(|_| Sense::INTERNAL_FAILURE)?;
        self.saved = self.current;
        Ok(())
    }

    /// The pages by their code, 3Fh being all of them.
    fn pages(&self, control: u8, code: u8) -> Option<Vec<u8>> {
        let mode = match control {
            CHANGEABLE => Mode {
                write_protected: self.protects,
                compression: true,
            },
            DEFAULT => Mode::default(),
            SAVED => self.saved,
            _ => self.current,
        };
        let changeable = control == CHANGEABLE;
        Some(match code {
            NO_PAGE => Vec::new(),
            COMPRESSION => compression(mode, changeable),
            CONFIGURATION => configuration(mode, changeable),
            ALL_PAGES => [
                compression(mode, changeable),
                configuration(mode, changeable),
            ]
            .concat(),
            _ => return None,
        })
    }

    /// Takes a page as it is in a parameter list, without changing what it may not.
    fn take(&self, mode: &mut Mode, page: &[u8]) -> Result<(), Sense> {
        let refused = Sense::INVALID_FIELD_IN_PARAMETER_LIST;
        let code = page.first().copied().unwrap_or_default();
        // PS is reserved here, and so refused.
        let (Some(now), Some(mask)) = (
            self.pages(CURRENT, code).filter(|page| !page.is_empty()),
            self.pages(CHANGEABLE, code),
        ) else {
            return Err(refused);
        };
        if now.len() != page.len() {
            return Err(refused);
        }
        let fixed = now
            .iter()
            .zip(&mask)
            .zip(page)
            .skip(2)
            .all(|((now, mask), new)| now & !mask == new & !mask);
        if !fixed {
            return Err(refused);
        }
        let byte = |at: usize| page.get(at).copied().unwrap_or_default();
        match code {
            COMPRESSION => mode.compression = byte(2) & 0x80 != 0,
            _ => {
                mode.write_protected = byte(10) & SWP != 0;
                mode.compression = byte(14) != 0;
            }
        }
        Ok(())
    }
}

fn compression(mode: Mode, changeable: bool) -> Vec<u8> {
    let fixed = u8::from(!changeable);
    // DCE, DCC; DDE; no algorithm is named.
    let mut page = vec![
        COMPRESSION | SAVEABLE,
        14,
        u8::from(mode.compression) << 7 | fixed << 6,
        fixed << 7,
    ];
    page.resize(PAGE, 0);
    page
}

fn configuration(mode: Mode, changeable: bool) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    for (at, byte) in [
        (0, CONFIGURATION | SAVEABLE),
        (1, 14),
        // BIS, block identifiers are supported
        (8, u8::from(!changeable) << 6),
        (10, if mode.write_protected { SWP } else { 0 }),
        (
            14,
            match (changeable, mode.compression) {
                (true, _) => 0xff,
                (false, compression) => u8::from(compression),
            },
        ),
        // REWIND ON RESET 10b: a reset does not move the tape
        (15, u8::from(!changeable) << 4),
    ] {
        if let Some(to) = page.get_mut::<usize>(at) {
            *to = byte;
        }
    }
    page
}

impl TapeDrive {
    /// MODE SENSE(6) and (10).
    pub(super) fn mode_sense(&mut self, command: Command<'_>) -> Result<Vec<u8>, Check> {
        let long = command.operation() == op::MODE_SENSE_10;
        let without_descriptor = command.bit(1, 3);
        let (control, code) = (command.u8(2) >> 6, command.u8(2) & 0x3f);
        // SUBPAGE CODE; FFh with all pages means all subpages, of which there are none.
        if !(command.u8(3) == 0 || command.u8(3) == 0xff && code == ALL_PAGES) {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let saves = !self.has(Quirk::SavesNothing);
        if control == SAVED && !saves {
            return Err(SAVING_NOT_SUPPORTED.into());
        }
        let mut pages = self
            .modes
            .pages(control, code)
            .ok_or(Sense::INVALID_FIELD_IN_CDB)?;
        if !saves {
            for page in pages.chunks_mut(PAGE) {
                if let Some(code) = page.first_mut() {
                    *code &= !SAVEABLE;
                }
            }
        }
        let descriptor = if without_descriptor {
            Vec::new()
        } else {
            let length = if control == CHANGEABLE {
                0x00ff_ffff
            } else {
                self.modes.block_length
            };
            // NUMBER OF BLOCKS 0: all of them.
            let mut descriptor = vec![self.density(), 0, 0, 0];
            descriptor.extend(length.to_be_bytes());
            descriptor
        };
        // WP, and BUFFERED MODE 1
        let specific = u8::from(self.modes.write_protected()) << 7 | 0x10;
        let descriptor_len = u8::try_from(descriptor.len()).unwrap_or_default();
        let rest = [descriptor, pages].concat();
        let mut answer = if long {
            let length = u16::try_from(rest.len() + 6).unwrap_or(u16::MAX);
            let mut header = length.to_be_bytes().to_vec();
            header.extend([0, specific, 0, 0, 0, descriptor_len]);
            header
        } else {
            let length = u8::try_from(rest.len() + 3).unwrap_or(u8::MAX);
            vec![length, 0, specific, descriptor_len]
        };
        answer.extend(rest);
        Ok(answer)
    }

    /// MODE SELECT(6) and (10). Nothing changes where anything is refused.
    pub(super) fn mode_select(
        &mut self,
        command: Command<'_>,
        data: &[u8],
    ) -> Result<usize, Check> {
        let long = command.operation() == op::MODE_SELECT_10;
        let (pages_follow, save) = (command.bit(1, 4), command.bit(1, 0));
        let length = if long {
            usize::from(command.u16(7))
        } else {
            usize::from(command.u8(4))
        };
        if save && self.has(Quirk::SavesNothing) {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        if length == 0 {
            return Ok(0);
        }
        let short: Check = Sense::PARAMETER_LIST_LENGTH.into();
        let refused: Check = Sense::INVALID_FIELD_IN_PARAMETER_LIST.into();
        let list = data.get(..length).ok_or(short)?;
        let (header, rest) = list
            .split_at_checked(if long { 8 } else { 4 })
            .ok_or(short)?;
        // LONGLBA, and the high byte of the length: no descriptor of ours is that long.
        if header.get(4..7).is_some_and(|bytes| bytes != [0; 3]) {
            return Err(refused);
        }
        let descriptor_len = usize::from(header.last().copied().unwrap_or_default());
        let (descriptor, mut pages) = rest.split_at_checked(descriptor_len).ok_or(short)?;

        let block_length = match *descriptor {
            [] => self.modes.block_length,
            [density, _, _, _, _, b0, b1, b2] => {
                let length = u32::from_be_bytes([0, b0, b1, b2]);
                let known = [0, 0x7f, self.density()].contains(&density);
                if !known || length > MAX_BLOCK {
                    return Err(refused);
                }
                length
            }
            _ => return Err(refused),
        };
        if !pages.is_empty() && !pages_follow {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let mut mode = self.modes.current;
        while let [_, page_length, ..] = *pages {
            let (page, after) = pages
                .split_at_checked(usize::from(page_length) + 2)
                .ok_or(short)?;
            self.modes.take(&mut mode, page)?;
            pages = after;
        }
        if !pages.is_empty() {
            return Err(short);
        }
        self.modes.current = mode;
        self.modes.block_length = block_length;
        if save {
            self.modes.save()?;
        }
        Ok(length)
    }

    /// LTO-6, or a 3592.
    fn density(&self) -> u8 {
        match self.target.drive().kind().max_eedks() {
            0 => 0x5a,
            _ => 0x55,
        }
    }
}

const NO_PAGE: u8 = 0x00;
const COMPRESSION: u8 = 0x0f;
const CONFIGURATION: u8 = 0x10;
const ALL_PAGES: u8 = 0x3f;

/// PS: the page can be saved.
const SAVEABLE: u8 = 0x80;

const CURRENT: u8 = 0;
const CHANGEABLE: u8 = 1;
const DEFAULT: u8 = 2;
const SAVED: u8 = 3;

const SWP: u8 = 0x04;

/// The length of either page, in bytes.
const PAGE: usize = 16;

const SAVING_NOT_SUPPORTED: Sense = Sense::new(SenseKey::IllegalRequest, 0x39, 0x00);
