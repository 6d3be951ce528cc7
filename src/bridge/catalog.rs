//! The KEKs on a token, as its attributes tell.
//!
//! Keys are found by class and type, compared by modulus, and never guessed:
//! two keys under one label both appear, and whoever resolves the label sees
//! that it is ambiguous. A private key that may not serve appears with the
//! attribute that forbids it.

mod found;
mod private;
mod template;

use std::collections::HashMap;

use cryptoki_sys as ck;

use super::message::{Custody, KekOnToken, PrivateHalf};
use super::pkcs11::{CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, Module};
use super::profile::HsmProfile;
use crate::key::KekHash;
use found::{Certificates, Found, rsa_objects};

pub(super) use found::objects_of;
pub(super) use private::{BITS, attributes, judge, provenance};
pub(super) use template::{REFUSES_TEMPLATE, private_template, public_template, undemanding, uses};

/// Handles of one KEK, good until the next login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handles {
    pub(super) private: Option<CK_OBJECT_HANDLE>,
    pub(super) public: Option<CK_OBJECT_HANDLE>,
}

/// Everything on a token that can be named as a KEK.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Catalog {
    pub(super) keks: Vec<KekOnToken>,
    handles: HashMap<KekHash, Handles>,
    // Public keys that the security officer has blessed, KEKs' and drives'.
    trusted: HashMap<KekHash, CK_OBJECT_HANDLE>,
}

impl Catalog {
    /// Reads the token as the profile says; `host_only` where it opens EEDKs
    /// by `C_Decrypt` alone.
    pub(super) fn read(
        module: &Module,
        session: CK_SESSION_HANDLE,
        host_only: bool,
        profile: &HsmProfile,
    ) -> Call<Self> {
        let mut catalog = Self::default();
        let certificates = Certificates::read(module, session)?;
        for object in rsa_objects(module, session, ck::CKO_PRIVATE_KEY)? {
            let found = Found::read(module, session, object, Some(&certificates))?;
            let Some(found) = found.filter(Found::is_kek) else {
                continue;
            };
            let asked = profile.kek.unwrap_template;
            let attributes = attributes(module, session, object, asked)?;
            let private = judge(&attributes, found.bits, host_only, profile);
            catalog.add(found, &certificates, private, object);
        }
        for object in rsa_objects(module, session, ck::CKO_PUBLIC_KEY)? {
            let Some(found) = Found::read(module, session, object, None)? else {
                continue;
            };
            let wraps = module.flag(session, object, ck::CKA_WRAP)? == Some(true);
            // By the flag, never by the label: whoever has the user PIN can give a label.
            if wraps
                && (profile.data_key.wrap_with_trusted || !found.is_kek())
                && module.flag(session, object, ck::CKA_TRUSTED)? == Some(true)
            {
                catalog.trusted.insert(found.hash, object);
            }
            if !found.is_kek() {
                continue;
            }
            match catalog.handles.get_mut(&found.hash) {
                Some(handles) if wraps => handles.public = Some(object),
                Some(_) => {}
                None => {
                    let hash = found.hash;
                    catalog.add(found, &certificates, PrivateHalf::Absent, object);
                    if let Some(handles) = catalog.handles.get_mut(&hash).filter(|_| !wraps) {
                        handles.public = None;
                    }
                }
            }
        }
        catalog.keks.sort_by(|a, b| {
            (a.label.folded(), a.hash.as_bytes()).cmp(&(b.label.folded(), b.hash.as_bytes()))
        });
        Ok(catalog)
    }

