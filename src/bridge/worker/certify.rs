//! Requests for certificates, certificates beside KEKs, and seals.

use std::cell::Cell;

use cryptoki_sys as ck;
use rcgen::{
    CertificateParams, KeyUsagePurpose, PublicKeyData, SignatureAlgorithm, SigningKey,
    SubjectPublicKeyInfo,
};
use secrecy::SecretSlice;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::attempt::At;
use super::{During, Failure};
use crate::bridge::certify::{Certified, Certify, Mac, SEAL_LABEL, SEALED, SealId};
use crate::bridge::faults::{Fault, FaultClass, ckr_name};
use crate::bridge::host;
use crate::bridge::message::{Custody, KekOnToken, PrivateHalf, Reply};
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, CallError, Mechanism};
use crate::certificates::{Certificate, Subject};
use crate::key::{DataKeyId, Eedk, KekHash, KekId};

/// DER of a `DigestInfo` with SHA-256, before the hash (RFC 8017, 9.2, note 1).
pub(super) const DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

impl At<'_> {
    pub(super) fn certify(&mut self, what: &Certify) -> Result<Certified, Failure> {
        match what {
            Certify::Request { kek, subject } => self.request(kek, subject),
            Certify::Possess { kek } => self.possess(kek),
            Certify::Store { kek, certificate } => self.store(kek, certificate),
            Certify::Seal { digest } => self.seal(digest),
            Certify::Reseal { key, digest } => self.reseal(key, digest).map(Certified::Resealed),
            Certify::Unseal { key } => self.unseal(key),
        }
    }

    fn held(&self, kek: &KekHash) -> Result<(KekOnToken, CK_OBJECT_HANDLE), Fault> {
        let token = self.token.name.clone();
        let missing = || Fault::NoKek {
            token: Some(token.clone()),
            kek: kek.to_string(),
        };
        let (entry, handles) = self.session.epoch.catalog.kek(kek).ok_or_else(missing)?;
        if let PrivateHalf::Refused { reason, .. } = &entry.private {
            return Err(Fault::Refused {
                token,
                label: entry.label.to_string(),
                reason: reason.clone(),
            });
        }
        Ok((entry.clone(), handles.private.ok_or_else(missing)?))
    }

    fn request(&self, kek: &KekHash, subject: &Subject) -> Result<Certified, Failure> {
        let (entry, private) = self.held(kek)?;
        let refused = |reason: String| Fault::Refused {
            token: self.token.name.clone(),
            label: entry.label.to_string(),
            reason,
        };
        let signs = matches!(&entry.private, PrivateHalf::Serves { attributes, .. }
            if attributes.sign == Some(true));
        if !signs {
            return Err(refused("CKA_SIGN is not true, so it signs no request".to_owned()).into());
        }
        let listed = self
            .token
            .module
            .mechanisms(self.token.slot())
            .during(|| "asking for the mechanisms".to_owned())?;
        let spki = SubjectPublicKeyInfo::from_der(&entry.spki)
            .map_err(|error| refused(format!("its public key: {error}")))?;
        let key = OnToken {
            at: self,
            spki,
            private,
            hashes: listed.contains(&ck::CKM_SHA256_RSA_PKCS),
            failed: Cell::new(None),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = subject.distinguished_name();
        params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
        let made = params.serialize_request(&key);
        if let Some(error) = key.failed.take() {
            return Err(Failure::Call(
                error,
                format!("signing the request for KEK {}", entry.label),
            ));
        }
        let made = made.map_err(|error| refused(format!("the request: {error}")))?;
        Ok(Certified::Request(made.der().to_vec()))
    }

    /// Wraps a key that opens nothing under the public half, and has the token open it.
    fn possess(&mut self, kek: &KekHash) -> Result<Certified, Failure> {
        let (entry, _) = self.held(kek)?;
        let fail = |reason: String| Fault::Refused {
            token: self.token.name.clone(),
            label: entry.label.to_string(),
            reason,
        };
        let mut random = [0_u8; 9 + 16 + 32];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| fail("the operating system gives no random numbers".to_owned()))?;
        let (dki, rest) = random.split_first_chunk::<9>().unwrap_or((&[0; 9], &[]));
        let (block, key) = rest.split_first_chunk::<16>().unwrap_or((&[0; 16], &[]));
        let (dki, key) = (
            DataKeyId::from_random(*dki),
            SecretSlice::from(key.to_vec()),
        );
        let algorithm = self.token.profile.wrap_algorithm();
        let wrapped = host::wrap(&entry.spki, algorithm, dki.as_bytes(), &key)
            .map_err(|error| fail(error.to_string()))?;
        let expected = host::encrypt_block(&key, block).map_err(|error| fail(error.to_string()))?;
        let eedk = Eedk::new(dki, KekId::Hash(*kek), algorithm, wrapped)
            .map_err(|error| fail(error.to_string()))?;
        match self.prove(&eedk, kek, Custody::Host, block)? {
            Reply::Proved { proof, .. } if bool::from(proof.ct_eq(&expected)) => {
                Ok(Certified::Possessed)
            }
            _ => Err(
                fail("it does not open what was wrapped under its public half".to_owned()).into(),
            ),
        }
    }

    fn store(&self, kek: &KekHash, der: &[u8]) -> Result<Certified, Failure> {
        let (entry, private) = self.held(kek)?;
        let not_taken = |reason: String| Ok(Certified::NotTaken(reason));
        let certificate = match Certificate::read(der) {
            Ok(certificate) if certificate.spki == entry.spki => certificate,
            Ok(_) => return not_taken("it is not the KEK's certificate".to_owned()),
            Err(error) => return not_taken(error.to_string()),
        };
        let (module, session) = (&self.token.module, self.session.handle);
        let reading = || "reading the certificates".to_owned();
        let mut older = Vec::new();
        let mut there = false;
        for object in module
            .find(
                session,
                &[
                    Attr::ulong(ck::CKA_CLASS, ck::CKO_CERTIFICATE),
                    Attr::flag(ck::CKA_TOKEN, true),
                ],
            )
            .during(reading)?
        {
            let value = module
                .attribute(session, object, ck::CKA_VALUE)
                .during(reading)?
                .unwrap_or_default();
            if value.as_slice() == der {
                there = true;
            } else if Certificate::read(&value).is_ok_and(|other| other.spki == entry.spki) {
                older.push(object);
            }
        }
        if !there {
            let id = module
                .attribute(session, private, ck::CKA_ID)
                .during(|| format!("reading CKA_ID of KEK {}", entry.label))?
                .map(|id| id.to_vec())
                .unwrap_or_default();
            let template = [
                Attr::ulong(ck::CKA_CLASS, ck::CKO_CERTIFICATE),
                Attr::ulong(ck::CKA_CERTIFICATE_TYPE, ck::CKC_X_509),
                Attr::flag(ck::CKA_TOKEN, true),
                Attr::flag(ck::CKA_PRIVATE, false),
                Attr::bytes(ck::CKA_LABEL, entry.label.as_str()),
                Attr::bytes(ck::CKA_ID, id),
                Attr::bytes(ck::CKA_SUBJECT, certificate.subject_der),
                Attr::bytes(ck::CKA_ISSUER, certificate.issuer_der),
                Attr::bytes(ck::CKA_SERIAL_NUMBER, certificate.serial_der),
                Attr::bytes(ck::CKA_VALUE, der),
            ];
            match module.create_object(session, &template) {
                Ok(_) => {}
                Err(error) if matches!(error.class, FaultClass::Request | FaultClass::Operator) => {
                    return not_taken(format!(
                        "{} answered {}",
                        error.function,
                        ckr_name(error.rv)
                    ));
                }
                Err(error) => {
                    return Err(Failure::Call(
                        error,
                        format!("storing the certificate of KEK {}", entry.label),
                    ));
                }
            }
        }
        for object in older {
            // One that stays is no harm: of several the one that is good for longest counts.
            if let Err(error) = module.destroy(session, object) {
                tracing::warn!(
                    token = self.token.name,
                    kek = %entry.label,
                    code = ckr_name(error.rv),
                    "an older certificate stays on the token"
                );
            }
        }
        self.token.renew(self.session.epoch.number, Some(session))?;
        Ok(Certified::Stored)
    }

    fn seal(&self, digest: &[u8; 32]) -> Result<Certified, Failure> {
        let (module, session) = (&self.token.module, self.session.handle);
        let mut id: SealId = [0; 16];
        if aws_lc_rs::rand::fill(&mut id).is_err() {
            return Ok(Certified::NotTaken(
                "the operating system gives no random numbers".to_owned(),
            ));
        }
        let template = [
            Attr::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
            Attr::flag(ck::CKA_TOKEN, true),
            Attr::flag(ck::CKA_PRIVATE, true),
            Attr::bytes(ck::CKA_LABEL, SEAL_LABEL),
            Attr::bytes(ck::CKA_ID, id),
            Attr::flag(ck::CKA_SENSITIVE, true),
            Attr::flag(ck::CKA_EXTRACTABLE, false),
            Attr::flag(ck::CKA_SIGN, true),
            Attr::flag(ck::CKA_DERIVE, false),
            Attr::ulong(ck::CKA_VALUE_LEN, 32),
        ];
        let made = module.generate_key(
            session,
            &Mechanism::Plain(ck::CKM_GENERIC_SECRET_KEY_GEN),
            &template,
        );
        let key = match taken(made) {
            Taken::Yes(key) => key,
            Taken::No(reason) => return Ok(Certified::NotTaken(reason)),
            Taken::Failed(error) => {
                return Err(Failure::Call(error, "making a seal key".to_owned()));
            }
        };
        let discard = || {
            // It has sealed nothing.
            let _ = module.destroy(session, key);
        };
        let flag = |kind| module.flag(session, key, kind);
        let kept = flag(ck::CKA_SENSITIVE)
            .and_then(|sensitive| Ok((sensitive, flag(ck::CKA_EXTRACTABLE)?)));
        match kept {
            Ok((Some(true), Some(false))) => {}
            Ok(_) => {
                discard();
                return Ok(Certified::NotTaken(
                    "it made the seal key so that its value can be had".to_owned(),
                ));
            }
            Err(error) => {
                discard();
                return Err(Failure::Call(error, "looking at the seal key".to_owned()));
            }
        }
        match taken(self.mac(key, digest)) {
            Taken::Yes(Some(mac)) => Ok(Certified::Sealed { key: id, mac }),
            Taken::Yes(None) => {
                discard();
                Ok(Certified::NotTaken(
                    "CKM_SHA256_HMAC did not give 32 bytes".to_owned(),
                ))
            }
            Taken::No(reason) => {
                discard();
                Ok(Certified::NotTaken(reason))
            }
            Taken::Failed(error) => {
                discard();
                Err(Failure::Call(error, "sealing a partner's KEK".to_owned()))
            }
        }
    }

    fn reseal(&self, id: &SealId, digest: &[u8; 32]) -> Result<Option<Mac>, Failure> {
        let Some(key) = self.seal_key(id)? else {
            return Ok(None);
        };
        self.mac(key, digest)
            .during(|| "verifying the seal of a partner's KEK".to_owned())
    }

    fn unseal(&self, id: &SealId) -> Result<Certified, Failure> {
        let Some(key) = self.seal_key(id)? else {
            return Ok(Certified::Unsealed(false));
        };
        self.token
            .module
            .destroy(self.session.handle, key)
            .during(|| "destroying the seal key of a partner's KEK".to_owned())?;
        Ok(Certified::Unsealed(true))
    }

    fn seal_key(&self, id: &SealId) -> Result<Option<CK_OBJECT_HANDLE>, Failure> {
        let template = [
            Attr::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attr::flag(ck::CKA_TOKEN, true),
            Attr::bytes(ck::CKA_LABEL, SEAL_LABEL),
            Attr::bytes(ck::CKA_ID, *id),
        ];
        let found = self
            .token
            .module
            .find(self.session.handle, &template)
            .during(|| "looking for a seal key".to_owned())?;
        Ok(found.first().copied())
    }

    fn mac(&self, key: CK_OBJECT_HANDLE, digest: &[u8; 32]) -> Result<Option<Mac>, CallError> {
        let mac = self.token.module.sign(
            self.session.handle,
            &Mechanism::Plain(ck::CKM_SHA256_HMAC),
            key,
            &[SEALED, digest].concat(),
        )?;
        Ok(mac.try_into().ok())
    }
}

