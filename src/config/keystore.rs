//! `[[keystores]]`: software keystores beside the tokens, or instead of them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::token::default_weight;
use crate::bridge::message::{Hello, Task};
use crate::bridge::pin::PinSource;
use crate::bridge::profile::HsmProfile;
use crate::bridge::supervisor::Rank;

/// `[[keystores]]`: a key file whose private keys are held in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeystoreConfig {
    /// A name of the site's own choosing, among those of the tokens.
    pub name: String,
    /// The key file: JKS, JCEKS, PKCS#12 or PEM.
    pub file: PathBuf,
    /// Where its password comes from.
    pub password: PinSource,
    /// Where the password of its keys comes from, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_password: Option<PinSource>,
    /// As for tokens; the default lets every token come first.
    #[serde(default = "default_priority")]
    pub priority: u8,
    /// As for tokens.
    #[serde(default = "default_weight")]
    pub weight: u32,
}

const fn default_priority() -> u8 {
    9
}

impl KeystoreConfig {
    /// Makes its paths absolute.
    pub(super) fn settle(&mut self, folder: &Path) {
        self.file = folder.join(&self.file);
        for source in [Some(&mut self.password), self.key_password.as_mut()]
            .into_iter()
            .flatten()
        {
            if let PinSource::File(path) = source {
                *path = folder.join(&*path);
            }
        }
    }

    /// What is wrong with it, one sentence each.
    pub(super) fn faults(&self) -> Vec<String> {
        let Self {
            name,
            file: _,
            password,
            key_password,
            priority: _,
            weight: _,
        } = self;
        let mut faults = Vec::new();
        for (key, source) in [
            ("password", Some(password)),
            ("key_password", key_password.as_ref()),
        ] {
            let Some(source) = source else { continue };
            if let Some(fault) = source.fault() {
                faults.push(format!("keystores {name}: {key}: {fault}"));
            }
            if *source == PinSource::Pad {
                faults.push(format!(
                    "keystores {name}: {key}: a key file has no PIN pad; use file, credential, env, command or operator"
                ));
            }
        }
        // One of them can be handed to the bridge, and that is the store's own.
        if matches!(key_password, Some(PinSource::Env(_) | PinSource::Operator)) {
            faults.push(format!(
                "keystores {name}: key_password: use file, credential or command"
            ));
        }
        faults
    }

    /// Where it stands among the tokens.
    pub(crate) const fn rank(&self) -> Rank {
        Rank {
            priority: self.priority,
            weight: self.weight,
        }
    }

    /// What its bridge is told.
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            name: self.name.clone(),
            profile: HsmProfile::software(),
            task: Task::Keep {
                file: self.file.clone(),
                password: self.password.clone(),
                key_password: self.key_password.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_has_no_pin_pad_and_one_password_can_be_handed_on() {
        let keystore: KeystoreConfig = toml::from_str(
            "name = \"old\"\nfile = \"Cargo.toml\"\npassword = \"pad\"\nkey_password = \"operator\"",
        )
        .unwrap();
        let faults = keystore.faults().join("\n");
        assert!(faults.contains("has no PIN pad"), "{faults}");
        assert!(faults.contains("key_password: use file"), "{faults}");
    }
}
