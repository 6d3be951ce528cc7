//! How a private key travels from the bridge into the token: under an AES key that both share
//! ([`carry`]), and where the token cannot, by `C_CreateObject`.

use cryptoki_sys as ck;
use rsa::pkcs1::RsaPrivateKey;
use rsa::pkcs8::PrivateKeyInfo;
use secrecy::{ExposeSecret as _, SecretSlice};
use zeroize::Zeroizing;

use super::{KeyMaterial, Work, ends, undo};
use crate::bridge::carry::{self, Under, WAYS, Way};
use crate::bridge::catalog;
use crate::bridge::doctor::pairs::Pair;
use crate::bridge::faults::{Fault, FaultClass, ckr_name};
use crate::bridge::message::Custody;
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, CK_SESSION_HANDLE};
use crate::bridge::token::{Token, data_key_template};

/// Modulus length of the throw-away pair, bits: no weaker than most KEKs that it carries.
const BITS: u32 = 3072;

impl Work<'_> {
    /// The private half by `C_UnwrapKey` and with which mechanism, or why not.
    ///
    /// # Errors
    /// The token is not fit to go on with.
    pub(super) fn unwrapped(&self) -> Result<Result<(CK_OBJECT_HANDLE, String), String>, Fault> {
        let listed = self
            .token
            .module
            .mechanisms(self.token.slot())
            .map_err(|error| self.fault(error, "asking for the mechanisms"))?;
        let usable: Vec<Way> = WAYS
            .into_iter()
            .filter(|way| listed.contains(&way.mechanism))
            .collect();
        if usable.is_empty() {
            return Ok(Err(format!(
                "the token lists none of {}",
                WAYS.map(|way| way.name).join(", ")
            )));
        }
        // A session of its own, which may be left stuck.
        let session = self
            .token
            .session()
            .map_err(|error| self.fault(error, "opening a session"))?;
        let carrier = match Carrier::new(self.token, session) {
            Ok(carrier) => carrier,
            Err(fault) => {
                let _ = self.token.module.close_session(session);
                return if fatal(&fault) {
                    Err(fault)
                } else {
                    Ok(Err(short(&fault)))
                };
            }
        };
        let mut reasons = Vec::new();
        for way in usable {
            match self.carried(&carrier, way)? {
                Ok(object) => {
                    carrier.leave(self.token);
                    return Ok(Ok((object, way.name.to_owned())));
                }
                Err(reason) => reasons.push(reason),
            }
        }
        carrier.leave(self.token);
        Ok(Err(reasons.join("; ")))
    }

    /// The private half by that mechanism, or why not.
    fn carried(
        &self,
        carrier: &Carrier,
        way: Way,
    ) -> Result<Result<CK_OBJECT_HANDLE, String>, Fault> {
        let name = way.name;
        let shared = carrier.key.expose_secret();
        let Some((mechanism, wrapped)) = way.wrap(shared, &self.asked.key.0) else {
            return Ok(Err(format!(
                "{name}: the key cannot be wrapped in software"
            )));
        };
        let what = format!("unwrapping the private half with {name}");
        let template = self.template();
        let unwrap = |template: &[Attr]| {
            let module = &self.token.module;
            module.unwrap(carrier.session, &mechanism, carrier.aes, &wrapped, template)
        };
        let mut unwrapped = unwrap(&template);
        if let Err(error) = unwrapped
            && catalog::REFUSES_TEMPLATE.contains(&error.rv)
            && let Some(less) = catalog::undemanding(&template, &self.token.profile)
        {
            // Also where the call failed: some answers are lost.
            undo(self.token, &self.asked.id)?;
            unwrapped = unwrap(&less);
        }
        let reason = match unwrapped {
            Ok(object) => match self.protected(object) {
                Ok(()) => return Ok(Ok(object)),
                Err(reason) => format!("with {name} the token takes it so that {reason}"),
            },
            Err(error) if ends(error) => return Err(self.fault(error, &what)),
            Err(error) => format!("with {name} C_UnwrapKey answers {}", ckr_name(error.rv)),
        };
        // Also where the call failed: some answers are lost.
        undo(self.token, &self.asked.id)?;
        Ok(Err(reason))
    }
}

/// Without the advice, which is for faults that somebody has to mend.
fn short(fault: &Fault) -> String {
    match fault {
        Fault::Call {
            function,
            name,
            what,
            ..
        } => format!("{what}: {function} answers {name}"),
        other => other.to_string(),
    }
}

