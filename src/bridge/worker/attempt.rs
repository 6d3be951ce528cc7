//! The exchanges of one attempt, on one session.

use cryptoki_sys as ck;
use secrecy::SecretSlice;

use super::{During, Failure, Session};
use crate::bridge::faults::Fault;
use crate::bridge::host;
use crate::bridge::in_host::{self, DATA_KEY, InHost};
use crate::bridge::message::{Custody, KekOnToken, PrivateHalf, Recipient, Reply, WrapUnder};
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, Mechanism};
use crate::bridge::profile::Sensitive;
use crate::bridge::token::{OTHER, Token, import_template, wrapping};
use crate::key::{DataKeyId, Eedk, KekHash, Sedk};

/// Public keys that one session keeps imported. A small token's session
/// objects are scarce, and a server's busiest drives are few.
const IMPORTED: usize = 32;

/// The token and one session on it, for the length of one attempt.
pub(super) struct At<'a> {
    pub(super) token: &'a Token,
    pub(super) session: &'a mut Session,
}

/// An EEDK's KEK, looked up and allowed to open it.
pub(super) struct Opener {
    pub(super) label: String,
    pub(super) private: CK_OBJECT_HANDLE,
    pub(super) custody: Custody,
    // What it opens is wrapped under trusted keys only.
    pub(super) trusted: bool,
    // Of its modulus, and of what it opens.
    pub(super) bytes: usize,
}

