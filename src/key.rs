//! The keys of a cartridge, and what they are called.
//!
//! ```text
//! KEK  named by a KeyLabel, or by the KekHash of its public key     (in a token)
//! DK   named by its DataKeyId                                       (AES-256, never a type here)
//! EEDK the DK wrapped under one KEK, what the cartridge stores      (Eedk)
//! SEDK the DK wrapped for one drive                                 (Sedk)
//! ```
//!
//! Nothing here talks to a token or a drive: these are the parsed values that the rest of the
//! crate passes around, so that past the edge no string means a label and no bytes mean a key.

mod dki;
mod eedk;
mod label;
mod sedk;

pub use dki::{DataKeyId, DataKeyIdError};
pub use eedk::{Eedk, EedkError, OaepHash, Padding, WrapAlgorithm, foreign};
pub use label::{
    Encoding, EncodingError, KekHash, KekHashError, KekId, KekRef, KeyLabel, KeyLabelError,
};
pub use sedk::{Sedk, SedkError, SedkForm};
