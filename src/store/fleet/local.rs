//! What a server keeps on its own disk while the database is there, so that nobody who can write
//! that disk can use it: each file and line is sealed.
//!
//! The keys of the seals come from the tokens. Each token has an HMAC key for
//! this server, which never leaves it; what it makes of [`derivation`] is the
//! key here, in memory only. So a seal costs no call, and after a restart
//! whoever wants the key again needs the token and its PIN.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::hmac;
use secrecy::{ExposeSecret as _, SecretBox};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::bridge::certify::{Mac, SealId};
use crate::files;

/// Longest list of keys, bytes.
const MAX_LIST: u64 = 1 << 20;

/// What is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The cached table.
    Cache,
    /// A line of the queue.
    Queue,
}

/// A seal by the key of one token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LocalSeal {
    key: String,
    mac: String,
}

/// Something with its seals.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Sealed {
    pub(super) body: String,
    pub(super) seals: Vec<LocalSeal>,
}

/// How a seal was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the one that was made.
    Good,
    /// It is not.
    Bad,
    /// No key of it is here yet.
    Unknown,
}

/// The key of one token, as the list on the disk names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    token: String,
    key: String,
}

/// The keys of a server's seals.
pub struct LocalKeys {
    node: String,
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    listed: Vec<Listed>,
    secrets: BTreeMap<String, SecretBox<Mac>>,
}

impl fmt::Debug for LocalKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKeys")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl LocalKeys {
    /// The keys whose list is in that directory.
    pub(super) fn open(directory: &Path, node: &str) -> Self {
        let path = directory.join("fleet-keys.json");
        // Without the list new keys are made, and what was sealed before is not believed.
        let listed = files::read_limited(&path, MAX_LIST)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        Self {
            node: node.to_owned(),
            path,
            known: Mutex::new(Known {
                listed,
                secrets: BTreeMap::new(),
            }),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a token's key is asked for; what it gives is the key here.
    #[must_use]
    pub fn derivation(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(b"ekm local state of one server, version 1\0");
        digest.update(self.node.as_bytes());
        digest.finalize().into()
    }

    /// `CKA_ID` of a token's keys, the newest last: where a token was replaced there is a newer one,
    /// and what the older one sealed may still be there.
    #[must_use]
    pub fn listed(&self, token: &str) -> Vec<SealId> {
        let known = self.known();
        let own = known.listed.iter().filter(|listed| listed.token == token);
        own.filter_map(|listed| hex::decode(&listed.key).ok()?.try_into().ok())
            .collect()
    }

    /// Whether the key of a token is here.
    #[must_use]
    pub fn has(&self, token: &str) -> bool {
        let known = self.known();
        let mut listed = known.listed.iter();
        listed.any(|listed| listed.token == token && known.secrets.contains_key(&listed.key))
    }

    /// Whether there is any key to seal with.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.known().secrets.is_empty()
    }

    /// Takes the key of a token in, and writes down which one it is.
    ///
    /// # Errors
    /// The list cannot be written.
    pub fn take_in(&self, token: &str, key: SealId, secret: Mac) -> std::io::Result<()> {
        let id = hex::encode(key);
        let mut known = self.known();
        let fresh = Listed {
            token: token.to_owned(),
            key: id.clone(),
        };
        if !known.listed.contains(&fresh) {
            let mut listed = known.listed.clone();
            listed.push(fresh);
            files::write_private(&self.path, &serde_json::to_vec(&listed)?)?;
            known.listed = listed;
        }
        known.secrets.insert(id, SecretBox::new(Box::new(secret)));
        Ok(())
    }

    fn sealed_bytes(&self, kind: Kind, body: &str) -> Vec<u8> {
        let kind: &[u8] = match kind {
            Kind::Cache => b"cache\0",
            Kind::Queue => b"queue\0",
        };
        [kind, self.node.as_bytes(), b"\0", body.as_bytes()].concat()
    }

    /// With a seal by each key that is here.
    pub(super) fn seal(&self, kind: Kind, body: String) -> Sealed {
        let bytes = self.sealed_bytes(kind, &body);
        let seals = self
            .known()
            .secrets
            .iter()
            .map(|(key, secret)| {
                let hmac_key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret());
                LocalSeal {
                    key: key.clone(),
                    mac: hex::encode(hmac::sign(&hmac_key, &bytes)),
                }
            })
            .collect();
        Sealed { body, seals }
    }

    /// Whether one of the seals is by a key that is here.
    pub(super) fn verify(&self, kind: Kind, sealed: &Sealed) -> Verdict {
        let bytes = self.sealed_bytes(kind, &sealed.body);
        let known = self.known();
        let mut verdict = Verdict::Unknown;
        for LocalSeal { key, mac } in &sealed.seals {
            let Some(secret) = known.secrets.get(key) else {
                continue;
            };
            let hmac_key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret());
            let good =
                hex::decode(mac).is_ok_and(|mac| hmac::verify(&hmac_key, &bytes, &mac).is_ok());
            if good {
                return Verdict::Good;
            }
            verdict = Verdict::Bad;
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_good_for_its_kind_its_server_and_its_body_only() {
        let directory = tempfile::tempdir().unwrap();
        let keys = LocalKeys::open(directory.path(), "a");
        let sealed = |keys: &LocalKeys| keys.seal(Kind::Cache, "body".to_owned());
        assert!(sealed(&keys).seals.is_empty());
        keys.take_in("main", [1; 16], [2; 32]).unwrap();
        let good = sealed(&keys);
        assert_eq!(keys.verify(Kind::Cache, &good), Verdict::Good);
        assert_eq!(keys.verify(Kind::Queue, &good), Verdict::Bad);
        let other = Sealed {
            body: "bodi".to_owned(),
            seals: good.seals.clone(),
        };
        assert_eq!(keys.verify(Kind::Cache, &other), Verdict::Bad);

        // After a restart the token is needed; another server's files are not taken.
        let again = LocalKeys::open(directory.path(), "a");
        assert_eq!(again.verify(Kind::Cache, &good), Verdict::Unknown);
        assert_eq!(again.listed("main"), [[1; 16]]);
        again.take_in("main", [1; 16], [2; 32]).unwrap();
        assert_eq!(again.verify(Kind::Cache, &good), Verdict::Good);
        let server = LocalKeys::open(directory.path(), "b");
        server.take_in("main", [1; 16], [2; 32]).unwrap();
        assert_eq!(server.verify(Kind::Cache, &good), Verdict::Bad);
        let path = directory.path().join("fleet-keys.json");
        assert_eq!(
            format!("{keys:?}"),
            format!("LocalKeys {{ path: {path:?}, .. }}")
        );
    }
}
