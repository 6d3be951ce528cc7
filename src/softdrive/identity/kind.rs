//! The kinds of software drives.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::SoftDriveError;
use crate::{
    key::SedkForm,
    t10::{KeyFormat, KeyFormats},
};

/// What a software drive is like, and so which keys it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriveKind {
    /// Takes wrapped keys and keeps two EEDKs on the cartridge, as a 3592 does.
    #[serde(rename = "3592")]
    Enterprise,
    /// Takes wrapped keys, KEY FORMAT 02h, and keeps no EEDK, as some LTO drives do.
    #[serde(rename = "lto")]
    Lto,
    /// Takes keys in clear alone, KEY FORMAT 00h, as the other LTO drives do.
    #[serde(rename = "lto-plain")]
    LtoPlain,
}

impl DriveKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Enterprise, Self::Lto, Self::LtoPlain];

    /// Its name in configuration and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enterprise => "3592",
            Self::Lto => "lto",
            Self::LtoPlain => "lto-plain",
        }
    }

    /// How many EEDKs it keeps on a cartridge.
    pub const fn max_eedks(self) -> u8 {
        match self {
            Self::Enterprise => 2,
            Self::Lto | Self::LtoPlain => 0,
        }
    }

    /// The KEY FORMATs that it takes.
    pub fn key_formats(self) -> KeyFormats {
        match self {
            Self::Enterprise | Self::Lto => KeyFormats::new([KeyFormat::Plain, KeyFormat::Wrapped]),
            Self::LtoPlain => KeyFormats::new([KeyFormat::Plain]),
        }
    }

    /// Whether it takes its data key in this form.
    pub const fn takes(self, form: SedkForm) -> bool {
        match self {
            Self::Enterprise | Self::Lto => true,
            Self::LtoPlain => matches!(form, SedkForm::T10Plain),
        }
    }
}

impl FromStr for DriveKind {
    type Err = SoftDriveError;

    fn from_str(given: &str) -> Result<Self, SoftDriveError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == given)
            .ok_or_else(|| SoftDriveError::Kind {
                got: given.to_owned(),
            })
    }
}

impl fmt::Display for DriveKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
