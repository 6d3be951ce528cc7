//! The cartridge file: what a cartridge would hold, and nothing else.
//!
//! ```text
//! byte 0-4095     header slot A
//!      4096-8191  header slot B
//!      8192-8223  salt
//!      8224-8255  key check
//!      8256..     blocks: 256 KiB of data, encrypted, and 16 bytes of authentication code;
//!                 the last one may be shorter
//! ```
//!
//! The header stands for the cartridge memory. It is written twice, so that new EEDKs never
//! replace the old ones in place: the slot with the higher generation and a right checksum
//! counts. The header is not authenticated, as cartridge memory is not; but volume serial and
//! DKi go into every block's authentication, so blocks under another header do not decrypt.
//!
//! Blocks are AES-256-GCM. Their key is derived from the data key and a random salt,
//!
//! ```text
//! HKDF-SHA256 (RFC 5869): salt, data key, "ekm cartridge v1 blocks"  ->  key of the blocks
//!                         salt, data key, "ekm cartridge v1 check"   ->  key check
//! nonce                   0000h 0000h | block number, 8 bytes
//! additional data         "ekm cartridge v1" 00h | volume serial, 6 bytes, padded with blanks
//!                         | DKi, 12 bytes | block number, 8 bytes | 01h last, 00h others
//! ```
//!
//! so that a cartridge that is written again under the same data key repeats no nonce. Block
//! number and last-block mark make a missing, repeated or moved block an error. The key check
//! tells a wrong key from a damaged block.

mod header;
mod stream;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use secrecy::SecretBox;
use tempfile::NamedTempFile;

pub use header::Header;
use header::Slots;
pub use stream::{CartridgeReader, CartridgeWriter};

use crate::key::{DataKeyId, Eedk};

/// A cartridge whose header has been read and whose blocks have not.
#[derive(Debug)]
pub struct SealedCartridge<R> {
    header: Header,
    input: R,
}

impl SealedCartridge<BufReader<File>> {
    /// Opens a cartridge file.
    ///
    /// # Errors
    ///
    /// [`CartridgeError`] where there is none, or none of ours.
    pub fn open(path: &Path) -> Result<Self, CartridgeError> {
        Self::new(BufReader::new(File::open(path)?))
    }
}

impl<R: Read> SealedCartridge<R> {
    /// Reads the header of a cartridge, and leaves `input` at its blocks.
    ///
    /// # Errors
    ///
    /// [`CartridgeError`] where neither header slot is whole.
    pub fn new(mut input: R) -> Result<Self, CartridgeError> {
        let header = Slots::read(&mut input)?.current()?.header.clone();
        Ok(Self { header, input })
    }

    /// What the cartridge says without a key.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads on with the data key.
    ///
    /// # Errors
    ///
    /// [`CartridgeError::WrongKey`] where it is another one.
    pub fn unlock(self, key: &SecretBox<[u8; 32]>) -> Result<CartridgeReader<R>, CartridgeError> {
        CartridgeReader::new(self.input, &self.header, key)
    }
}

/// Reads the header of a cartridge file.
///
/// # Errors
///
/// As [`SealedCartridge::open`].
pub fn read_header(path: &Path) -> Result<Header, CartridgeError> {
    Ok(Slots::read(&mut File::open(path)?)?
        .current()?
        .header
        .clone())
}

/// Replaces the EEDKs of a cartridge file and touches nothing else. A crash leaves either the old
/// ones or the new ones.
///
/// # Errors
///
/// [`CartridgeError::OtherDataKey`] where an EEDK is of another data key, and as
/// [`SealedCartridge::open`].
pub fn rewrite_eedks(path: &Path, eedks: Vec<Eedk>) -> Result<Header, CartridgeError> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    // Two that rewrite at once would choose the same slot.
    file.lock()?;
    let slots = Slots::read(&mut file)?;
    let current = slots.current()?;
    let header = Header::new(current.header.volser().clone(), current.header.dki(), eedks)?;
    let (offset, slot) = slots.next(&header)?;
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(&slot)?;
    file.sync_all()?;
    Ok(header)
}

