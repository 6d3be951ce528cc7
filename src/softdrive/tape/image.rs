//! A tape as a file.
//!
//! ```text
//! byte 0-4095       label: "EKMTAPE1", capacity, volume serial, medium serial
//!      4096-69631   cartridge memory, two slots
//!      69632..      blocks and filemarks, one after the other
//! ```
//!
//! What is written goes to the end of what is before the position, and what was behind it is cut
//! off first, as on a tape. So whatever kills the writer, earlier blocks stay as they are; a
//! block that is there in part is none. The file may have been copied or cut: nothing in it
//! is believed before it has been checked.

mod label;
mod memory;
mod object;

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::rand;
use label::Label;
use memory::Slots;
pub(super) use memory::{Attribute, Memory};
use object::{Decoded, TRAILER};
pub(super) use object::{Kind, Object, Seal};

use super::cipher::BlockKey;
use crate::volser::Volser;

/// An image that is open, and where the tape stands.
#[derive(Debug)]
pub(super) struct Image {
    path: PathBuf,
    file: File,
    label: Label,
    slots: Slots,
    memory: Memory,
    at: Spot,
    end: Spot,
    damaged: bool,
    encrypted: Option<u64>,
    clear_after: Option<u64>,
    marks: Vec<Spot>,
    stride: u64,
    buffer: Vec<u8>,
}

/// A place between two objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    /// The number of the next object.
    pub(super) object: u64,
    /// Filemarks before it.
    pub(super) filemarks: u64,
    offset: u64,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Found {
    Object(Object),
    EndOfData,
    /// Something that is no object.
    Damage,
}

impl Image {
    /// Makes the image of a new tape.
    pub(super) fn create(path: &Path, volser: &Volser, capacity: u64) -> Result<(), ImageError> {
        let mut random = [0; 5];
        rand::fill(&mut random).map_err(|_| ImageError::Crypto)?;
        let label = Label {
            capacity,
            volser: volser.clone(),
            serial: format!("EKM{}", hex::encode_upper(random)),
        };
        let mut memory = Memory::default();
        // The bar code that a library has read.
        memory.attributes.insert(
            BARCODE,
            Attribute {
                format: 1,
                value: format!("{volser:<32}").into_bytes(),
            },
        );
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut slots = Slots::new();
        slots.write(&file, MEMORY, &memory)?;
        file.set_len(OBJECTS)?;
        // The label comes last: with it, it is an image.
        file.write_all(&label.encode())?;
        file.sync_all()?;
        Ok(())
    }

