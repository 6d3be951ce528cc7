//! A whole tape drive in software: SCSI commands, a tape as a file, encryption block by block.
//!
//! ```text
//! TapeDrive   answers the commands of a sequential-access device (SPC-4, SSC-4), as a Transport
//!   Target    its keys: security protocols 00h and 20h
//!   Image     its tape: a file with blocks, filemarks and a cartridge memory
//!   Quirk     what it does wrong, where a test wants that
//! ```
//!
//! A block that is written while a key is set is encrypted, any other is written in clear, and the
//! image says of each which it is and which key it names: [`TapeContents`]. Nothing but the file
//! limits the length of a tape; one block at a time is in memory.
//!
//! It is one logical unit for one initiator: all that hold a [`TapePort`] share unit attentions
//! and reservations, as programs on one host share those of a real drive. It has one partition,
//! no raw reading, no external encryption mode and no persistent reservations.

mod attributes;
mod cipher;
mod command;
mod contents;
mod image;
mod inquiry;
mod mode;
mod motion;
mod quirk;
mod security;
mod space;

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

pub use contents::{DataKeyUse, FileOnTape, TapeContents};
pub use image::ImageError;
pub use quirk::{Quirk, QuirkError};

use super::{Medium, SoftDrive, Target};
use crate::{
    scsi::{Completion, Data, Transport, TransportError},
    t10::{ParametersControl, Sense, SenseKey},
    volser::Volser,
};
use command::{Check, Command, op};
use image::Image;
use mode::Modes;
use security::BlockKeys;

/// A tape drive, with or without a cartridge in it.
pub struct TapeDrive {
    target: Target,
    name: String,
    image: Option<Image>,
    /// A cartridge that is unloaded and still in the mouth of the drive.
    unloaded: Option<PathBuf>,
    keys: BlockKeys,
    modes: Modes,
    removal_prevented: bool,
    attentions: VecDeque<Sense>,
    quirks: BTreeSet<Quirk>,
    writes: u32,
}

impl TapeDrive {
    /// A drive as it is after power on, without a cartridge. Its first command ends with a unit
    /// attention, 06/29/00.
    pub fn new(drive: SoftDrive) -> Self {
        let modes = Modes::new(drive.directory());
        Self {
            name: format!("software drive {}", drive.serial()),
            target: Target::on_tape(drive),
            image: None,
            unloaded: None,
            keys: BlockKeys::default(),
            modes,
            removal_prevented: false,
            attentions: VecDeque::from([POWER_ON]),
            quirks: BTreeSet::new(),
            writes: 0,
        }
    }

    /// The same drive under the control of a library: page 0010h says CFG_P 10b, page 0020h
    /// PARAMETERS CONTROL 3, and keys from a host are refused with 05/74/21.
    #[must_use]
    pub fn library_managed(mut self) -> Self {
        self.target.leave_to(ParametersControl::Library);
        self
    }

    /// The same drive without software write protection: the SWP bit cannot be changed.
    #[must_use]
    pub fn without_write_protection(mut self) -> Self {
        self.modes.fix_write_protection();
        self
    }

    /// Who the drive is, and what it has been told of keys.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Puts a cartridge in and loads it. The next command ends with a unit attention, 06/28/00.
    ///
    /// # Errors
    ///
    /// [`ImageError`]; [`ImageError::Occupied`] where there is a cartridge already.
    pub fn load(&mut self, path: &Path) -> Result<(), ImageError> {
        if self.image.is_some() || self.unloaded.is_some() {
            return Err(ImageError::Occupied);
        }
        self.thread(path)
    }

    fn thread(&mut self, path: &Path) -> Result<(), ImageError> {
        let mut image = Image::load(path)?;
        let mut memory = image.memory().clone();
        memory.loads += 1;
        image.remember(memory)?;
        self.image = Some(image);
        self.unloaded = None;
        self.keys.clear();
        self.target.load(Medium::Blank);
        self.attention(MEDIUM_CHANGED);
        Ok(())
    }

    /// Takes the cartridge out, as its button does, also where a host has prevented that; none
    /// where there is none.
    pub fn unload(&mut self) -> Option<PathBuf> {
        self.unthread();
        self.unloaded.take()
    }

    /// Unloads the tape, with what belongs to that: the key is forgotten where it was to be.
    fn unthread(&mut self) {
        if let Some(image) = self.image.take() {
            self.unloaded = Some(image.path().to_owned());
            self.target.unload();
            self.keys.clear();
        }
    }

    /// The cartridge that is loaded.
    pub fn loaded(&self) -> Option<&Path> {
        self.image.as_ref().map(Image::path)
    }

    /// A logical unit reset: the key is forgotten, modes are as they were saved, the position
    /// stays. The next command ends with a unit attention, 06/29/03.
    pub fn reset(&mut self) {
        self.reset_untold();
        self.attentions.clear();
        self.attention(DEVICE_RESET);
    }