/// A cartridge file that is being written. It is not there before [`Self::commit`], and then it
/// is there whole.
#[derive(Debug)]
pub struct CartridgeFile {
    path: PathBuf,
    existing: Existing,
    writer: CartridgeWriter<NamedTempFile>,
}

impl CartridgeFile {
    /// Begins a cartridge file of mode 0600, in a temporary file beside it.
    ///
    /// # Errors
    ///
    /// [`CartridgeError::Io`]; [`CartridgeError::Crypto`] where there are no random numbers.
    pub fn create(
        path: &Path,
        existing: Existing,
        header: &Header,
        key: &SecretBox<[u8; 32]>,
    ) -> Result<Self, CartridgeError> {
        if existing == Existing::Refuse && fs::symlink_metadata(path).is_ok() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists).into());
        }
        let output = NamedTempFile::new_in(folder(path))?;
        Ok(Self {
            path: path.to_owned(),
            existing,
            writer: CartridgeWriter::new(output, header, key)?,
        })
    }

    /// Writes the last block and puts the file in its place, durably.
    ///
    /// # Errors
    ///
    /// [`CartridgeError::Io`]; nothing is in its place then that was not there before.
    pub fn commit(self) -> Result<(), CartridgeError> {
        let Self {
            path,
            existing,
            writer,
        } = self;
        let file = writer.finish()?;
        file.as_file().sync_all()?;
        match existing {
            Existing::Refuse => file.persist_noclobber(&path),
            Existing::Replace => file.persist(&path),
        }
        .map_err(|error| error.error)?;
        File::open(folder(&path))?.sync_all()?;
        Ok(())
    }
}

impl Write for CartridgeFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.writer.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// What becomes of a cartridge file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and the new one is refused.
    Refuse,
    /// The new one takes its place, as writing from the load point does to a tape.
    Replace,
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

/// Why a cartridge cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CartridgeError {
    /// The file cannot be written or read.
    #[error("cannot read or write the cartridge file")]
    Io(#[from] io::Error),
    /// Not a cartridge file.
    #[error("expected a cartridge file, which begins with \"EKMCART1\"")]
    NotACartridge,
    /// Both header slots are damaged.
    #[error("both headers of the cartridge file are damaged")]
    Header,
    /// More EEDKs than a cartridge holds.
    #[error("a cartridge holds at most {limit} EEDKs, got {got}")]
    TooManyEedks {
        /// The limit.
        limit: usize,
        /// How many there were.
        got: usize,
    },
    /// An EEDK of another data key.
    #[error("expected an EEDK of the data key {expected}, got one of {got}")]
    OtherDataKey {
        /// The data key of the cartridge.
        expected: DataKeyId,
        /// The data key of the EEDK.
        got: DataKeyId,
    },
    /// Not the data key of this cartridge.
    #[error("this is not the data key of the cartridge")]
    WrongKey,
    /// The file ends before its blocks do.
    #[error("the cartridge file is cut short")]
    Truncated,
    /// A block that is not what was written there.
    #[error("block {number} is damaged or misplaced, or the cartridge file is cut short after it")]
    Block {
        /// Its number, from 0.
        number: u64,
    },
    /// An earlier error has left the stream unusable.
    #[error("the cartridge is unusable after an earlier error")]
    Failed,
    /// The cryptographic library fails.
    #[error("the cryptographic library failed")]
    Crypto,
}

impl From<CartridgeError> for io::Error {
    fn from(error: CartridgeError) -> Self {
        match error {
            CartridgeError::Io(error) => error,
            error @ (CartridgeError::NotACartridge
            | CartridgeError::Header
            | CartridgeError::TooManyEedks { .. }
            | CartridgeError::OtherDataKey { .. }
            | CartridgeError::WrongKey
            | CartridgeError::Truncated
            | CartridgeError::Block { .. }
            | CartridgeError::Failed
            | CartridgeError::Crypto) => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

#[cfg(test)]
mod tests;
