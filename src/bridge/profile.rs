//! What differs from one PKCS#11 product to the next, as TOML.
//!
//! One file per product stands in `hsm-profiles/`; its README explains every
//! field. The profiles that ship are compiled in, so `profile = "softhsm2"`
//! works without any file beside the program; a path names a file of the site.

mod check;
mod directory;
mod sections;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::faults::FaultRule;
use crate::key::{OaepHash, WrapAlgorithm};

pub use sections::{
    CountLow, DataKeyProfile, DriveProfile, Generate, KekProfile, LoginProfile, ModuleProfile,
    Send, Sensitive, SessionProfile, UnwrapTemplate,
};

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../hsm-profiles/", $name, ".toml")))),*]
    };
}

/// The profiles that are compiled in: name and text.
const SHIPPED: &[(&str, &str)] = shipped![
    "embedded",
    "softhsm2",
    "p11-kit-remote",
    "opencryptoki-soft",
    "opencryptoki-cca",
    "opencryptoki-ep11",
    "opencryptoki-icsf",
    "nss",
    "tpm2-pkcs11",
    "luna",
    "nshield",
    "utimaco",
    "aws-cloudhsm",
    "securosys",
    "fortanix",
    "marvell",
    "yubihsm2",
    "nethsm",
    "google-kms",
];

/// How to drive one product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HsmProfile {
    /// Name of the profile, as `profile = "…"` gives it.
    pub name: String,
    /// What product this is.
    pub description: String,
    /// Which version was checked, when and by what; or that it was not.
    pub verified: String,
    /// Why `ekm` cannot use the product. Its slots can be listed, and no more.
    // Never skipped: the bridge's messages carry no field names.
    #[serde(default)]
    pub unsupported: Option<String>,
    /// The library and its surroundings.
    pub module: ModuleProfile,
    /// Who logs in.
    #[serde(default)]
    pub login: LoginProfile,
    /// How EEDKs are wrapped.
    pub eedk: WrapAlgorithm,
    /// What the token can wrap for a drive.
    pub drive: DriveProfile,
    /// Attributes of data keys.
    pub data_key: DataKeyProfile,
    /// Attributes of new KEKs.
    pub kek: KekProfile,
    /// Sessions and times.
    pub session: SessionProfile,
    /// What this product means by a `CKR_` code, where it is something else
    /// than what the fault table says (`ekm token explain`).
    #[serde(default)]
    pub faults: Vec<FaultRule>,
}

/// Why a profile could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No profile of that name ships.
    #[error("there is no profile {name}; shipped are {shipped}, or give the path of a .toml file")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        shipped: String,
    },
    /// The file cannot be read.
    #[error("cannot read the profile {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The text is not a profile.
    #[error("profile {name}: {source}")]
    Syntax {
        /// Name or path.
        name: String,
        /// The cause, with the line.
        source: Box<toml::de::Error>,
    },
    /// The product cannot do what `ekm` needs.
    #[error("profile {name}: ekm cannot use this product: {reason}")]
    Unsupported {
        /// Name.
        name: String,
        /// What it cannot do.
        reason: String,
    },
    /// A value is out of its range.
    #[error("profile {name}: {reason}")]
    Value {
        /// Name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
}

impl HsmProfile {
    /// A shipped profile by name, or a site's by the path of its `.toml` file.
    ///
    /// # Errors
    /// The name is unknown, or the file is unreadable or wrong.
    pub fn load(name: &str) -> Result<Self, ProfileError> {
        if let Some((_, text)) = SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
            return Self::parse(name, text);
        }
        if Path::new(name)
            .extension()
            .is_none_or(|extension| extension != "toml")
        {
            return Err(ProfileError::Unknown {
                name: name.to_owned(),
                shipped: Self::shipped().collect::<Vec<_>>().join(", "),
            });
        }
        let text = std::fs::read_to_string(name).map_err(|source| ProfileError::Read {
            path: name.into(),
            source,
        })?;
        Self::parse(name, &text)
    }

    /// How a software keystore works: nothing is a token's, everything custody `host`.
    #[must_use]
    pub fn software() -> Self {
        Self {
            name: "software".to_owned(),
            description: "RSA private keys of a key file, in memory".to_owned(),
            verified: String::new(),
            unsupported: None,
            module: ModuleProfile {
                library: String::new(),
                environment: BTreeMap::new(),
                reserved: None,
                keeps: None,
                files: BTreeMap::new(),
                folders: Vec::new(),
            },
            login: LoginProfile::default(),
            eedk: WrapAlgorithm::oaep(OaepHash::Sha256, true),
            drive: DriveProfile { forms: Vec::new() },
            data_key: DataKeyProfile {
                sensitive: Sensitive::Send,
                extractable: Send::Omit,
                value_len: Send::Omit,
                wrap_with_trusted: false,
                blesses: false,
            },
            kek: KekProfile {
                generate: Generate::VendorTool,
                unwrap_template: UnwrapTemplate::Never,
                denied_uses: Send::Omit,
                frozen: Send::Omit,
                uncopyable: Send::Omit,
            },
            session: SessionProfile {
                processes: 1,
                workers: 2,
                limit: None,
                deadline_seconds: 30,
                host_exchanges: 10_000,
                exchanges: None,
            },
            faults: Vec::new(),
        }
    }

    /// The names of the shipped profiles.
    pub fn shipped() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    fn parse(name: &str, text: &str) -> Result<Self, ProfileError> {
        let profile: Self = toml::from_str(text).map_err(|source| ProfileError::Syntax {
            name: name.to_owned(),
            source: Box::new(source),
        })?;
        profile.check().map_err(|reason| ProfileError::Value {
            name: name.to_owned(),
            reason,
        })?;
        Ok(profile)
    }

    /// That the product can serve at all.
    ///
    /// # Errors
    /// `Unsupported`, with what it cannot do.
    pub fn serves(&self) -> Result<(), ProfileError> {
        self.unsupported.as_ref().map_or(Ok(()), |reason| {
            Err(ProfileError::Unsupported {
                name: self.name.clone(),
                reason: reason.clone(),
            })
        })
    }

    /// Whether the token can only decrypt, so that its KEKs are all of custody `host`.
    #[must_use]
    pub const fn host_only(&self) -> bool {
        self.drive.forms.is_empty()
    }

    /// How this token wraps EEDKs.
    #[must_use]
    pub const fn wrap_algorithm(&self) -> WrapAlgorithm {
        self.eedk
    }
}

#[cfg(test)]
mod tests;