    /// A logical unit reset whose unit attention somebody else raises, as Linux does for devices
    /// that it serves itself.
    pub fn reset_untold(&mut self) {
        self.target.forget();
        self.keys.clear();
        self.keys.unlock();
        self.modes.reset();
        self.removal_prevented = false;
    }

    /// Power off and on: as a reset, and the cartridge is loaded anew. The next command ends
    /// with a unit attention, 06/29/00.
    ///
    /// # Errors
    ///
    /// As [`Self::load`].
    pub fn power_cycle(&mut self) -> Result<(), ImageError> {
        self.reset_untold();
        self.attentions.clear();
        if let Some(path) = self.unload() {
            self.load(&path)?;
        }
        self.attentions.push_front(POWER_ON);
        Ok(())
    }

    /// Does something wrong from now on.
    pub fn misbehave(&mut self, quirk: Quirk) {
        if matches!(quirk, Quirk::ResetAtWrite(_) | Quirk::UnloadAtWrite(_)) {
            self.writes = 0;
        }
        self.quirks.insert(quirk);
    }

    /// Does nothing wrong any more.
    pub fn behave(&mut self) {
        self.quirks.clear();
    }

    fn has(&self, quirk: Quirk) -> bool {
        self.quirks.contains(&quirk)
    }

    /// Whether it never answers this command.
    pub fn hangs(&self, cdb: &[u8]) -> bool {
        cdb.first()
            .is_some_and(|operation| self.has(Quirk::Hang(*operation)))
    }

    fn attention(&mut self, sense: Sense) {
        if !self.attentions.contains(&sense) {
            self.attentions.push_back(sense);
        }
    }

    /// Carries out a command that the drive answers.
    pub fn answer(&mut self, cdb: &[u8], data: Data<'_>) -> Completion {
        if self.has(Quirk::Busy) {
            return Completion {
                status: BUSY,
                transferred: 0,
                sense: Vec::new(),
            };
        }
        let outcome = Command::new(cdb)
            .ok_or(Check::from(Sense::INVALID_COMMAND))
            .and_then(|command| self.carry_out(command, data));
        match outcome {
            Ok(transferred) => Completion {
                status: GOOD,
                transferred,
                sense: Vec::new(),
            },
            Err(check) => Completion {
                status: CHECK_CONDITION,
                transferred: check.transferred,
                sense: check.encode(),
            },
        }
    }

    fn carry_out(&mut self, command: Command<'_>, data: Data<'_>) -> Result<usize, Check> {
        let operation = command.operation();
        if operation == op::WRITE {
            self.count_write();
        }
        self.gate(operation)?;
        match (operation, data) {
            (op::TEST_UNIT_READY, _) => self.image().map(|_| 0),
            (op::REWIND, _) => self.rewind(),
            (op::WRITE_FILEMARKS, _) => self.write_filemarks(command),
            (op::SPACE | op::SPACE_16, _) => self.space(command),
            (op::LOCATE_10 | op::LOCATE_16, _) => self.locate(command),
            (op::ERASE, _) => self.erase(),
            (op::LOAD_UNLOAD, _) => self.load_unload(command),
            (op::PREVENT_ALLOW, _) => self.prevent_allow(command),
            // There is but one initiator.
            (op::RESERVE | op::RELEASE, _) => Ok(0),
            (op::READ, Data::In(buffer)) => self.read(command, buffer),
            (op::READ, _) => self.read(command, &mut []),
            (op::WRITE, Data::Out(data)) => self.write(command, data),
            (op::WRITE, _) => self.write(command, &[]),
            (op::MODE_SELECT_6 | op::MODE_SELECT_10, Data::Out(data)) => {
                self.mode_select(command, data)
            }
            (op::MODE_SELECT_6 | op::MODE_SELECT_10, _) => self.mode_select(command, &[]),
            (op::WRITE_ATTRIBUTE, Data::Out(data)) => self.write_attribute(command, data),
            (op::WRITE_ATTRIBUTE, _) => self.write_attribute(command, &[]),
            (op::SECURITY_PROTOCOL_OUT, Data::Out(data)) => self.security_out(command, data),
            (op::SECURITY_PROTOCOL_OUT, _) => self.security_out(command, &[]),
            (_, data) => {
                let answer = self.report(command)?;
                Ok(give(&answer, data))
            }
        }
    }