impl At<'_> {
    pub(super) fn create(
        &mut self,
        dki: DataKeyId,
        keks: &[WrapUnder],
        drive: &Recipient,
        custody: Custody,
        block: &[u8; 16],
    ) -> Result<Reply, Failure> {
        if self.makes(drive.form) {
            let key = self
                .token
                .module
                .generate_key(
                    self.session.handle,
                    &Mechanism::Plain(ck::CKM_AES_KEY_GEN),
                    &self.token.born_template(),
                )
                .during(|| "generating the data key".to_owned())?;
            let made = self.issue(key, dki, keks, drive, block);
            self.destroy_after(key, made)
                .map(|(eedks, sedk, proof)| Reply::Created {
                    eedks,
                    sedk,
                    proof,
                    custody: Custody::Token,
                })
        } else if custody == Custody::Host {
            let key = self
                .token
                .module
                .random(self.session.handle, DATA_KEY)
                .during(|| "generating the data key".to_owned())?;
            Ok(Reply::Created {
                eedks: self.eedks_in_host(&key, dki, keks)?,
                sedk: self.in_host(&key).sedk(drive)?,
                proof: self.in_host(&key).block(block)?,
                custody: Custody::Host,
            })
        } else {
            Err(self.cannot_make(drive.form).into())
        }
    }

    fn issue(
        &mut self,
        key: CK_OBJECT_HANDLE,
        dki: DataKeyId,
        keks: &[WrapUnder],
        drive: &Recipient,
        block: &[u8; 16],
    ) -> Result<(Vec<Eedk>, Sedk, [u8; 16]), Failure> {
        let trusted = self.token.profile.data_key.wrap_with_trusted;
        let eedks = self.eedks_on_token(key, dki, keks, trusted)?;
        let sedk = self.sedk_on_token(key, drive, trusted)?;
        Ok((eedks, sedk, self.block_on_token(key, block)?))
    }

    pub(super) fn resolve(
        &mut self,
        eedk: &Eedk,
        kek: &KekHash,
        drive: &Recipient,
        custody: Custody,
    ) -> Result<Reply, Failure> {
        let opener = self.fitting(eedk, kek, custody)?;
        match opener.custody {
            Custody::Token => {
                self.must_make(&opener, drive.form)?;
                let key = self.unwrap(&opener, eedk, false)?;
                let made = self.sedk_on_token(key, drive, opener.trusted);
                let sedk = self.destroy_after(key, made)?;
                Ok(Reply::Resolved {
                    sedk,
                    custody: Custody::Token,
                    guarded: None,
                })
            }
            Custody::Host => {
                let key = self.decrypt(&opener, eedk)?;
                let sedk = self.in_host(&key).sedk(drive)?;
                Ok(Reply::Resolved {
                    sedk,
                    custody: Custody::Host,
                    guarded: None,
                })
            }
        }
    }

    pub(super) fn rekey(
        &mut self,
        eedk: &Eedk,
        kek: &KekHash,
        keks: &[WrapUnder],
        custody: Custody,
        block: &[u8; 16],
    ) -> Result<Reply, Failure> {
        let opener = self.fitting(eedk, kek, custody)?;
        match opener.custody {
            Custody::Token => {
                let key = self.unwrap(&opener, eedk, true)?;
                let made = self
                    .eedks_on_token(key, eedk.dki(), keks, opener.trusted)
                    .and_then(|eedks| Ok((eedks, self.block_on_token(key, block)?)));
                let (eedks, proof) = self.destroy_after(key, made)?;
                Ok(Reply::Rekeyed {
                    eedks,
                    proof,
                    custody: Custody::Token,
                })
            }
            Custody::Host => {
                let key = self.decrypt(&opener, eedk)?;
                Ok(Reply::Rekeyed {
                    eedks: self.eedks_in_host(&key, eedk.dki(), keks)?,
                    proof: self.in_host(&key).block(block)?,
                    custody: Custody::Host,
                })
            }
        }
    }

    pub(super) fn prove(
        &mut self,
        eedk: &Eedk,
        kek: &KekHash,
        custody: Custody,
        block: &[u8; 16],
    ) -> Result<Reply, Failure> {
        let opener = self.fitting(eedk, kek, custody)?;
        let proof = match opener.custody {
            Custody::Token => {
                let key = self.unwrap(&opener, eedk, true)?;
                let made = self.block_on_token(key, block);
                self.destroy_after(key, made)?
            }
            Custody::Host => {
                let key = self.decrypt(&opener, eedk)?;
                self.in_host(&key).block(block)?
            }
        };
        Ok(Reply::Proved {
            proof,
            custody: opener.custody,
        })
    }

    pub(super) fn canary(&self) -> Result<Reply, Failure> {
        let Some(canary) = &self.session.epoch.canary else {
            return Ok(Reply::Canary(false));
        };
        match self
            .token
            .sing(self.session.handle, &self.session.epoch.catalog, canary)
        {
            Ok(true) => Ok(Reply::Canary(true)),
            Ok(false) => Err(Fault::Unsupported {
                token: self.token.name.clone(),
                reason: format!("the canary {OTHER}"),
            }
            .into()),
            Err(error) => Err(Failure::Call(error, "opening the canary".to_owned())),
        }
    }

    /// The EEDK's KEK, and that a wrapped key of this length can be under it.
    fn fitting(&self, eedk: &Eedk, kek: &KekHash, custody: Custody) -> Result<Opener, Fault> {
        let opener = self.opener(eedk, kek, custody)?;
        if eedk.wrapped().len() == opener.bytes {
            return Ok(opener);
        }
        Err(Fault::BadEedk {
            token: self.token.name.clone(),
            kek: kek.to_string(),
            function: "length check".to_owned(),
            name: format!(
                "{} bytes where the KEK gives {}",
                eedk.wrapped().len(),
                opener.bytes
            ),
        })
    }

    pub(super) fn opener(
        &self,
        eedk: &Eedk,
        kek: &KekHash,
        custody: Custody,
    ) -> Result<Opener, Fault> {
        let token = self.token.name.clone();
        let missing = || Fault::NoKek {
            token: Some(token.clone()),
            kek: kek.to_string(),
        };
        let (entry, handles): (&KekOnToken, _) =
            self.session.epoch.catalog.kek(kek).ok_or_else(missing)?;
        let needs = match &entry.private {
            PrivateHalf::Absent => return Err(missing()),
            PrivateHalf::Refused { reason, .. } => {
                return Err(Fault::Refused {
                    token,
                    label: entry.label.to_string(),
                    reason: reason.clone(),
                });
            }
            PrivateHalf::Serves { custody, .. } => *custody,
        };
        let label = entry.label.to_string();
        if needs == Custody::Host && custody == Custody::Token {
            return Err(Fault::Unsupported {
                token,
                reason: format!(
                    "KEK {label} was made for custody host, and this drive is not enrolled for it (ekm drive mod SERIAL --custody host)"
                ),
            });
        }
        let private = handles.private.ok_or_else(missing)?;
        if eedk.wrap().is_v15() && !self.token.profile.wrap_algorithm().is_v15() {
            return Err(Fault::Refused {
                token,
                label,
                reason: format!(
                    "the EEDK is wrapped by {}, and the token's KEKs are for OAEP (profile {}, eedk.padding): whoever can probe PKCS#1 v1.5 paddings under a KEK opens all that is under it",
                    eedk.wrap(),
                    self.token.profile.name
                ),
            });
        }
        Ok(Opener {
            label,
            private,
            custody: needs,
            trusted: self.token.opens_trusted(entry),
            bytes: usize::try_from(entry.bits / 8).unwrap_or_default(),
        })
    }

    fn unwrap(
        &self,
        opener: &Opener,
        eedk: &Eedk,
        proof: bool,
    ) -> Result<CK_OBJECT_HANDLE, Failure> {
        let module = &self.token.module;
        let key = module
            .unwrap(
                self.session.handle,
                &wrapping(eedk.wrap(), eedk.oaep_label()),
                opener.private,
                eedk.wrapped(),
                &self.token.unwrap_template(proof, opener.trusted),
            )
            .during(|| format!("opening an EEDK under KEK {}", opener.label))?;
        if self.token.profile.data_key.sensitive == Sensitive::SetAfter {
            let set = module
                .set_attributes(
                    self.session.handle,
                    key,
                    &[Attr::flag(ck::CKA_SENSITIVE, true)],
                )
                .during(|| "making the data key sensitive".to_owned());
            if let Err(failure) = set {
                let _ = module.destroy(self.session.handle, key);
                return Err(failure);
            }
        }
        Ok(key)
    }

    fn decrypt(&self, opener: &Opener, eedk: &Eedk) -> Result<SecretSlice<u8>, Failure> {
        let key = self
            .token
            .module
            .decrypt(
                self.session.handle,
                &wrapping(eedk.wrap(), eedk.oaep_label()),
                opener.private,
                eedk.wrapped(),
            )
            .during(|| format!("opening an EEDK under KEK {} in host custody", opener.label))?;
        Ok(in_host::checked(&self.token.name, &opener.label, key)?)
    }

    /// Destroys the data key whatever came of it. Its session would take it
    /// along, but sessions live for days.
    fn destroy_after<T>(
        &self,
        key: CK_OBJECT_HANDLE,
        made: Result<T, Failure>,
    ) -> Result<T, Failure> {
        let destroyed = self
            .token
            .module
            .destroy(self.session.handle, key)
            .during(|| "destroying the data key's object".to_owned());
        match made {
            Err(Failure::Call(error, what)) => Err(Failure::Call(error, what)),
            // A session that still has the data key on it is closed, which only
            // a failed call leads to.
            other => destroyed.and(other),
        }
    }

    fn eedks_on_token(
        &mut self,
        key: CK_OBJECT_HANDLE,
        dki: DataKeyId,
        keks: &[WrapUnder],
        trusted: bool,
    ) -> Result<Vec<Eedk>, Failure> {
        let own = self.token.profile.wrap_algorithm();
        keks.iter()
            .map(|kek| {
                let algorithm = kek.way(own);
                let mechanism = wrapping(algorithm, dki.as_bytes());
                let public = match self.session.epoch.catalog.kek(&kek.hash) {
                    _ if trusted => Some(self.trusted(&kek.spki, &format!("KEK {}", kek.id))?),
                    Some((_, handles)) if handles.public.is_some() => handles.public,
                    _ => None,
                };
                let public = match public {
                    Some(handle) => handle,
                    None => self.import(&kek.spki)?,
                };
                let wrapped = self
                    .token
                    .module
                    .wrap(self.session.handle, &mechanism, public, key)
                    .during(|| format!("wrapping the data key under KEK {}", kek.id))?;
                Ok(in_host::eedk(
                    &self.token.name,
                    dki,
                    kek,
                    algorithm,
                    wrapped,
                )?)
            })
            .collect()
    }

    pub(super) fn in_host<'k>(&'k self, key: &'k SecretSlice<u8>) -> InHost<'k> {
        InHost {
            token: &self.token.name,
            key,
        }
    }

    fn eedks_in_host(
        &self,
        key: &SecretSlice<u8>,
        dki: DataKeyId,
        keks: &[WrapUnder],
    ) -> Result<Vec<Eedk>, Fault> {
        self.in_host(key)
            .eedks(dki, keks, self.token.profile.wrap_algorithm())
    }

    pub(super) fn sedk_on_token(
        &mut self,
        key: CK_OBJECT_HANDLE,
        drive: &Recipient,
        trusted: bool,
    ) -> Result<Sedk, Failure> {
        let (algorithm, label) = in_host::drive_wrap(&self.token.name, drive)?;
        let public = if trusted {
            self.trusted(&drive.spki, "the drive")?
        } else {
            self.import(&drive.spki)?
        };
        let wrapped = self
            .token
            .module
            .wrap(
                self.session.handle,
                &wrapping(algorithm, &label),
                public,
                key,
            )
            .during(|| "wrapping the data key for the drive".to_owned())?;
        Ok(in_host::sedk(&self.token.name, drive, wrapped)?)
    }

    fn block_on_token(&self, key: CK_OBJECT_HANDLE, block: &[u8; 16]) -> Result<[u8; 16], Failure> {
        self.token
            .module
            .encrypt_block(
                self.session.handle,
                &Mechanism::Plain(ck::CKM_AES_ECB),
                key,
                block,
            )
            .during(|| "encrypting the proof block".to_owned())
    }

    /// The public key that the security officer has blessed; one that is
    /// imported on a session never is.
    fn trusted(&self, spki: &[u8], whose: &str) -> Result<CK_OBJECT_HANDLE, Fault> {
        let hash = KekHash::of_spki(spki);
        self.session
            .epoch
            .catalog
            .trusted(&hash)
            .ok_or_else(|| Fault::Unsupported {
                token: self.token.name.clone(),
                reason: format!(
                    "data keys are wrapped under trusted keys only (CKA_WRAP_WITH_TRUSTED), and the public key of {whose} ({hash}) is not CKA_TRUSTED there; have the security officer bless it: ekm drive trust SERIAL --token {}. A key that is new in each session cannot be",
                    self.token.name
                ),
            })
    }

    /// The handle of a public key on this session, imported if need be.
    fn import(&mut self, spki: &[u8]) -> Result<CK_OBJECT_HANDLE, Failure> {
        let hash = KekHash::of_spki(spki);
        let imported = &mut self.session.imported;
        if let Some(index) = imported.iter().position(|(known, _)| *known == hash) {
            let entry = imported.remove(index);
            imported.push(entry);
            return Ok(entry.1);
        }
        if imported.len() >= IMPORTED {
            let (_, oldest) = imported.remove(0);
            self.token
                .module
                .destroy(self.session.handle, oldest)
                .during(|| "forgetting an old public key".to_owned())?;
        }
        let numbers = host::numbers(spki)
            .map_err(|error| in_host::fault(&self.token.name, error, "a public key"))?;
        let handle = self
            .token
            .module
            .create_object(self.session.handle, &import_template(&numbers))
            .during(|| "importing a public key".to_owned())?;
        self.session.imported.push((hash, handle));
        Ok(handle)
    }
}