const fn fatal(fault: &Fault) -> bool {
    match fault {
        Fault::Call { class, .. } => matches!(
            class,
            FaultClass::Restart | FaultClass::Login | FaultClass::Operator
        ),
        Fault::Unsupported { .. } => false,
        Fault::BadEedk { .. }
        | Fault::NotTried { .. }
        | Fault::NoKek { .. }
        | Fault::Refused { .. }
        | Fault::Operator { .. }
        | Fault::WrongPin { .. }
        | Fault::Down { .. }
        | Fault::Deadline { .. } => true,
    }
}

/// A random AES-256 key that the token and the bridge share.
struct Carrier {
    session: CK_SESSION_HANDLE,
    pair: Pair,
    aes: CK_OBJECT_HANDLE,
    key: SecretSlice<u8>,
}

impl Carrier {
    fn new(token: &Token, session: CK_SESSION_HANDLE) -> Result<Self, Fault> {
        let Token {
            module, profile, ..
        } = token;
        let pair = Pair::make(module, session, profile, Custody::Token, &[], BITS)
            .map_err(|error| Fault::call(&token.name, error, "making a throw-away key pair"))?;
        match Self::shared(token, session, &pair) {
            Ok((aes, key)) => Ok(Self {
                session,
                pair,
                aes,
                key,
            }),
            Err(fault) => {
                pair.destroy(module, session);
                Err(fault)
            }
        }
    }

    fn shared(
        token: &Token,
        session: CK_SESSION_HANDLE,
        pair: &Pair,
    ) -> Result<(CK_OBJECT_HANDLE, SecretSlice<u8>), Fault> {
        let unsupported = |reason: String| Fault::Unsupported {
            token: token.name.clone(),
            reason,
        };
        let mut key = Zeroizing::new(vec![0_u8; 32]);
        aws_lc_rs::rand::fill(&mut key)
            .map_err(|_| unsupported("the operating system gives no random numbers".to_owned()))?;
        let key = SecretSlice::from(std::mem::take(&mut *key));
        let under = Under {
            private: pair.private,
            spki: &pair.spki,
        };
        carry::bring(token, session, under, &key, usage())
            .map(|aes| (aes, key))
            .map_err(|error| Fault::call(&token.name, error, "unwrapping a throw-away AES key"))
    }

    fn leave(&self, token: &Token) {
        // Session objects end with their session; the pair is of the token where it makes no other.
        let _ = token.module.destroy(self.session, self.aes);
        self.pair.destroy(&token.module, self.session);
        let _ = token.module.close_session(self.session);
    }
}

/// What the shared key is for on the token.
fn usage() -> Vec<Attr> {
    let mut template = data_key_template(false);
    template.retain(|attr| !attr.is(ck::CKA_UNWRAP));
    template.push(Attr::flag(ck::CKA_UNWRAP, true));
    template
}

/// The template with the key's numbers in it, for `C_CreateObject` (PKCS#11 v2.40, 2.1.3); none
/// where it is no RSA key of two primes.
pub(super) fn in_clear(mut template: Vec<Attr>, key: &KeyMaterial) -> Option<Vec<Attr>> {
    let info = PrivateKeyInfo::try_from(key.0.as_slice()).ok()?;
    let RsaPrivateKey {
        modulus,
        public_exponent,
        private_exponent,
        prime1,
        prime2,
        exponent1,
        exponent2,
        coefficient,
        other_prime_infos: None,
    } = RsaPrivateKey::try_from(info.private_key).ok()?
    else {
        return None;
    };
    template.push(Attr::bytes(ck::CKA_MODULUS, modulus.as_bytes()));
    template.push(Attr::bytes(
        ck::CKA_PUBLIC_EXPONENT,
        public_exponent.as_bytes(),
    ));
    for (kind, number) in [
        (ck::CKA_PRIVATE_EXPONENT, private_exponent),
        (ck::CKA_PRIME_1, prime1),
        (ck::CKA_PRIME_2, prime2),
        (ck::CKA_EXPONENT_1, exponent1),
        (ck::CKA_EXPONENT_2, exponent2),
        (ck::CKA_COEFFICIENT, coefficient),
    ] {
        template.push(Attr::secret(kind, number.as_bytes()));
    }
    Some(template)
}