    /// The commands that only return data, cut to their allocation length.
    fn report(&mut self, command: Command<'_>) -> Result<Vec<u8>, Check> {
        let (mut answer, limit) = match command.operation() {
            op::INQUIRY => (self.inquiry(command)?, u32::from(command.u16(3))),
            op::REQUEST_SENSE => (self.request_sense(), u32::from(command.u8(4))),
            op::READ_BLOCK_LIMITS => (self.block_limits(command)?, u32::MAX),
            op::READ_POSITION => (self.read_position(command)?, u32::MAX),
            op::MODE_SENSE_6 => (self.mode_sense(command)?, u32::from(command.u8(4))),
            op::MODE_SENSE_10 => (self.mode_sense(command)?, u32::from(command.u16(7))),
            op::LOG_SENSE => (self.log_sense(command)?, u32::from(command.u16(7))),
            op::READ_ATTRIBUTE => (self.read_attribute(command)?, command.u32(10)),
            op::REPORT_LUNS => (self.report_luns(), command.u32(6)),
            op::SECURITY_PROTOCOL_IN => (self.security_in(command)?, command.u32(6)),
            _ => return Err(Sense::INVALID_COMMAND.into()),
        };
        answer.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(answer)
    }

    fn count_write(&mut self) {
        self.writes += 1;
        let now = self.writes;
        if self.quirks.remove(&Quirk::ResetAtWrite(now)) {
            self.reset();
        }
        if self.quirks.remove(&Quirk::UnloadAtWrite(now)) {
            self.unload();
        }
    }

    /// What comes before any command: misbehaviour, and unit attentions.
    fn gate(&mut self, operation: u8) -> Result<(), Sense> {
        if operation == op::INQUIRY {
            return Ok(());
        }
        if self.has(Quirk::SenseFlood) {
            return Err(Sense::INTERNAL_FAILURE);
        }
        if matches!(operation, op::REQUEST_SENSE | op::REPORT_LUNS) {
            return Ok(());
        }
        if self.has(Quirk::AttentionFlood) {
            return Err(MEDIUM_CHANGED);
        }
        match self.attentions.pop_front() {
            Some(attention) => Err(attention),
            None => Ok(()),
        }
    }

    /// The tape, or that there is none.
    fn image(&mut self) -> Result<&mut Image, Check> {
        self.image.as_mut().ok_or(Sense::MEDIUM_NOT_PRESENT.into())
    }
}

impl Transport for TapeDrive {
    fn execute(
        &mut self,
        cdb: &[u8],
        data: Data<'_>,
        limit: Duration,
    ) -> Result<Completion, TransportError> {
        if self.hangs(cdb) {
            return Err(silence(&self.name, limit));
        }
        Ok(self.answer(cdb, data))
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for TapeDrive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TapeDrive")
            .field("target", &self.target)
            .field("image", &self.image)
            .field("attentions", &self.attentions)
            .field("quirks", &self.quirks)
            .finish_non_exhaustive()
    }
}

/// A way to a drive that several hold: a backup program, a proxy, and a test that watches.
#[derive(Clone, Debug)]
pub struct TapePort {
    name: String,
    drive: Arc<Mutex<TapeDrive>>,
}

impl TapePort {
    /// The first way to a drive; clones are further ones.
    pub fn new(drive: TapeDrive) -> Self {
        Self {
            name: drive.name.clone(),
            drive: Arc::new(Mutex::new(drive)),
        }
    }

    /// The drive itself, with all others kept waiting.
    pub fn drive(&self) -> MutexGuard<'_, TapeDrive> {
        self.drive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for TapePort {
    fn execute(
        &mut self,
        cdb: &[u8],
        data: Data<'_>,
        limit: Duration,
    ) -> Result<Completion, TransportError> {
        let mut drive = self.drive();
        if drive.hangs(cdb) {
            // Who ends the misbehaviour must reach the drive.
            drop(drive);
            return Err(silence(&self.name, limit));
        }
        Ok(drive.answer(cdb, data))
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Makes the image of a new tape, which must not be there yet. `capacity` is in bytes.
///
/// # Errors
///
/// [`ImageError::Io`]; [`ImageError::Crypto`] where there are no random numbers.
pub fn new_tape(path: &Path, volser: &Volser, capacity: u64) -> Result<(), ImageError> {
    Image::create(path, volser, capacity)
}

fn silence(name: &str, limit: Duration) -> TransportError {
    thread::sleep(limit);
    TransportError::TimedOut {
        device: name.to_owned(),
        seconds: limit.as_secs(),
    }
}

/// Puts as much of an answer into the buffer as goes.
fn give(answer: &[u8], data: Data<'_>) -> usize {
    let Data::In(buffer) = data else {
        return 0;
    };
    let length = buffer.len().min(answer.len());
    if let (Some(to), Some(from)) = (buffer.get_mut(..length), answer.get(..length)) {
        to.copy_from_slice(from);
    }
    length
}

const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
const BUSY: u8 = 0x08;

const MEDIUM_CHANGED: Sense = Sense::new(SenseKey::UnitAttention, 0x28, 0x00);
const POWER_ON: Sense = Sense::new(SenseKey::UnitAttention, 0x29, 0x00);
const DEVICE_RESET: Sense = Sense::new(SenseKey::UnitAttention, 0x29, 0x03);

#[cfg(test)]
mod tests;
