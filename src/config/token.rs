//! `[[tokens]]`

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bridge::message::{Hello, Task};
use crate::bridge::pin::PinSource;
use crate::bridge::profile::HsmProfile;
use crate::bridge::supervisor::Rank;
use crate::bridge::uri::TokenUri;

/// `[[tokens]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// A name of the site's own choosing.
    pub name: String,
    /// A shipped profile's name, or the path of a `.toml` file.
    pub profile: String,
    /// Which token: a PKCS#11 URI, `pkcs11:token=…;serial=…`.
    pub uri: TokenUri,
    /// The serials that it may have, the preferred first, where the nodes of a
    /// cluster show one label and a serial each.
    #[serde(default)]
    pub serials: Vec<String>,
    /// Where its user PIN comes from.
    pub pin: PinSource,
    /// Tokens of the lowest number that serve are used, the next only where none does.
    #[serde(default = "default_priority")]
    pub priority: u8,
    /// Its share of the work among tokens of its priority.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// What `{directory}` of the profile stands for; where the embedded token keeps its keys.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// Another library than the profile's.
    #[serde(default)]
    pub library: Option<String>,
    /// Environment variables of the bridge besides the profile's.
    #[serde(default)]
    pub environment: std::collections::BTreeMap<String, String>,
}

const fn default_priority() -> u8 {
    1
}

pub(super) const fn default_weight() -> u32 {
    1
}

/// Why a token's profile could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum TokenConfigError {
    /// The profile wraps EEDKs by PKCS#1 v1.5, and the policy does not allow it.
    #[error(
        "token {token} is not used: profile {profile} wraps EEDKs by RSAES-PKCS1-v1_5, whose padding can be probed (Bleichenbacher); take a token that has OAEP, or, knowing what docs/pkcs1-v15.md says, set policy.pkcs1_v15_eedks = \"allow\""
    )]
    Pkcs1V15 {
        /// The token.
        token: String,
        /// Its profile.
        profile: String,
    },
    /// The profile.
    #[error(transparent)]
    Profile(#[from] crate::bridge::profile::ProfileError),
    /// A directory or file.
    #[error("cannot make {path} for token {token}: {source}")]
    Directory {
        /// The token.
        token: String,
        /// Where.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl TokenConfig {
    /// The profile with this token's own settings in it.
    ///
    /// # Errors
    /// The profile is unknown or its files cannot be made.
    pub fn settled_profile(&self) -> Result<HsmProfile, TokenConfigError> {
        let Self {
            name,
            profile,
            uri: _,
            serials: _,
            pin: _,
            priority: _,
            weight: _,
            directory,
            library,
            environment,
        } = self;
        let mut profile = HsmProfile::load(profile)?;
        if let Some(library) = library {
            profile.module.library.clone_from(library);
        }
        profile.module.environment.extend(
            environment
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        let directory = directory.clone().unwrap_or_default();
        profile.settle(&directory);
        // Where there is no token the bridge says so, again and again until there is one.
        if profile.there().is_ok() {
            profile
                .make(&directory)
                .map_err(|source| TokenConfigError::Directory {
                    token: name.clone(),
                    path: directory,
                    source,
                })?;
        }
        Ok(profile)
    }

    /// Where it stands among the others.
    #[must_use]
    pub const fn rank(&self) -> Rank {
        Rank {
            priority: self.priority,
            weight: self.weight,
        }
    }

    /// What its bridge is told, with the PIN guard's files in `ledgers`.
    ///
    /// # Errors
    /// The profile or a directory cannot be had.
    pub fn hello(&self, ledgers: &Path) -> Result<Hello, TokenConfigError> {
        crate::files::private_dir(ledgers).map_err(|source| TokenConfigError::Directory {
            token: self.name.clone(),
            path: ledgers.to_owned(),
            source,
        })?;
        let profile = self.settled_profile()?;
        profile.serves()?;
        Ok(Hello {
            name: self.name.clone(),
            profile,
            task: Task::Serve {
                token: self.uri.clone(),
                serials: self.serials.clone(),
                pin: self.pin.clone(),
                ledgers: ledgers.to_owned(),
            },
        })
    }
}
