//! What is on a tape image, for whoever wants to know that no block is in clear.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::image::{Found, Image, ImageError, Kind, Seal};
use crate::{key::DataKeyId, volser::Volser};

/// What is on a tape image, told without a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapeContents {
    /// Its volume serial.
    pub volser: Volser,
    /// Its medium serial number.
    pub medium_serial: String,
    /// Bytes that fit on it.
    pub capacity: u64,
    /// Its files. The last one has no filemark behind it, and is left out where it has no block.
    pub files: Vec<FileOnTape>,
    /// Blocks, over all files.
    pub blocks: u64,
    /// Those in clear.
    pub clear: u64,
    /// Those that are encrypted.
    pub encrypted: u64,
    /// EEDKs that the drive keeps on it, by data key.
    pub eedks: BTreeMap<String, usize>,
    /// Whether the image is damaged behind the last block that is shown here.
    pub damaged: bool,
}

/// What is between two filemarks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOnTape {
    /// Its number, from 0.
    pub number: u64,
    /// How many blocks.
    pub blocks: u64,
    /// Bytes as hosts wrote them.
    pub bytes: u64,
    /// Blocks in clear.
    pub clear: u64,
    /// Encrypted blocks.
    pub encrypted: u64,
    /// The data keys that encrypted blocks name, in the order in which they come first.
    pub data_keys: Vec<DataKeyUse>,
    /// Whether a filemark ends it.
    pub ended: bool,
}

/// How many blocks name a data key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataKeyUse {
    /// The A-KAD: a DKi, or hexadecimal digits where it is none.
    pub dki: String,
    /// The U-KAD as text, where there is one.
    pub name: Option<String>,
    /// How many blocks.
    pub blocks: u64,
}

impl TapeContents {
    /// Reads an image, which may be in a drive.
    ///
    /// # Errors
    ///
    /// [`ImageError`] where it is none, or cannot be read.
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let mut image = Image::view(path)?;
        let mut files = Vec::new();
        let mut file = FileOnTape::default();
        while let Found::Object(object) = image.next()? {
            image.pass(&object);
            match &object.kind {
                Kind::Filemark => {
                    let next = FileOnTape {
                        number: file.number + 1,
                        ..FileOnTape::default()
                    };
                    file.ended = true;
                    files.push(std::mem::replace(&mut file, next));
                    continue;
                }
                Kind::Clear => file.clear += 1,
                Kind::Encrypted(seal) => {
                    file.encrypted += 1;
                    count(&mut file.data_keys, seal);
                }
            }
            file.blocks += 1;
            file.bytes += u64::from(object.length);
        }
        if file.blocks > 0 {
            files.push(file);
        }
        let label = image.label();
        Ok(Self {
            volser: label.volser.clone(),
            medium_serial: label.serial.clone(),
            capacity: label.capacity,
            blocks: files.iter().map(|file| file.blocks).sum(),
            clear: files.iter().map(|file| file.clear).sum(),
            encrypted: files.iter().map(|file| file.encrypted).sum(),
            eedks: image
                .memory()
                .wrapped
                .iter()
                .map(|wrapped| (dki(&wrapped.akad), wrapped.eedks.len()))
                .collect(),
            damaged: image.damaged(),
            files,
        })
    }
}

fn count(uses: &mut Vec<DataKeyUse>, seal: &Seal) {
    let dki = dki(seal.akad.as_deref().unwrap_or_default());
    let name = seal
        .ukad
        .as_ref()
        .map(|ukad| String::from_utf8_lossy(ukad).into_owned());
    match uses
        .iter_mut()
        .find(|known| known.dki == dki && known.name == name)
    {
        Some(known) => known.blocks += 1,
        None => uses.push(DataKeyUse {
            dki,
            name,
            blocks: 1,
        }),
    }
}

fn dki(akad: &[u8]) -> String {
    DataKeyId::try_from(akad).map_or_else(|_| hex::encode(akad), |dki| dki.to_string())
}
