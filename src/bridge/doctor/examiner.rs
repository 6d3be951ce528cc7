//! The bridge's side of an examination: a token that is logged in to, and
//! the throw-away keys that the tries share.

use std::collections::BTreeMap;
use std::time::Instant;

use cryptoki_sys as ck;
use secrecy::SecretSlice;

use super::data_key;
use super::findings::{DataKeys, PairKind, PairMade, Sent};
use super::pairs::{self, Pair};
use super::stand_in::StandIn;
use crate::bridge::faults::Fault;
use crate::bridge::host;
use crate::bridge::message::Custody;
use crate::bridge::pkcs11::{
    Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, CallError, Mechanism, Module,
};
use crate::bridge::token::{Token, data_key_template, wrapping};
use crate::key::{OaepHash, WrapAlgorithm};

/// What is encrypted to compare keys that cannot be read.
pub(super) const BLOCK: [u8; 16] = *b"ekm slot doctor.";

/// In the place of a DKi.
pub(super) const DKI: [u8; 12] = *b"EKMdoctor...";

/// A token under examination.
pub(super) struct Examiner {
    pub(super) token: Token,
    pub(super) session: CK_SESSION_HANDLE,
    pub(super) drive: StandIn,
    /// [`BLOCK`] under the known data key.
    pub(super) expected: [u8; 16],
    // Kinds that crashed the module before are not made again.
    avoid: Vec<PairKind>,
    pairs: BTreeMap<PairKind, Call<Pair>>,
    imported: Option<Call<CK_OBJECT_HANDLE>>,
    data_keys: Option<DataKeys>,
}

impl Examiner {
    pub(super) fn new(token: Token, avoid: Vec<PairKind>) -> Result<Self, Fault> {
        let unsupported = |reason: &str| Fault::Unsupported {
            token: token.name.clone(),
            reason: reason.to_owned(),
        };
        let session = token
            .session()
            .map_err(|error| Fault::call(&token.name, error, "opening a session"))?;
        let drive = StandIn::new()
            .ok_or_else(|| unsupported("the operating system gives no random numbers"))?;
        let expected = host::encrypt_block(&drive.known, &BLOCK)
            .map_err(|error| unsupported(&error.to_string()))?;
        Ok(Self {
            token,
            session,
            drive,
            expected,
            avoid,
            pairs: BTreeMap::new(),
            imported: None,
            data_keys: None,
        })
    }

    pub(super) const fn module(&self) -> &Module {
        &self.token.module
    }

    /// Destroys what an interrupted examination left.
    pub(super) fn sweep(&self) -> Result<usize, Fault> {
        pairs::sweep(self.module(), self.session).map_err(|error| {
            Fault::call(
                &self.token.name,
                error,
                "removing what an earlier examination left",
            )
        })
    }

    /// The throw-away pair of that kind.
    pub(super) fn pair(&mut self, kind: PairKind) -> Call<Pair> {
        if let Some(pair) = self.pairs.get(&kind) {
            return pair.clone();
        }
        let made = if self.avoid.contains(&kind) {
            Err(CallError::new(
                "C_GenerateKeyPair",
                ck::CKR_FUNCTION_FAILED,
                &[],
            ))
        } else {
            let with = self.protections(kind);
            let custody = if kind == PairKind::Host {
                Custody::Host
            } else {
                Custody::Token
            };
            let Token {
                module, profile, ..
            } = &self.token;
            Pair::make(module, self.session, profile, custody, &with, 2048)
        };
        self.pairs.insert(kind, made.clone());
        made
    }

    /// What a kind is protected with.
    fn protections(&mut self, kind: PairKind) -> Vec<PairKind> {
        if kind == PairKind::TrustedTemplate {
            return vec![kind];
        }
        let all = [
            PairKind::UnwrapTemplate,
            PairKind::Frozen,
            PairKind::Uncopyable,
        ];
        all.into_iter()
            .filter(|one| *one == kind || (kind == PairKind::Protected && self.pair(*one).is_ok()))
            .collect()
    }

    /// Makes a pair and says what came of it.
    pub(super) fn make(&mut self, kind: PairKind) -> PairMade {
        let start = Instant::now();
        let made = self.pair(kind);
        let reads_back = made
            .as_ref()
            .ok()
            .and_then(|pair| pair.reads_back(self.module(), self.session, kind));
        Pair::finding(&made, kind, start, reads_back)
    }

