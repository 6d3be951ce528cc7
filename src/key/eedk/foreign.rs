//! EEDKs that are not of our layout: where in a captured blob one may be, and what opens it.
//!
//! IBM's layout is not public. What can be done with a blob that somebody captured (a page of SECURITY
//! PROTOCOL IN, an attribute of the cartridge's memory) and a KEK's private key is to try: `ekm eedk
//! probe` tries every place where a wrapped key may begin, by the paddings that are likely, and says
//! what opens. It stores nothing, and nothing else in `ekm` uses this module.
//!
//! A layout that becomes known is another [`ForeignLayout`] in [`LAYOUTS`].

mod ebcdic;
mod marks;
mod search;

use std::fmt;

use serde::Serialize;

pub use marks::{Mark, marks};
pub use search::{Certainty, Find, MAX_WORK, Opener, Padding, ProbeError, ProbeKey, Report, probe};

/// Longest blob, bytes.
pub const MAX_BLOB: usize = 64 * 1024;

/// In which order the bytes of a wrapped key stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ByteOrder {
    /// As RSA has them (RFC 8017, I2OSP): the highest first.
    Big,
    /// Reversed.
    Little,
}

impl fmt::Display for ByteOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Big => "big-endian",
            Self::Little => "little-endian",
        })
    }
}

/// A place where a wrapped key may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its first byte, counted from 0.
    pub offset: usize,
    /// The order of its bytes.
    pub order: ByteOrder,
}

/// A layout of EEDKs that is not ours.
pub trait ForeignLayout: fmt::Debug + Sync {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// Where in the blob a key may be that was wrapped under a modulus of so many bytes. Every place
    /// leaves room for that many.
    fn candidates(&self, blob: &[u8], modulus: usize) -> Vec<Candidate>;
}

/// The layouts that are tried.
pub const LAYOUTS: &[&dyn ForeignLayout] = &[&AnyPlace];

/// No layout: every place, forwards and backwards, except those whose bytes no encryption gives.
#[derive(Clone, Copy, Debug)]
pub struct AnyPlace;

/// Different byte values that a wrapped key has at least. Of 256 random bytes some 162 differ, with a
/// standard deviation of 5: text, tables and padding have fewer than this, ciphertexts never.
const DIFFERENT: usize = 96;

impl ForeignLayout for AnyPlace {
    fn name(&self) -> &'static str {
        "any place"
    }

    fn candidates(&self, blob: &[u8], modulus: usize) -> Vec<Candidate> {
        let mut counts = [0_usize; 256];
        let mut different = 0_usize;
        let mut candidates = Vec::new();
        for (end, entering) in blob.iter().enumerate() {
            if let Some(count) = counts.get_mut(usize::from(*entering)) {
                different += usize::from(*count == 0);
                *count += 1;
            }
            let leaving = end
                .checked_sub(modulus)
                .and_then(|leaving| blob.get(leaving));
            if let Some(count) = leaving.and_then(|byte| counts.get_mut(usize::from(*byte))) {
                *count -= 1;
                different -= usize::from(*count == 0);
            }
            if let Some(offset) = (end + 1).checked_sub(modulus)
                && different >= DIFFERENT
            {
                for order in [ByteOrder::Big, ByteOrder::Little] {
                    candidates.push(Candidate { offset, order });
                }
            }
        }
        candidates
    }
}

/// The bytes of a captured blob, and how they were written: as they are, or as text in hexadecimal or
/// base64, of which blanks and line ends do not count.
#[must_use]
pub fn decode(file: &[u8]) -> (Vec<u8>, &'static str) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text: Vec<u8> = file
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let digits: Vec<u8> = text.iter().copied().filter(|byte| *byte != b':').collect();
    if !digits.is_empty()
        && let Ok(bytes) = hex::decode(&digits)
    {
        return (bytes, "hexadecimal");
    }
    if text.len() >= 64
        && let Ok(bytes) = STANDARD.decode(&text)
    {
        return (bytes, "base64");
    }
    (file.to_vec(), "as it is")
}

#[cfg(test)]
mod tests;
