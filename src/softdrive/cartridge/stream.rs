//! The blocks of a cartridge, written and read in constant memory.

use std::{
    fmt,
    io::{self, Read, Write},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf, rand,
};
use secrecy::{ExposeSecret, SecretBox};
use subtle::ConstantTimeEq;

use super::{CartridgeError, Header, header::Slot};

/// Encrypts what is written to it onto a cartridge.
///
/// What is written counts only after [`Self::finish`]: without its last block a cartridge cannot
/// be read.
pub struct CartridgeWriter<W> {
    output: W,
    cipher: Cipher,
    buffer: Vec<u8>,
    state: State,
}

impl<W: Write> CartridgeWriter<W> {
    /// Begins a cartridge: writes its header and a fresh salt.
    ///
    /// # Errors
    ///
    /// [`CartridgeError::Io`], and [`CartridgeError::Crypto`] where there are no random numbers.
    pub fn new(
        mut output: W,
        header: &Header,
        key: &SecretBox<[u8; 32]>,
    ) -> Result<Self, CartridgeError> {
        let mut salt = [0; SALT_LEN];
        rand::fill(&mut salt).map_err(|_| CartridgeError::Crypto)?;
        let (cipher, check) = Cipher::derive(&salt, header, key)?;
        let slot = Slot::first(header).encode()?;
        output.write_all(&slot)?;
        output.write_all(&slot)?;
        output.write_all(&salt)?;
        output.write_all(&check)?;
        Ok(Self {
            output,
            cipher,
            buffer: Vec::with_capacity(BLOCK_LEN + TAG_LEN),
            state: State::Open,
        })
    }

    /// Writes the last block.
    ///
    /// # Errors
    ///
    /// [`CartridgeError::Io`], and [`CartridgeError::Failed`] after an error of a write.
    pub fn finish(mut self) -> Result<W, CartridgeError> {
        self.seal(Position::Last)?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn seal(&mut self, position: Position) -> Result<(), CartridgeError> {
        if self.state != State::Open {
            return Err(CartridgeError::Failed);
        }
        // A block that could not be written is never sealed again: its number is used.
        self.state = State::Failed;
        self.cipher.seal(position, &mut self.buffer)?;
        self.output.write_all(&self.buffer)?;
        self.buffer.clear();
        self.state = State::Open;
        Ok(())
    }
}

impl<W: Write> Write for CartridgeWriter<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        // A full block is kept back until more follows, as it may be the last.
        if self.buffer.len() == BLOCK_LEN || self.state != State::Open {
            self.seal(Position::Inner)?;
        }
        let room = BLOCK_LEN - self.buffer.len();
        let taken = data.get(..room).unwrap_or(data);
        self.buffer.extend_from_slice(taken);
        Ok(taken.len())
    }

    /// Flushes the blocks that are full; the rest becomes a block of its own only at the end.
    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

impl<W> fmt::Debug for CartridgeWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CartridgeWriter")
            .field("block", &self.cipher.block)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// Decrypts a cartridge to whoever reads from it.
///
/// It gives only data that has been authenticated. But that the end is the end is known only
/// when a read has returned 0: until then, what was read may be the part of something longer.
pub struct CartridgeReader<R> {
    input: R,
    cipher: Cipher,
    /// A byte of the next block: whether there is one decides if this is the last.
    ahead: Option<u8>,
    buffer: Vec<u8>,
    served: usize,
    state: State,
}

impl<R: Read> CartridgeReader<R> {
    /// Reads salt and key check, which follow the header.
    pub(super) fn new(
        mut input: R,
        header: &Header,
        key: &SecretBox<[u8; 32]>,
    ) -> Result<Self, CartridgeError> {
        let mut salt = [0; SALT_LEN];
        let mut expected = [0; CHECK_LEN];
        for field in [&mut salt[..], &mut expected[..]] {
            input.read_exact(field).map_err(cut_short)?;
        }
        let (cipher, check) = Cipher::derive(&salt, header, key)?;
        if check.ct_eq(&expected).unwrap_u8() == 0 {
            return Err(CartridgeError::WrongKey);
        }
        Ok(Self {
            input,
            cipher,
            ahead: None,
            buffer: Vec::with_capacity(BLOCK_LEN + TAG_LEN + 1),
            served: 0,
            state: State::Open,
        })
    }

