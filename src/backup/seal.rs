//! A stream of bytes under a passphrase.
//!
//! ```text
//! offset  length
//! 0       8       "EKMBACKU"
//! 8       4       version, 1
//! 12      4       Argon2id (RFC 9106): memory, KiB
//! 16      4       passes
//! 20      4       lanes
//! 24      16      salt
//! 40      32      the second half of what Argon2id makes of the passphrase
//! 72              chunks: AES-256-GCM under the first half, 65536 bytes and a
//!                 tag of 16; the last one is shorter or as long, and marked
//! ```
//!
//! Numbers are big-endian. A chunk's nonce is its number (11 bytes) and a byte
//! that is 1 for the last chunk only (the STREAM construction of Hoang, Reyhanitabar,
//! Rogaway and Vizár, 2015, as age has it); the header is authenticated with each. So a
//! chunk that is missing, moved, changed or from another file shows, and so does
//! an end that was cut off. The key is of one file only, since the salt is.

use std::io::{self, Read, Write};

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Bytes of a whole chunk, before its tag.
pub const CHUNK: usize = 64 * 1024;

/// Shortest passphrase, characters.
pub const SHORTEST: usize = 12;

const MAGIC: &[u8; 8] = b"EKMBACKU";
const FORMAT: u32 = 1;
const TAG: usize = 16;
const HEADER: usize = 72;
const CLEAR: usize = 40;

/// What one try of a passphrase costs: the second choice of RFC 9106, 4.
const COST: [u32; 3] = [64 * 1024, 3, 1];

/// The most that a file may ask for: 1 GiB, passes, lanes.
const BEARABLE: [u32; 3] = [1024 * 1024, 16, 16];

