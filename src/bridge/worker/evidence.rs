//! Seals of the audit chain, and anchors that the token keeps.

use cryptoki_sys as ck;
use sha2::{Digest as _, Sha256};

use super::attempt::At;
use super::certify::{DIGEST_INFO, Taken, taken};
use super::{During, Failure};
use crate::bridge::catalog::uses;
use crate::bridge::evidence::{
    ANCHOR, APPLICATION, Evidence, Evidenced, SEAL_KEY, SEALED, SealKeyId,
};
use crate::bridge::host;
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, Call, CallError, Mechanism};
use crate::bridge::profile::{Generate, Send};

impl At<'_> {
    pub(super) fn evidence(&self, what: &Evidence) -> Result<Evidenced, Failure> {
        match what {
            Evidence::MakeKey { bits } => self.make_seal_key(*bits),
            Evidence::Sign { key, digest } => self.sign_seal(key, digest),
            Evidence::Anchor { node, text } => self.anchor(node, text),
            Evidence::Anchors => self.anchors(),
        }
    }

    fn make_seal_key(&self, bits: u32) -> Result<Evidenced, Failure> {
        let (token, session) = (self.token, self.session.handle);
        let (module, profile) = (&token.module, &token.profile);
        if profile.kek.generate == Generate::VendorTool {
            return Ok(Evidenced::NotTaken(format!(
                "this product makes no keys through PKCS#11 (profile {}: kek.generate)",
                profile.name
            )));
        }
        let mut id: SealKeyId = [0; 16];
        if aws_lc_rs::rand::fill(&mut id).is_err() {
            return Ok(Evidenced::NotTaken(
                "the operating system gives no random numbers".to_owned(),
            ));
        }
        let mut public = vec![
            Attr::flag(ck::CKA_TOKEN, true),
            Attr::flag(ck::CKA_PRIVATE, false),
            Attr::bytes(ck::CKA_LABEL, SEAL_KEY),
            Attr::bytes(ck::CKA_ID, id),
            Attr::ulong(ck::CKA_MODULUS_BITS, ck::CK_ULONG::from(bits)),
            Attr::bytes(ck::CKA_PUBLIC_EXPONENT, [1, 0, 1]),
        ];
        let denied = [(ck::CKA_WRAP, false), (ck::CKA_ENCRYPT, false)];
        uses(&mut public, profile, &[(ck::CKA_VERIFY, true)]);
        uses(&mut public, profile, &denied);
        let mut private = vec![
            Attr::flag(ck::CKA_TOKEN, true),
            Attr::flag(ck::CKA_PRIVATE, true),
            Attr::bytes(ck::CKA_LABEL, SEAL_KEY),
            Attr::bytes(ck::CKA_ID, id),
            Attr::flag(ck::CKA_SENSITIVE, true),
            Attr::flag(ck::CKA_EXTRACTABLE, false),
        ];
        let denied = [(ck::CKA_UNWRAP, false), (ck::CKA_DECRYPT, false)];
        uses(&mut private, profile, &[(ck::CKA_SIGN, true)]);
        uses(&mut private, profile, &denied);
        if profile.kek.frozen == Send::Send {
            private.push(Attr::flag(ck::CKA_MODIFIABLE, false));
        }
        if profile.kek.uncopyable == Send::Send {
            private.push(Attr::flag(ck::CKA_COPYABLE, false));
        }
        let mechanism = Mechanism::Plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
        let pair = match taken(module.generate_pair(session, &mechanism, &public, &private)) {
            Taken::Yes(pair) => pair,
            Taken::No(reason) => return Ok(Evidenced::NotTaken(reason)),
            Taken::Failed(error) => {
                return Err(Failure::Call(error, "making the key that seals".to_owned()));
            }
        };
        match self.seal_key_made(pair.private, pair.public) {
            Ok(Some(spki)) => Ok(Evidenced::Key { id, spki }),
            other => {
                // It has sealed nothing.
                for object in [pair.private, pair.public] {
                    let _ = module.destroy(session, object);
                }
                match other {
                    Err(error) => Err(Failure::Call(
                        error,
                        "looking at the key that seals".to_owned(),
                    )),
                    Ok(_) => Ok(Evidenced::NotTaken(
                        "it made the key so that its value can be had".to_owned(),
                    )),
                }
            }
        }
    }

    /// The public half; none where the private one is not as it should be.
    fn seal_key_made(
        &self,
        private: CK_OBJECT_HANDLE,
        public: CK_OBJECT_HANDLE,
    ) -> Call<Option<Vec<u8>>> {
        let (module, session) = (&self.token.module, self.session.handle);
        if !self.guards(private)? {
            return Ok(None);
        }
        let number = |kind| {
            let value = module.attribute(session, public, kind)?;
            Ok(value.map(|value| value.to_vec()).unwrap_or_default())
        };
        let (modulus, exponent) = (number(ck::CKA_MODULUS)?, number(ck::CKA_PUBLIC_EXPONENT)?);
        Ok(host::spki(&modulus, &exponent).ok().map(|(spki, _)| spki))
    }

    /// Whether a private key is `CKA_SENSITIVE` and not `CKA_EXTRACTABLE`.
    fn guards(&self, key: CK_OBJECT_HANDLE) -> Call<bool> {
        let flag = |kind| self.token.module.flag(self.session.handle, key, kind);
        Ok(flag(ck::CKA_SENSITIVE)? == Some(true) && flag(ck::CKA_EXTRACTABLE)? == Some(false))
    }

    fn sign_seal(&self, id: &SealKeyId, digest: &[u8; 32]) -> Result<Evidenced, Failure> {
        let (module, session) = (&self.token.module, self.session.handle);
        let template = [
            Attr::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY),
            Attr::flag(ck::CKA_TOKEN, true),
            Attr::bytes(ck::CKA_LABEL, SEAL_KEY),
            Attr::bytes(ck::CKA_ID, *id),
        ];
        let looking = || "looking for the key that seals".to_owned();
        let Some(key) = module
            .find(session, &template)
            .during(looking)?
            .first()
            .copied()
        else {
            return Ok(Evidenced::Signed(None));
        };
        if !self.guards(key).during(looking)? {
            return Ok(Evidenced::NotTaken(
                "the key that seals is not CKA_SENSITIVE, or is CKA_EXTRACTABLE".to_owned(),
            ));
        }
        let listed = module.mechanisms(self.token.slot()).during(looking)?;
        let message = [SEALED, digest].concat();
        let (mechanism, data) = if listed.contains(&ck::CKM_SHA256_RSA_PKCS) {
            (ck::CKM_SHA256_RSA_PKCS, message)
        } else {
            let hash = Sha256::digest(&message);
            (ck::CKM_RSA_PKCS, [&DIGEST_INFO, hash.as_slice()].concat())
        };
        module
            .sign(session, &Mechanism::Plain(mechanism), key, &data)
            .map(|signature| Evidenced::Signed(Some(signature)))
            .during(|| "sealing the audit chain".to_owned())
    }

    fn anchor(&self, node: &str, text: &str) -> Result<Evidenced, Failure> {
        let (module, session) = (&self.token.module, self.session.handle);
        let label = format!("{ANCHOR}{node}");
        let failed = |error: CallError| Failure::Call(error, "keeping an anchor".to_owned());
        let known = [
            Attr::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            Attr::flag(ck::CKA_TOKEN, true),
            Attr::bytes(ck::CKA_LABEL, label.as_str()),
        ];
        let older = module.find(session, &known).map_err(failed)?;
        for object in &older {
            let value = module.attribute(session, *object, ck::CKA_VALUE);
            let value = value.map_err(failed)?;
            let value = value.map(|value| value.to_vec()).unwrap_or_default();
            let kept = String::from_utf8_lossy(&value);
            // What is kept is what a cut of the tail shows by, so it makes room for a later one only.
            if anchored_number(&kept) >= anchored_number(text) && kept != text {
                return Ok(Evidenced::Newer(kept.into_owned()));
            }
        }
        let template = [
            Attr::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            Attr::flag(ck::CKA_TOKEN, true),
            Attr::flag(ck::CKA_PRIVATE, true),
            Attr::bytes(ck::CKA_LABEL, label.as_str()),
            Attr::bytes(ck::CKA_APPLICATION, APPLICATION),
            Attr::bytes(ck::CKA_VALUE, text),
        ];
        match taken(module.create_object(session, &template)) {
            Taken::Yes(_) => {}
            Taken::No(reason) => return Ok(Evidenced::NotTaken(reason)),
            Taken::Failed(error) => return Err(failed(error)),
        }
        for object in older {
            // One that stays is no harm: of several the highest number counts.
            let _ = module.destroy(session, object);
        }
        Ok(Evidenced::Anchored)
    }

    fn anchors(&self) -> Result<Evidenced, Failure> {
        let (module, session) = (&self.token.module, self.session.handle);
        let looking = || "reading anchors".to_owned();
        let template = [
            Attr::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            Attr::flag(ck::CKA_TOKEN, true),
        ];
        let mut all = Vec::new();
        for object in module.find(session, &template).during(looking)? {
            let get = |kind| {
                let value = module.attribute(session, object, kind).during(looking)?;
                let bytes = value.map(|value| value.to_vec()).unwrap_or_default();
                Ok::<_, Failure>(String::from_utf8_lossy(&bytes).into_owned())
            };
            if let Some(node) = get(ck::CKA_LABEL)?.strip_prefix(ANCHOR) {
                all.push((node.to_owned(), get(ck::CKA_VALUE)?));
            }
        }
        Ok(Evidenced::Anchors(all))
    }
}

/// The number of `NUMBER:HASH`.
fn anchored_number(text: &str) -> Option<u64> {
    text.split(':').next()?.parse().ok()
}
