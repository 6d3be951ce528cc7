//! What differs from one PKCS#11 product to the next, as TOML.
//!
//! One file per product stands in `hsm-profiles/`; its README explains every
//! field. The profiles that ship are compiled in, so `profile = "softhsm2"`
//! works without any file beside the program; a path names a file of the site.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::key::{OaepHash, SedkForm, WrapAlgorithm};

/// The profiles that are compiled in: name and text.
const SHIPPED: &[(&str, &str)] = &[
    ("embedded", include_str!("../../hsm-profiles/embedded.toml")),
    ("softhsm2", include_str!("../../hsm-profiles/softhsm2.toml")),
    (
        "p11-kit-remote",
        include_str!("../../hsm-profiles/p11-kit-remote.toml"),
    ),
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
    /// The library and its surroundings.
    pub module: ModuleProfile,
    /// How EEDKs are wrapped.
    pub eedk: EedkProfile,
    /// What the token can wrap for a drive.
    pub drive: DriveProfile,
    /// Attributes of data keys.
    pub data_key: DataKeyProfile,
    /// Attributes of new KEKs.
    pub kek: KekProfile,
    /// Sessions and times.
    pub session: SessionProfile,
}

/// The library and its surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleProfile {
    /// Path of the PKCS#11 library, or `embedded`.
    pub library: String,
    /// Environment of the bridge process; `{directory}` stands for the token's directory.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// `pReserved` of `C_Initialize`; `{directory}` as above.
    // Never skipped: the bridge's messages carry no field names.
    #[serde(default)]
    pub reserved: Option<String>,
    /// Files to make in the token's directory if they are not there: name to content.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Folders to make in the token's directory if they are not there.
    #[serde(default)]
    pub folders: Vec<String>,
}

/// How EEDKs are wrapped: always `CKM_RSA_PKCS_OAEP`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EedkProfile {
    /// OAEP and MGF1 hash.
    pub hash: OaepHash,
    /// Whether the DKi goes into the OAEP label.
    pub labelled: bool,
}

/// What the token can wrap for a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveProfile {
    /// SEDK forms that the token makes itself.
    pub forms: Vec<SedkForm>,
}

/// Whether an attribute goes into a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Send {
    /// It is sent.
    Send,
    /// It is left out: the token refuses it.
    Omit,
}

/// How an unwrapped key becomes sensitive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sensitive {
    /// `CKA_SENSITIVE` in the unwrap template.
    Send,
    /// `C_SetAttributeValue` after the unwrap, because the template's is ignored.
    SetAfter,
}

/// Attributes of data keys on unwrap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataKeyProfile {
    /// How it becomes sensitive.
    pub sensitive: Sensitive,
    /// Whether `CKA_EXTRACTABLE` true is sent.
    pub extractable: Send,
    /// Whether `CKA_VALUE_LEN` 32 is sent.
    pub value_len: Send,
}

/// Attributes of new KEKs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KekProfile {
    /// Whether `CKA_UNWRAP_TEMPLATE { CKA_SENSITIVE }` is sent at generation.
    pub unwrap_template: Send,
    /// Whether `CKA_MODIFIABLE` false is sent, so that no usage flag can be turned on later.
    pub frozen: Send,
}

/// Sessions and times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionProfile {
    /// Bridge processes that drive the token, each with as many workers. More than one is for a
    /// module that does one exchange at a time, whatever the number of sessions.
    pub processes: usize,
    /// Threads of one such process, each with a session of its own.
    pub workers: usize,
    /// Longest time that one exchange may take before the module counts as hung, seconds.
    pub deadline_seconds: u64,
    /// Host-custody exchanges after which the bridge is started anew.
    pub host_exchanges: u64,
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

    /// The names of the shipped profiles.
    pub fn shipped() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    fn parse(name: &str, text: &str) -> Result<Self, ProfileError> {
        let profile: Self = toml::from_str(text).map_err(|source| ProfileError::Syntax {
            name: name.to_owned(),
            source: Box::new(source),
        })?;
        let fault = |reason| {
            Err(ProfileError::Value {
                name: name.to_owned(),
                reason,
            })
        };
        if !(1..=16).contains(&profile.session.processes) {
            return fault("session.processes must be 1 to 16");
        }
        if !(1..=64).contains(&profile.session.workers) {
            return fault("session.workers must be 1 to 64");
        }
        if !(1..=300).contains(&profile.session.deadline_seconds) {
            return fault("session.deadline_seconds must be 1 to 300");
        }
        if profile.session.host_exchanges == 0 {
            return fault("session.host_exchanges must be 1 or more");
        }
        if profile.data_key.sensitive == Sensitive::SetAfter
            && profile.kek.unwrap_template == Send::Send
        {
            return fault(
                "data_key.sensitive = \"set-after\" and kek.unwrap_template = \"send\" contradict each other: the KEK would refuse every unwrap",
            );
        }
        if profile.drive.forms.contains(&SedkForm::T10Plain) {
            return fault(
                "drive.forms: t10-00h is the key in clear and never made by a token; leave it out",
            );
        }
        Ok(profile)
    }

    /// How this token wraps EEDKs.
    #[must_use]
    pub const fn wrap_algorithm(&self) -> WrapAlgorithm {
        WrapAlgorithm {
            hash: self.eedk.hash,
            labelled: self.eedk.labelled,
        }
    }

    /// Puts the token's directory where the profile says `{directory}`, and
    /// makes the files and folders that the profile wants in it.
    ///
    /// # Errors
    /// A file or folder cannot be made.
    pub fn settle(&mut self, directory: &Path) -> std::io::Result<()> {
        let place = |text: &str| text.replace("{directory}", &directory.display().to_string());
        let ModuleProfile {
            library,
            environment,
            reserved,
            files,
            folders,
        } = &mut self.module;
        *library = place(library);
        for value in environment.values_mut() {
            *value = place(value);
        }
        if let Some(text) = reserved {
            *text = place(text);
        }
        let wants_directory = !files.is_empty() || !folders.is_empty() || library == "embedded";
        if wants_directory {
            crate::files::private_dir(directory)?;
        }
        for folder in folders {
            crate::files::private_dir(&directory.join(folder))?;
        }
        for (name, content) in files {
            let path = directory.join(name);
            if !path.exists() {
                crate::files::write_private(&path, place(content).as_bytes())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_profile_parses_under_its_own_name() {
        for name in HsmProfile::shipped() {
            assert_eq!(HsmProfile::load(name).unwrap().name, name);
        }
    }

    #[test]
    fn an_unknown_name_lists_what_there_is() {
        let error = HsmProfile::load("sofhtsm").unwrap_err().to_string();
        assert!(error.contains("softhsm2"), "{error}");
    }
}