/// What a token says to something that not every product can.
pub(super) enum Taken<T> {
    Yes(T),
    No(String),
    Failed(CallError),
}

pub(super) fn taken<T>(outcome: Result<T, CallError>) -> Taken<T> {
    match outcome {
        Ok(value) => Taken::Yes(value),
        Err(error) if error.class == FaultClass::Request => Taken::No(format!(
            "{} answered {}",
            error.function,
            ckr_name(error.rv)
        )),
        Err(error) => Taken::Failed(error),
    }
}

/// A KEK that signs the request for its own certificate.
struct OnToken<'a, 'b> {
    at: &'a At<'b>,
    spki: SubjectPublicKeyInfo,
    private: CK_OBJECT_HANDLE,
    // Whether the token hashes by itself.
    hashes: bool,
    failed: Cell<Option<CallError>>,
}

impl PublicKeyData for OnToken<'_, '_> {
    fn der_bytes(&self) -> &[u8] {
        self.spki.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

impl SigningKey for OnToken<'_, '_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let (mechanism, data) = if self.hashes {
            (ck::CKM_SHA256_RSA_PKCS, message.to_vec())
        } else {
            let hash = Sha256::digest(message);
            (ck::CKM_RSA_PKCS, [&DIGEST_INFO, hash.as_slice()].concat())
        };
        self.at
            .token
            .module
            .sign(
                self.at.session.handle,
                &Mechanism::Plain(mechanism),
                self.private,
                &data,
            )
            .map_err(|error| {
                self.failed.set(Some(error));
                rcgen::Error::RemoteKeyError
            })
    }
}