    /// Reads and opens the next block, which is full unless it is the last.
    fn open_block(&mut self) -> Result<(), CartridgeError> {
        self.state = State::Failed;
        self.served = 0;
        self.buffer.clear();
        self.buffer.extend(self.ahead.take());
        let full = BLOCK_LEN + TAG_LEN;
        let missing =
            u64::try_from(full + 1 - self.buffer.len()).map_err(|_| CartridgeError::Failed)?;
        let read = (&mut self.input)
            .take(missing)
            .read_to_end(&mut self.buffer);
        if let Err(error) = read {
            self.buffer.clear();
            return Err(error.into());
        }
        let position = if self.buffer.len() > full {
            self.ahead = self.buffer.pop();
            Position::Inner
        } else {
            Position::Last
        };
        if let Err(error) = self.cipher.open(position, &mut self.buffer) {
            // What is in there has not been authenticated.
            self.buffer.clear();
            return Err(error);
        }
        self.state = match position {
            Position::Inner => State::Open,
            Position::Last => State::Ended,
        };
        Ok(())
    }
}

impl<R: Read> Read for CartridgeReader<R> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        loop {
            let mut rest = self.buffer.get(self.served..).unwrap_or_default();
            if !rest.is_empty() {
                let len = rest.read(data)?;
                self.served += len;
                return Ok(len);
            }
            match self.state {
                State::Open => self.open_block()?,
                State::Ended => return Ok(0),
                State::Failed => return Err(CartridgeError::Failed.into()),
            }
        }
    }
}

impl<R> fmt::Debug for CartridgeReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CartridgeReader")
            .field("block", &self.cipher.block)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Inner,
    Last,
}

/// The key of the blocks, and which block is next.
struct Cipher {
    key: LessSafeKey,
    names: Vec<u8>,
    block: u64,
}

impl Cipher {
    fn derive(
        salt: &[u8; SALT_LEN],
        header: &Header,
        key: &SecretBox<[u8; 32]>,
    ) -> Result<(Self, [u8; CHECK_LEN]), CartridgeError> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(key.expose_secret());
        let key = secret
            .expand(&[b"ekm cartridge v1 blocks"], &AES_256_GCM)
            .map_err(|_| CartridgeError::Crypto)?;
        let mut check = [0; CHECK_LEN];
        secret
            .expand(&[b"ekm cartridge v1 check"], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut check))
            .map_err(|_| CartridgeError::Crypto)?;
        let cipher = Self {
            key: LessSafeKey::new(UnboundKey::from(key)),
            names: header.names(),
            block: 0,
        };
        Ok((cipher, check))
    }

    /// Encrypts a block in place and appends its authentication code.
    fn seal(&mut self, position: Position, block: &mut Vec<u8>) -> Result<(), CartridgeError> {
        let (_, nonce, data) = self.next(position)?;
        self.key
            .seal_in_place_append_tag(nonce, Aad::from(data), block)
            .map_err(|_| CartridgeError::Crypto)
    }

    /// Decrypts a block in place and takes its authentication code away.
    fn open(&mut self, position: Position, block: &mut Vec<u8>) -> Result<(), CartridgeError> {
        if block.len() < TAG_LEN {
            return Err(CartridgeError::Truncated);
        }
        let (number, nonce, data) = self.next(position)?;
        let len = self
            .key
            .open_in_place(nonce, Aad::from(data), block)
            .map_err(|_| CartridgeError::Block { number })?
            .len();
        block.truncate(len);
        Ok(())
    }

    /// Number, nonce and additional data of the next block. No number is ever used twice.
    fn next(&mut self, position: Position) -> Result<(u64, Nonce, Vec<u8>), CartridgeError> {
        let number = self.block;
        self.block = number.checked_add(1).ok_or(CartridgeError::Failed)?;
        let mut nonce = [0; NONCE_LEN];
        let (_, counter) = nonce.split_at_mut(NONCE_LEN - 8);
        counter.copy_from_slice(&number.to_be_bytes());
        let mark = match position {
            Position::Inner => 0,
            Position::Last => 1,
        };
        let data = [
            b"ekm cartridge v1\0",
            self.names.as_slice(),
            &number.to_be_bytes(),
            &[mark],
        ]
        .concat();
        Ok((number, Nonce::assume_unique_for_key(nonce), data))
    }
}

fn cut_short(error: io::Error) -> CartridgeError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => CartridgeError::Truncated,
        _ => error.into(),
    }
}

/// The data of a block, in bytes: the record length that tape software likes.
pub(super) const BLOCK_LEN: usize = 256 * 1024;

pub(super) const TAG_LEN: usize = 16;
pub(super) const SALT_LEN: usize = 32;
pub(super) const CHECK_LEN: usize = 32;