/// What is wrong with a sealed file.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It has another beginning.
    #[error("this is no backup of ekm")]
    NoBackup,
    /// It is of another version.
    #[error("it is of format {0}, and this ekm reads format {FORMAT}")]
    Format(u32),
    /// It asks for too much.
    #[error("it asks for more than 1 GiB of memory, 16 passes or 16 lanes; no backup of ekm does")]
    Cost,
    /// Another passphrase, or the header was changed.
    #[error("the passphrase is wrong, or the first {HEADER} bytes are damaged")]
    Passphrase,
    /// The passphrase is too short.
    #[error("a passphrase has {SHORTEST} characters at least, got {0}")]
    Short(usize),
    /// A chunk does not open.
    #[error(
        "it is damaged or cut off, at byte {0} or in the 64 KiB after it; take another copy of it"
    )]
    Damaged(u64),
    /// It ends in its header.
    #[error("it is cut off: it ends within its first {HEADER} bytes")]
    CutOff,
    /// Something that should not fail did.
    #[error("it cannot be sealed or opened: {0}")]
    Cryptography(&'static str),
    /// Reading or writing.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Whether a passphrase is long enough.
///
/// # Errors
/// [`SealError::Short`]
pub fn check(passphrase: &SecretString) -> Result<(), SealError> {
    match passphrase.expose_secret().chars().count() {
        got if got < SHORTEST => Err(SealError::Short(got)),
        _ => Ok(()),
    }
}

struct Key {
    key: LessSafeKey,
    header: [u8; HEADER],
    number: u64,
}

impl Key {
    fn derive(clear: [u8; CLEAR], passphrase: &SecretString) -> Result<Self, SealError> {
        let failed = |_| SealError::Cryptography("Argon2id failed; is there memory enough?");
        let word = |at: usize| {
            let bytes = clear.get(at..at + 4).and_then(|four| four.try_into().ok());
            u32::from_be_bytes(bytes.unwrap_or_default())
        };
        let (memory, passes, lanes) = (word(12), word(16), word(20));
        let params = Params::new(memory, passes, lanes, Some(64)).map_err(failed)?;
        let salt = clear.get(24..).unwrap_or_default();
        let mut made = Zeroizing::new([0; 64]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.expose_secret().as_bytes(), salt, &mut *made)
            .map_err(failed)?;
        let (key, check) = made.split_at(32);
        let mut header = [0; HEADER];
        let (front, back) = header.split_at_mut(CLEAR);
        front.copy_from_slice(&clear);
        back.copy_from_slice(check);
        let key = UnboundKey::new(&AES_256_GCM, key)
            .map_err(|_| SealError::Cryptography("AES-256-GCM took no key"))?;
        Ok(Self {
            key: LessSafeKey::new(key),
            header,
            number: 0,
        })
    }

    fn nonce(&mut self, last: bool) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        for (to, from) in nonce.iter_mut().skip(3).zip(self.number.to_be_bytes()) {
            *to = from;
        }
        if let Some(end) = nonce.last_mut() {
            *end = u8::from(last);
        }
        self.number += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Seals what is written to it.
pub struct Sealer<W> {
    to: W,
    key: Key,
    chunk: Zeroizing<Vec<u8>>,
}

impl<W> std::fmt::Debug for Sealer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

impl<W: Write> Sealer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// The passphrase is too short, or writing.
    pub fn begin(mut to: W, passphrase: &SecretString) -> Result<Self, SealError> {
        check(passphrase)?;
        let mut salt = [0; 16];
        aws_lc_rs::rand::fill(&mut salt)
            .map_err(|_| SealError::Cryptography("the operating system gives no random numbers"))?;
        let mut clear = [0; CLEAR];
        let numbers = [FORMAT].into_iter().chain(COST);
        let bytes = MAGIC
            .iter()
            .copied()
            .chain(numbers.flat_map(u32::to_be_bytes))
            .chain(salt);
        for (to, from) in clear.iter_mut().zip(bytes) {
            *to = from;
        }
        let key = Key::derive(clear, passphrase)?;
        to.write_all(&key.header)?;
        Ok(Self {
            to,
            key,
            chunk: Zeroizing::new(Vec::with_capacity(CHUNK + TAG)),
        })
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let nonce = self.key.nonce(last);
        let aad = Aad::from(self.key.header);
        self.key
            .key
            .seal_in_place_append_tag(nonce, aad, &mut *self.chunk)
            .map_err(|_| io::Error::other("AES-256-GCM failed"))?;
        self.to.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }

    /// Writes the last chunk.
    ///
    /// # Errors
    /// Writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        self.to.flush()?;
        Ok(self.to)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        // Only now is it known that this chunk is not the last.
        if self.chunk.len() >= CHUNK {
            self.seal(false)?;
        }
        let room = CHUNK - self.chunk.len();
        let some = bytes.get(..room).unwrap_or(bytes);
        self.chunk.extend_from_slice(some);
        Ok(some.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Opens what it reads.
pub struct Opener<R> {
    from: R,
    key: Key,
    // The chunk after this one, sealed; none where there is no other.
    next: Vec<u8>,
    chunk: Zeroizing<Vec<u8>>,
    read: usize,
    at: u64,
    over: bool,
}

impl<R> std::fmt::Debug for Opener<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").finish_non_exhaustive()
    }
}

impl<R: Read> Opener<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// It is no backup, or the passphrase is wrong.
    pub fn begin(mut from: R, passphrase: &SecretString) -> Result<Self, SealError> {
        let header = filled(&mut from, HEADER)?;
        if header.get(..8) != Some(MAGIC.as_slice()) {
            return Err(SealError::NoBackup);
        }
        let Ok(header) = <[u8; HEADER]>::try_from(header) else {
            return Err(SealError::CutOff);
        };
        let words: Vec<u32> = header
            .chunks_exact(4)
            .skip(2)
            .take(4)
            .filter_map(|four| Some(u32::from_be_bytes(four.try_into().ok()?)))
            .collect();
        let [format, cost @ ..] = words.as_slice() else {
            return Err(SealError::CutOff);
        };
        if *format != FORMAT {
            return Err(SealError::Format(*format));
        }
        if cost.iter().zip(BEARABLE).any(|(got, most)| *got > most) {
            return Err(SealError::Cost);
        }
        let clear = header.first_chunk::<CLEAR>().ok_or(SealError::CutOff)?;
        let key = Key::derive(*clear, passphrase)?;
        if !bool::from(key.header.ct_eq(&header)) {
            return Err(SealError::Passphrase);
        }
        let next = filled(&mut from, CHUNK + TAG)?;
        Ok(Self {
            from,
            key,
            next,
            chunk: Zeroizing::default(),
            read: 0,
            at: u64::try_from(HEADER).unwrap_or_default(),
            over: false,
        })
    }

    /// Opens the next chunk.
    fn open(&mut self) -> Result<(), SealError> {
        let mut sealed = Zeroizing::new(std::mem::take(&mut self.next));
        self.next = filled(&mut self.from, CHUNK + TAG)?;
        let last = self.next.is_empty();
        let (at, length) = (self.at, sealed.len());
        let nonce = self.key.nonce(last);
        let opened = self
            .key
            .key
            .open_in_place(nonce, Aad::from(self.key.header), &mut sealed)
            .map_err(|_| SealError::Damaged(at))?
            .len();
        sealed.truncate(opened);
        self.chunk = sealed;
        self.read = 0;
        self.at += u64::try_from(length).unwrap_or_default();
        self.over = last;
        Ok(())
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.read >= self.chunk.len() {
            if self.over {
                return Ok(0);
            }
            self.open().map_err(|error| match error {
                SealError::Io(error) => error,
                other => io::Error::new(io::ErrorKind::InvalidData, other),
            })?;
        }
        let rest = self.chunk.get(self.read..).unwrap_or_default();
        let some = rest.len().min(to.len());
        for (to, from) in to.iter_mut().zip(rest) {
            *to = *from;
        }
        self.read += some;
        Ok(some)
    }
}

