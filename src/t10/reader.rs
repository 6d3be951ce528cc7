//! Reading and writing of big-endian fields, without indexing.

use super::PageError;

/// Reads fields from the front of a structure.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    structure: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(structure: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            structure,
            rest: bytes,
        }
    }

    /// Opens a page: its code, and the length that must cover exactly what follows.
    pub(super) fn page(
        structure: &'static str,
        expected: u16,
        bytes: &'a [u8],
    ) -> Result<Self, PageError> {
        let mut page = Self::new(structure, bytes);
        let got = page.u16()?;
        if got != expected {
            return Err(PageError::PageCode { expected, got });
        }
        let len = page.u16()?;
        let body = page.sub(structure, usize::from(len))?;
        page.finish()?;
        Ok(body)
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], PageError> {
        let (taken, rest) =
            self.rest
                .split_at_checked(len)
                .ok_or_else(|| PageError::Truncated {
                    structure: self.structure,
                    missing: len - self.rest.len(),
                })?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], PageError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, PageError> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, PageError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, PageError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, PageError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A part of `len` bytes, to be read on its own.
    pub(super) fn sub(&mut self, structure: &'static str, len: usize) -> Result<Self, PageError> {
        self.take(len).map(|bytes| Self::new(structure, bytes))
    }

    /// Reserved bytes, whatever they hold.
    pub(super) fn skip(&mut self, len: usize) -> Result<(), PageError> {
        self.take(len).map(drop)
    }

    /// Reserved bytes that must be zero.
    pub(super) fn zeros(&mut self, len: usize) -> Result<(), PageError> {
        if self.take(len)?.iter().any(|&byte| byte != 0) {
            return Err(PageError::Reserved {
                structure: self.structure,
            });
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(super) fn finish(self) -> Result<(), PageError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(PageError::TrailingBytes {
            structure: self.structure,
            got: self.rest.len(),
        })
    }
}

/// A page from its code and what follows the length field.
pub(super) fn page(code: u16, body: &[u8]) -> Vec<u8> {
    let mut page = Vec::with_capacity(4 + body.len());
    page.extend(code.to_be_bytes());
    page.extend(length(body).to_be_bytes());
    page.extend(body);
    page
}

/// The length of a field whose type bounds it far below 64 KiB.
pub(super) fn length(field: &[u8]) -> u16 {
    u16::try_from(field.len()).unwrap_or(u16::MAX)
}

/// A bit of a flags byte.
pub(super) fn bit(set: bool, position: u8) -> u8 {
    u8::from(set) << position
}

/// Whether a bit of a flags byte is set.
pub(super) fn is_set(byte: u8, position: u8) -> bool {
    byte >> position & 1 == 1
}
