//! The ring of commands that a kernel shares with a TCMU handler.
#![expect(
    unsafe_code,
    reason = "the ring is memory that the kernel writes to, so it is read and written by pointers"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use ekm::scsi::Data;
use ekm::softdrive::TapeDrive;
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// The mailbox and what is behind it.
///
/// ```text
/// byte 0-1    version, 2          4-7    CMDR_OFF     12-15  CMD_HEAD
///      2-3    flags               8-11   CMDR_SIZE    64-67  CMD_TAIL
/// ```
pub(crate) struct Ring {
    device: File,
    shared: Shared,
    commands: usize,
    size: usize,
}

/// Something that the kernel wants.
pub(crate) enum Entry {
    Command(Command),
    /// A reset of the logical unit, or of the target with it.
    Reset,
}

impl Ring {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::other("the device has no name"))?;
        let size = Path::new("/sys/class/uio")
            .join(name)
            .join("maps/map0/size");
        let size = fs::read_to_string(size)?;
        let length = usize::from_str_radix(size.trim().trim_start_matches("0x"), 16)
            .map_err(io::Error::other)?;
        let device = OpenOptions::new().read(true).write(true).open(path)?;
        // SAFETY: a new mapping, which lasts as long as the process.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &device,
                0,
            )
        }?;
        let shared = Shared {
            start: start.cast(),
            length,
        };
        let version: u16 = shared.read(0);
        if version != VERSION {
            return Err(io::Error::other(format!(
                "the mailbox has version {version}, expected {VERSION}"
            )));
        }
        Ok(Self {
            device,
            commands: size_of_u32(shared.read(4)),
            size: size_of_u32(shared.read(8)),
            shared,
        })
    }

    /// Waits until the kernel has put something in.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        self.device.read_exact(&mut [0; 4])
    }

    /// Tells the kernel that there are answers.
    pub(crate) fn done(&mut self) -> io::Result<()> {
        self.device.write_all(&[0; 4])
    }

    /// The next entry. It counts as answered when the one after it is asked for.
    pub(crate) fn next(&mut self) -> Option<Entry> {
        loop {
            let tail = size_of_u32(self.shared.read(CMD_TAIL));
            let head = size_of_u32(self.shared.read(CMD_HEAD));
            if tail == head {
                return None;
            }
            fence(Ordering::Acquire);
            let at = self.commands + tail;
            let header: u32 = self.shared.read(at);
            let length = size_of_u32(header & !OP_MASK);
            let command = Command {
                shared: self.shared,
                at,
                next: u32::try_from((tail + length) % self.size).unwrap_or_default(),
            };
            match header & OP_MASK {
                OP_COMMAND => return Some(Entry::Command(command)),
                OP_TASK_MANAGEMENT => {
                    let function: u8 = self.shared.read(at + 8);
                    command.finish();
                    // What comes before it aborts commands, and leaves the drive as it is.
                    if function >= LUN_RESET {
                        return Some(Entry::Reset);
                    }
                }
                OP_PAD => command.finish(),
                _ => {
                    let flags: u8 = self.shared.read(at + UFLAGS);
                    self.shared.write(at + UFLAGS, flags | UNKNOWN_OP);
                    command.finish();
                }
            }
        }
    }
}

impl Ring {
    /// Whether the kernel has put a task management function behind this command, as it does when
    /// its time is up.
    pub(crate) fn gives_up(&self, command: &Command) -> bool {
        let mut at = size_of_u32(command.next);
        let head = size_of_u32(self.shared.read(CMD_HEAD));
        fence(Ordering::Acquire);
        while at != head {
            let header: u32 = self.shared.read(self.commands + at);
            if header & OP_MASK == OP_TASK_MANAGEMENT {
                return true;
            }
            at = (at + size_of_u32(header & !OP_MASK)) % self.size;
        }
        false
    }
}

/// A command in the ring.
///
/// ```text
/// byte 0-3    length and operation      8-11   IOV_CNT    24-31  CDB_OFF
///      4-5    command id                48..   pairs of offset and length, 8 bytes each
///      7      UFLAGS
/// answer: 8 status, 12-15 READ_LEN, 16.. sense data
/// ```
pub(crate) struct Command {
    shared: Shared,
    at: usize,
    next: u32,
}