    /// The drive's public key on the token.
    pub(super) fn imported(&mut self) -> Call<CK_OBJECT_HANDLE> {
        let drive = &self.drive;
        let (module, session) = (&self.token.module, self.session);
        *self
            .imported
            .get_or_insert_with(|| drive.import(module, session))
    }

    /// What was found about data keys.
    pub(super) fn data_keys(&mut self) -> DataKeys {
        if let Some(found) = &self.data_keys {
            return found.clone();
        }
        let found = data_key::examine(self);
        self.data_keys = Some(found.clone());
        found
    }

    /// `C_UnwrapKey` with a template.
    pub(super) fn unwrap(
        &self,
        pair: &Pair,
        hash: OaepHash,
        label: &[u8],
        wrapped: &[u8],
        template: &[Attr],
    ) -> Call<CK_OBJECT_HANDLE> {
        self.module().unwrap(
            self.session,
            &mechanism(hash, label),
            pair.private,
            wrapped,
            template,
        )
    }

    /// The known data key, wrapped on the host and opened on the token.
    pub(super) fn open_known(
        &self,
        pair: &Pair,
        hash: OaepHash,
        label: &[u8],
        template: &[Attr],
    ) -> Call<CK_OBJECT_HANDLE> {
        let wrapped = self
            .drive
            .wrap(&pair.spki, hash, label)
            .ok_or(CallError::new("C_UnwrapKey", ck::CKR_DATA_INVALID, &[]))?;
        self.unwrap(pair, hash, label, &wrapped, template)
    }

    /// The same by RSAES-PKCS1-v1_5.
    pub(super) fn open_known_v15(&self, pair: &Pair, template: &[Attr]) -> Call<CK_OBJECT_HANDLE> {
        let wrapped = self
            .drive
            .wrap_by(&pair.spki, WrapAlgorithm::Pkcs1V15, &[])
            .ok_or(CallError::new("C_UnwrapKey", ck::CKR_DATA_INVALID, &[]))?;
        self.module().unwrap(
            self.session,
            &wrapping(WrapAlgorithm::Pkcs1V15, &[]),
            pair.private,
            &wrapped,
            template,
        )
    }

    /// Whether an object is the known data key.
    pub(super) fn is_known(&self, key: CK_OBJECT_HANDLE) -> Call<bool> {
        let block = self.module().encrypt_block(
            self.session,
            &Mechanism::Plain(ck::CKM_AES_ECB),
            key,
            &BLOCK,
        )?;
        Ok(block == self.expected)
    }

    /// `C_Decrypt` on a session of its own: on some modules one that failed
    /// stays in the middle of its operation for ever.
    pub(super) fn decrypt(
        &self,
        private: CK_OBJECT_HANDLE,
        hash: OaepHash,
        label: &[u8],
        wrapped: &[u8],
    ) -> Call<SecretSlice<u8>> {
        self.decrypt_by(private, &mechanism(hash, label), wrapped)
    }

    /// The same by any mechanism.
    pub(super) fn decrypt_by(
        &self,
        private: CK_OBJECT_HANDLE,
        mechanism: &Mechanism,
        wrapped: &[u8],
    ) -> Call<SecretSlice<u8>> {
        let session = self.token.session()?;
        let opened = self.module().decrypt(session, mechanism, private, wrapped);
        let _ = self.module().close_session(session);
        opened
    }

    pub(super) fn destroy(&self, key: CK_OBJECT_HANDLE) {
        // Session objects go with their session in any case.
        let _ = self.module().destroy(self.session, key);
    }

    /// Destroys the throw-away keys.
    pub(super) fn leave(&mut self) {
        for pair in std::mem::take(&mut self.pairs).into_values().flatten() {
            pair.destroy(self.module(), self.session);
        }
        if let Some(Ok(object)) = self.imported.take() {
            self.destroy(object);
        }
    }
}

/// `CKM_RSA_PKCS_OAEP`; an empty label is none.
pub(super) fn mechanism(hash: OaepHash, label: &[u8]) -> Mechanism {
    let algorithm = WrapAlgorithm::oaep(hash, !label.is_empty());
    wrapping(algorithm, label)
}

/// The unwrap template that sends these.
pub(super) fn template(sent: Sent) -> Vec<Attr> {
    let mut template = data_key_template(true);
    if sent.sensitive {
        template.push(Attr::flag(ck::CKA_SENSITIVE, true));
    }
    if sent.extractable {
        template.push(Attr::flag(ck::CKA_EXTRACTABLE, true));
    }
    if sent.value_len {
        template.push(Attr::ulong(ck::CKA_VALUE_LEN, 32));
    }
    template
}