    fn add(
        &mut self,
        found: Found,
        certificates: &Certificates,
        private: PrivateHalf,
        object: CK_OBJECT_HANDLE,
    ) {
        let Found {
            label,
            id,
            hash,
            spki,
            bits,
        } = found;
        let serves = matches!(private, PrivateHalf::Serves { .. });
        let refused = matches!(private, PrivateHalf::Refused { .. });
        // One key pair stored twice is as safe as its worse half: a twin that
        // can be read or wrapped out gives the key away.
        for kek in self.keks.iter_mut().filter(|kek| kek.hash == hash) {
            if refused {
                kek.private = private.clone();
            }
        }
        let known = self.keks.iter().find(|kek| kek.hash == hash);
        let private = known.map_or(private, |kek| kek.private.clone());
        let listed = self
            .keks
            .iter()
            .any(|kek| kek.hash == hash && kek.label.same_as(&label));
        if !listed {
            self.keks.push(KekOnToken {
                certificate: certificates.of(&id, &spki),
                label,
                hash,
                spki,
                bits,
                private: private.clone(),
            });
        }
        let handles = self.handles.entry(hash).or_insert(Handles {
            private: None,
            public: None,
        });
        match private {
            PrivateHalf::Absent => handles.public = Some(object),
            PrivateHalf::Refused { .. } => handles.private = None,
            // The half whose attributes were taken, not a twin's.
            PrivateHalf::Serves { .. } if serves => {
                handles.private.get_or_insert(object);
            }
            PrivateHalf::Serves { .. } => {}
        }
    }

    /// Marks a KEK as one that may not serve.
    pub(super) fn refuse(&mut self, hash: &KekHash, why: &str) {
        for kek in self.keks.iter_mut().filter(|kek| kek.hash == *hash) {
            if let PrivateHalf::Serves { attributes, .. } = kek.private {
                kek.private = PrivateHalf::Refused {
                    reason: why.to_owned(),
                    attributes,
                };
            }
        }
        if let Some(handles) = self.handles.get_mut(hash) {
            handles.private = None;
        }
    }

    /// Takes a refusal back: the KEK is as it was read.
    pub(super) fn reinstate(&mut self, hash: &KekHash, as_read: &Self) {
        let both = self.keks.iter_mut().zip(&as_read.keks);
        for (kek, read) in both.filter(|(kek, _)| kek.hash == *hash) {
            kek.private.clone_from(&read.private);
        }
        if let Some(handles) = as_read.handles.get(hash) {
            self.handles.insert(*hash, *handles);
        }
    }

    /// KEKs that would serve by what was read, and were refused since; each once, with what they
    /// are for.
    pub(super) fn refused_since(&self, as_read: &Self) -> Vec<(KekHash, Custody)> {
        let mut refused: Vec<(KekHash, Custody)> = Vec::new();
        for (read, now) in as_read.keks.iter().zip(&self.keks) {
            if let (PrivateHalf::Serves { custody, .. }, PrivateHalf::Refused { .. }) =
                (&read.private, &now.private)
                && !refused.iter().any(|(hash, _)| *hash == read.hash)
            {
                refused.push((read.hash, *custody));
            }
        }
        refused
    }

    /// The KEK of that hash, with its handles.
    pub(super) fn kek(&self, hash: &KekHash) -> Option<(&KekOnToken, Handles)> {
        let kek = self.keks.iter().find(|kek| kek.hash == *hash)?;
        Some((kek, *self.handles.get(hash)?))
    }

    /// The public key of that hash that the security officer has blessed.
    pub(super) fn trusted(&self, key: &KekHash) -> Option<CK_OBJECT_HANDLE> {
        self.trusted.get(key).copied()
    }

    /// Hashes of all public keys that he has blessed, in order.
    pub(super) fn all_trusted(&self) -> Vec<KekHash> {
        let mut all: Vec<KekHash> = self.trusted.keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// A KEK that serves in that custody.
    pub(super) fn first(&self, wanted: Custody) -> Option<&KekOnToken> {
        self.keks.iter().find(
            |kek| matches!(kek.private, PrivateHalf::Serves { custody, .. } if custody == wanted),
        )
    }

    /// A KEK to make the canary with, and what it is for.
    pub(super) fn canary(&self) -> Option<(&KekOnToken, Custody)> {
        [Custody::Token, Custody::Host]
            .into_iter()
            .find_map(|custody| self.first(custody).map(|kek| (kek, custody)))
    }
}

#[cfg(test)]
mod tests;