/// As many bytes as there are, up to a number.
fn filled(from: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(most);
    from.take(u64::try_from(most).unwrap_or_default())
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase() -> SecretString {
        SecretString::from("correct horse battery")
    }

    fn sealed(content: &[u8]) -> Vec<u8> {
        let mut sealer = Sealer::begin(Vec::new(), &passphrase()).unwrap();
        sealer.write_all(content).unwrap();
        sealer.finish().unwrap()
    }

    fn opened(file: &[u8]) -> Result<Vec<u8>, String> {
        let mut content = Vec::new();
        Opener::begin(file, &passphrase())
            .map_err(|error| error.to_string())?
            .read_to_end(&mut content)
            .map_err(|error| error.to_string())?;
        Ok(content)
    }

    fn content(length: usize) -> Vec<u8> {
        (0..length)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect()
    }

    #[test]
    fn what_was_sealed_opens_whatever_its_length() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK] {
            let file = sealed(&content(length));
            assert_eq!(opened(&file).unwrap(), content(length), "{length}");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let file = sealed(&content(CHUNK + 1000));
        let places = (0..HEADER)
            .chain((HEADER..file.len()).step_by(9973))
            .chain([file.len() - 1]);
        for at in places {
            // Bits that ask Argon2id for a day of work are refused before.
            let mut bad = file.clone();
            bad[at] ^= if (12..24).contains(&at) { 0x80 } else { 1 };
            let refused = opened(&bad);
            assert!(refused.is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_file_that_is_cut_off_or_has_more_or_is_mixed_is_noticed() {
        let file = sealed(&content(3 * CHUNK));
        let chunk = CHUNK + TAG;
        for cut in [0, 7, 40, HEADER, HEADER + 5, HEADER + chunk, file.len() - 1] {
            assert!(opened(&file[..cut]).is_err(), "{cut}");
        }
        let mut more = file.clone();
        more.push(0);
        assert!(opened(&more).is_err());
        let mut again = file.clone();
        again.extend_from_slice(&file[HEADER..]);
        assert!(opened(&again).is_err());
        let mut swapped = file[..HEADER].to_vec();
        swapped.extend_from_slice(&file[HEADER + chunk..HEADER + 2 * chunk]);
        swapped.extend_from_slice(&file[HEADER..HEADER + chunk]);
        swapped.extend_from_slice(&file[HEADER + 2 * chunk..]);
        assert!(opened(&swapped).is_err());
        // The chunks of another file of the same passphrase and content.
        let mut mixed = file[..HEADER].to_vec();
        mixed.extend_from_slice(&sealed(&content(3 * CHUNK))[HEADER..]);
        assert!(opened(&mixed).is_err());
    }

    #[test]
    fn a_wrong_passphrase_is_told_from_damage() {
        let file = sealed(b"x");
        let other = SecretString::from("another passphrase");
        let refused = Opener::begin(&file[..], &other).unwrap_err();
        assert!(matches!(refused, SealError::Passphrase), "{refused}");
        let mut bad = file.clone();
        bad[HEADER + 1] ^= 1;
        assert!(opened(&bad).unwrap_err().contains("at byte 72"));
        let short = Sealer::begin(Vec::new(), &SecretString::from("short")).unwrap_err();
        assert!(matches!(short, SealError::Short(5)), "{short}");
    }

    #[test]
    fn a_file_that_asks_for_the_machines_memory_is_refused_at_once() {
        let mut file = sealed(b"x");
        for (at, byte) in [(12, 0xff), (16, 1), (20, 1)] {
            file[at] = byte;
            let refused = Opener::begin(&file[..], &passphrase()).unwrap_err();
            assert!(matches!(refused, SealError::Cost), "{refused}");
        }
    }
}