impl Command {
    /// At most 16 bytes, which is all that a tape drive is sent.
    pub(crate) fn cdb(&self) -> &'static [u8] {
        let offset: u64 = self.shared.read(self.at + 24);
        self.shared.slice(size_of_u64(offset), 16)
    }

    /// Has the drive carry it out, and puts the answer in its place.
    pub(crate) fn answer(self, drive: &mut TapeDrive) {
        let Self { shared, at, .. } = self;
        let count = size_of_u32(shared.read(at + 8));
        let pieces: Vec<(usize, usize)> = (0..count)
            .map(|index| {
                let pair = at + 48 + 16 * index;
                let (offset, length): (u64, u64) = (shared.read(pair), shared.read(pair + 8));
                (size_of_u64(offset), size_of_u64(length))
            })
            .collect();
        let cdb: Vec<u8> = self.cdb().to_vec();
        let out = cdb
            .first()
            .is_some_and(|operation| TO_DRIVE.contains(operation));
        let completion = if pieces.is_empty() {
            drive.answer(&cdb, Data::None)
        } else if out {
            let mut data = Vec::new();
            for (offset, length) in pieces {
                data.extend_from_slice(shared.slice(offset, length));
            }
            drive.answer(&cdb, Data::Out(&data))
        } else {
            let mut data = vec![0; pieces.iter().map(|(_, length)| length).sum()];
            let completion = drive.answer(&cdb, Data::In(&mut data));
            let mut rest = data.as_slice();
            for (offset, length) in pieces {
                let (piece, after) = rest.split_at(length.min(rest.len()));
                shared.copy(offset, piece);
                rest = after;
            }
            // Without it the kernel drops data under a CHECK CONDITION, and tells no residual.
            let flags: u8 = shared.read(at + UFLAGS);
            shared.write(at + UFLAGS, flags | READ_LEN);
            completion
        };
        // The answer lies over the request, which has been read.
        shared.write::<u8>(at + 8, completion.status);
        shared.write::<u8>(at + 9, 0);
        shared.write::<u16>(at + 10, 0);
        let length = u32::try_from(completion.transferred).unwrap_or(u32::MAX);
        shared.write::<u32>(at + 12, length);
        let sense = completion.sense.get(..SENSE.min(completion.sense.len()));
        shared.copy(at + 16, sense.unwrap_or_default());
        self.finish();
    }

    /// Ends it without having carried it out.
    pub(crate) fn abort(&self) {
        self.shared.write::<u8>(self.at + 8, TASK_ABORTED);
        self.finish();
    }

    fn finish(&self) {
        fence(Ordering::Release);
        self.shared.write(CMD_TAIL, self.next);
    }
}

/// Memory that the kernel reads and writes too.
#[derive(Clone, Copy)]
struct Shared {
    start: *mut u8,
    length: usize,
}

impl Shared {
    fn check(self, offset: usize, length: usize) -> *mut u8 {
        let end = offset.checked_add(length);
        assert!(
            end.is_some_and(|end| end <= self.length),
            "the kernel points outside of the ring"
        );
        // SAFETY: within the mapping.
        unsafe { self.start.add(offset) }
    }

    /// A number of the kernel's; every bit pattern is one.
    fn read<T: Number>(self, offset: usize) -> T {
        let place = self.check(offset, size_of::<T>()).cast::<T>();
        // SAFETY: within the mapping, and numbers lie at multiples of their size.
        unsafe { place.read_volatile() }
    }

    fn write<T: Number>(self, offset: usize, value: T) {
        let place = self.check(offset, size_of::<T>()).cast::<T>();
        // SAFETY: as in `read`.
        unsafe { place.write_volatile(value) };
    }

    /// Bytes that the kernel leaves alone until the command is answered.
    fn slice(self, offset: usize, length: usize) -> &'static [u8] {
        let start = self.check(offset, length);
        // SAFETY: within the mapping, which lasts as long as the process.
        unsafe { std::slice::from_raw_parts(start, length) }
    }

    fn copy(self, offset: usize, from: &[u8]) {
        let to = self.check(offset, from.len());
        // SAFETY: within the mapping, and `from` is memory of our own.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
    }
}

trait Number: Copy {}
impl Number for u8 {}
impl Number for u16 {}
impl Number for u32 {}
impl Number for u64 {}

fn size_of_u32(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn size_of_u64(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

const VERSION: u16 = 2;

const CMD_HEAD: usize = 12;
const CMD_TAIL: usize = 64;
const UFLAGS: usize = 7;

const OP_MASK: u32 = 7;
const OP_PAD: u32 = 0;
const OP_COMMAND: u32 = 1;
const OP_TASK_MANAGEMENT: u32 = 2;

/// TCMU_TMR_LUN_RESET
const LUN_RESET: u8 = 5;

const UNKNOWN_OP: u8 = 1;
const READ_LEN: u8 = 2;

/// SAM-5 status TASK ABORTED
const TASK_ABORTED: u8 = 0x40;

/// TCMU_SENSE_BUFFERSIZE
const SENSE: usize = 96;

/// Operation codes whose data goes to the drive.
const TO_DRIVE: [u8; 5] = [0x0a, 0x15, 0x55, 0x8d, 0xb5];
