//! The label of a tape image.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use sha2::{Digest, Sha256};

use super::ImageError;
use crate::volser::Volser;

/// What is printed on the cartridge, and what its maker put into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::softdrive::tape) struct Label {
    /// Bytes that fit on it.
    pub(in crate::softdrive::tape) capacity: u64,
    pub(in crate::softdrive::tape) volser: Volser,
    /// Its serial number, at most 32 characters.
    pub(in crate::softdrive::tape) serial: String,
}

impl Label {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Self {
            capacity,
            volser,
            serial,
        } = self;
        let mut label = MAGIC.to_vec();
        label.extend(capacity.to_be_bytes());
        label.extend(format!("{volser:<6}{serial:<32}").bytes());
        let digest = Sha256::digest(&label);
        label.extend(digest);
        label
    }

    pub(super) fn read(file: &File) -> Result<Self, ImageError> {
        let mut bytes = [0; LABEL + 32];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => ImageError::NotATape,
                _ => error.into(),
            })?;
        let rest = bytes.strip_prefix(MAGIC).ok_or(ImageError::NotATape)?;
        let decode = || {
            let (capacity, rest) = rest.split_first_chunk()?;
            let (volser, rest) = rest.split_at_checked(6)?;
            let serial = rest.get(..32)?;
            Some(Self {
                capacity: u64::from_be_bytes(*capacity),
                volser: std::str::from_utf8(volser).ok()?.parse().ok()?,
                serial: std::str::from_utf8(serial).ok()?.trim_end().to_owned(),
            })
        };
        let label = decode().ok_or(ImageError::Label)?;
        if label.encode() == bytes {
            Ok(label)
        } else {
            Err(ImageError::Label)
        }
    }
}

const MAGIC: &[u8] = b"EKMTAPE1";

/// Its length before its SHA-256, in bytes.
const LABEL: usize = 8 + 8 + 6 + 32;