    /// Opens an image for a drive, at its beginning. Only one drive can have it.
    pub(super) fn load(path: &Path) -> Result<Self, ImageError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ImageError::InUse),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let locked = file.try_clone()?;
        Self::new(path, file).inspect_err(|_| drop(locked.unlock()))
    }

    /// Opens an image only to look at it, also while it is in a drive.
    pub(super) fn view(path: &Path) -> Result<Self, ImageError> {
        Self::new(path, File::open(path)?)
    }

    fn new(path: &Path, file: File) -> Result<Self, ImageError> {
        let label = Label::read(&file)?;
        let (slots, memory) = Slots::read(&file, MEMORY)?;
        let mut image = Self {
            path: path.to_owned(),
            file,
            label,
            slots,
            memory,
            at: START,
            end: START,
            damaged: false,
            encrypted: None,
            clear_after: None,
            marks: vec![START],
            stride: 1,
            buffer: Vec::new(),
        };
        loop {
            match image.next()? {
                Found::Object(object) => {
                    image.pass(&object);
                    image.extend(&object);
                }
                Found::EndOfData => break,
                Found::Damage => {
                    image.damaged = true;
                    break;
                }
            }
        }
        image.end = image.at;
        image.at = START;
        Ok(image)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn label(&self) -> &Label {
        &self.label
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Changes the cartridge memory, durably.
    pub(super) fn remember(&mut self, memory: Memory) -> Result<(), ImageError> {
        self.slots.write(&self.file, MEMORY, &memory)?;
        self.memory = memory;
        Ok(())
    }

    /// Where the tape stands.
    pub(super) fn at(&self) -> Spot {
        self.at
    }

    /// Whether what is at the end of the data is no tape.
    pub(super) fn damaged(&self) -> bool {
        self.damaged
    }

    /// Bytes from the beginning to here.
    pub(super) fn used(&self) -> u64 {
        self.at.offset - OBJECTS
    }

    /// Bytes of everything on the tape.
    pub(super) fn recorded(&self) -> u64 {
        self.end.offset - OBJECTS
    }

    /// The numbers of the first encrypted block, and of the first block in clear after it.
    pub(super) fn first_encrypted(&self) -> (Option<u64>, Option<u64>) {
        (self.encrypted, self.clear_after)
    }

    /// What comes next; the tape does not move.
    pub(super) fn next(&self) -> Result<Found, ImageError> {
        let mut header = [0; Object::MAX_HEADER];
        let got = self.read_at_most(&mut header, self.at.offset)?;
        let object = match Object::decode(header.get(..got).unwrap_or_default()) {
            Decoded::Whole(object) => object,
            Decoded::Short => return Ok(Found::EndOfData),
            Decoded::Damaged => return Ok(Found::Damage),
        };
        if object.number != self.at.object || object.filemarks != self.at.filemarks {
            return Ok(Found::Damage);
        }
        let length = object.total_len();
        let mut trailer = [0; 4];
        let got = self.read_at_most(&mut trailer, self.at.offset + length - TRAILER)?;
        if got < trailer.len() {
            return Ok(Found::EndOfData);
        }
        if u64::from(u32::from_be_bytes(trailer)) == length {
            Ok(Found::Object(object))
        } else {
            Ok(Found::Damage)
        }
    }

    /// Goes behind the object that comes next.
    pub(super) fn pass(&mut self, object: &Object) {
        self.at = self.at.after(object);
    }

    /// Goes before the object that was passed last; none at the beginning.
    pub(super) fn back(&mut self) -> Result<Option<Object>, ImageError> {
        if self.at.offset == OBJECTS {
            return Ok(None);
        }
        let here = self.at;
        let mut trailer = [0; 4];
        self.file
            .read_exact_at(&mut trailer, here.offset - TRAILER)?;
        let length = u64::from(u32::from_be_bytes(trailer));
        let start = here.offset.checked_sub(length).ok_or(ImageError::Damage)?;
        let mut header = [0; Object::MAX_HEADER];
        let got = self.read_at_most(&mut header, start)?;
        let Decoded::Whole(object) = Object::decode(header.get(..got).unwrap_or_default()) else {
            return Err(ImageError::Damage);
        };
        let before = Spot {
            object: object.number,
            filemarks: object.filemarks,
            offset: start,
        };
        if before.after(&object) != here {
            return Err(ImageError::Damage);
        }
        self.at = before;
        Ok(Some(object))
    }

    pub(super) fn rewind(&mut self) {
        self.at = START;
    }

    /// Goes to the end of the data.
    pub(super) fn wind(&mut self) {
        self.at = self.end;
    }

    /// Goes before this object, or to the end of the data; says whether the object is there.
    pub(super) fn seek(&mut self, object: u64) -> Result<bool, ImageError> {
        self.go(|spot| spot.object <= object, |spot| spot.object >= object)?;
        Ok(self.at.object == object)
    }

    /// Goes behind this many filemarks, or to the end of the data; says whether they are there.
    pub(super) fn seek_file(&mut self, filemarks: u64) -> Result<bool, ImageError> {
        self.go(
            |spot| spot.filemarks < filemarks || *spot == START,
            |spot| spot.filemarks >= filemarks,
        )?;
        Ok(self.at.filemarks == filemarks)
    }

    fn go(
        &mut self,
        before: impl Fn(&Spot) -> bool,
        there: impl Fn(&Spot) -> bool,
    ) -> Result<(), ImageError> {
        self.at = self
            .marks
            .iter()
            .rev()
            .find(|spot| before(spot))
            .copied()
            .unwrap_or(START);
        while !there(&self.at) {
            match self.next()? {
                Found::Object(object) => self.pass(&object),
                Found::EndOfData | Found::Damage => break,
            }
        }
        Ok(())
    }

    /// The data of the object that comes next, as they are in the image, with room for all of
    /// them in a buffer that is used again.
    pub(super) fn stored(&mut self, object: &Object) -> Result<&mut [u8], ImageError> {
        let length = usize::try_from(object.stored_len()).map_err(|_| ImageError::Damage)?;
        if object.length > MAX_BLOCK {
            return Err(ImageError::Damage);
        }
        self.buffer.resize(length, 0);
        let header = u64::try_from(object.header_len()).map_err(|_| ImageError::Damage)?;
        self.file
            .read_exact_at(&mut self.buffer, self.at.offset + header)?;
        Ok(&mut self.buffer)
    }

    /// What an encrypted block is bound to.
    pub(super) fn bound(&self, object: &Object) -> Vec<u8> {
        bound(&self.label, object)
    }

    /// Writes a filemark or a block here, encrypted where there is a key, and goes behind it.
    /// What was behind it is gone.
    pub(super) fn write(
        &mut self,
        kind: Kind,
        data: &[u8],
        key: Option<&BlockKey>,
    ) -> Result<(), ImageError> {
        let object = Object {
            number: self.at.object,
            filemarks: self.at.filemarks,
            kind,
            length: u32::try_from(data.len()).map_err(|_| ImageError::Damage)?,
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend(object.encode());
        buffer.extend_from_slice(data);
        match (&object.kind, key) {
            (Kind::Filemark | Kind::Clear, _) => {}
            // What says that it is encrypted must be so.
            (Kind::Encrypted(_), None) => return Err(ImageError::Crypto),
            (Kind::Encrypted(seal), Some(key)) => {
                let bound = bound(&self.label, &object);
                let plain = buffer
                    .get_mut(object.header_len()..)
                    .ok_or(ImageError::Crypto)?;
                let tag = key
                    .seal(seal, &bound, plain)
                    .map_err(|_| ImageError::Crypto)?;
                buffer.extend(tag);
            }
        }
        let length = u32::try_from(object.total_len()).map_err(|_| ImageError::Damage)?;
        buffer.extend(length.to_be_bytes());

        self.cut()?;
        let written = self.file.write_all_at(&buffer, self.at.offset);
        self.buffer = buffer;
        if let Err(error) = written {
            self.file.set_len(self.at.offset)?;
            return Err(error.into());
        }
        self.pass(&object);
        self.end = self.at;
        self.extend(&object);
        Ok(())
    }

    /// Cuts off what is behind the position.
    pub(super) fn cut(&mut self) -> Result<(), ImageError> {
        if self.file.metadata()?.len() > self.at.offset {
            self.file.set_len(self.at.offset)?;
        }
        self.end = self.at;
        self.damaged = false;
        let here = self.at.object;
        self.marks
            .retain(|spot| spot.object < here || *spot == START);
        for first in [&mut self.encrypted, &mut self.clear_after] {
            if first.is_some_and(|number| number >= here) {
                *first = None;
            }
        }
        Ok(())
    }

    /// Waits until what was written would outlive a power cut.
    pub(super) fn flush(&self) -> Result<(), ImageError> {
        Ok(self.file.sync_data()?)
    }

    /// Notes an object that the tape has just passed at the end of what is known.
    fn extend(&mut self, object: &Object) {
        match object.kind {
            Kind::Filemark => {}
            Kind::Clear if self.encrypted.is_some() => {
                self.clear_after.get_or_insert(object.number);
            }
            Kind::Clear => {}
            Kind::Encrypted(_) => {
                self.encrypted.get_or_insert(object.number);
            }
        }
        if self.at.object.is_multiple_of(self.stride) {
            self.marks.push(self.at);
        }
        if self.marks.len() > MAX_MARKS {
            self.stride *= 2;
            let stride = self.stride;
            self.marks.retain(|spot| spot.object.is_multiple_of(stride));
        }
    }

    fn read_at_most(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<usize, ImageError> {
        let mut read = 0;
        while !buffer.is_empty() {
            let got = match self.file.read_at(buffer, offset) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            read += got;
            offset += u64::try_from(got).map_err(|_| ImageError::Damage)?;
            buffer = buffer.get_mut(got..).unwrap_or_default();
        }
        Ok(read)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // A process that is started at this moment has a copy of it until its exec.
        let _ = self.file.unlock();
    }
}

impl Spot {
    fn after(self, object: &Object) -> Self {
        Self {
            object: self.object + 1,
            filemarks: self.filemarks + u64::from(object.kind == Kind::Filemark),
            offset: self.offset + object.total_len(),
        }
    }
}

/// Why a tape image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be read or written.
    #[error("cannot read or write the tape image")]
    Io(#[from] io::Error),
    /// Not a tape image.
    #[error(
        "expected a tape image, which begins with \"EKMTAPE1\"; make one: ekm softdrive tape new"
    )]
    NotATape,
    /// The label is damaged.
    #[error("the label of the tape image is damaged")]
    Label,
    /// Both slots of the cartridge memory are damaged, or more was to be kept than fits.
    #[error("the cartridge memory of the tape image is damaged or full")]
    Memory,
    /// It is in another drive.
    #[error("the tape image is in use by another drive")]
    InUse,
    /// There is a cartridge in the drive.
    #[error("there is a cartridge in the drive already")]
    Occupied,
    /// A block or filemark is damaged.
    #[error("the tape image is damaged at this position")]
    Damage,
    /// The cryptographic library fails.
    #[error("the cryptographic library failed")]
    Crypto,
}

fn bound(label: &Label, object: &Object) -> Vec<u8> {
    let mut bound = b"ekm tape v1\0".to_vec();
    bound.extend(format!("{:<32}", label.serial).bytes());
    bound.extend(object.bound());
    bound
}

/// The longest block, in bytes.
pub(super) const MAX_BLOCK: u32 = 8 * 1024 * 1024;

/// BAR CODE in the cartridge memory.
pub(super) const BARCODE: u16 = 0x0806;

const MEMORY: u64 = 4096;
const OBJECTS: u64 = MEMORY + Slots::LEN;

const START: Spot = Spot {
    object: 0,
    filemarks: 0,
    offset: OBJECTS,
};

/// Places that are remembered so that seeking need not begin at the beginning: 128 KiB.
const MAX_MARKS: usize = 4096;
