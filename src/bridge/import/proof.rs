//! Whether a private key of the token opens what is wrapped under a public key
//! in software.

use secrecy::{ExposeSecret, SecretSlice};
use subtle::ConstantTimeEq;

use crate::bridge::faults::Fault;
use crate::bridge::host;
use crate::bridge::message::Custody;
use crate::bridge::pkcs11::{CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Mechanism};
use crate::bridge::token::{Token, wrapping};

/// In the place of a DKi, where EEDKs carry it as OAEP label.
const DKI: [u8; 12] = *b"EKM.import..";

/// Wraps a fresh key as an EEDK holds one, has the token open it, and compares.
pub(in crate::bridge) fn opens(
    token: &Token,
    session: CK_SESSION_HANDLE,
    private: CK_OBJECT_HANDLE,
    spki: &[u8],
    custody: Custody,
) -> Result<bool, Fault> {
    let unsupported = |reason: String| Fault::Unsupported {
        token: token.name.clone(),
        reason,
    };
    let fail = |error| {
        Fault::call(
            &token.name,
            error,
            "opening a data key that was made to try it",
        )
    };
    let mut known = vec![0_u8; 32];
    let mut block = [0_u8; 16];
    for bytes in [known.as_mut_slice(), &mut block] {
        aws_lc_rs::rand::fill(bytes)
            .map_err(|_| unsupported("the operating system gives no random numbers".to_owned()))?;
    }
    let known = SecretSlice::from(known);
    let algorithm = token.profile.wrap_algorithm();
    let wrapped = host::wrap(spki, algorithm, &DKI, &known)
        .map_err(|error| unsupported(error.to_string()))?;
    let (module, mechanism) = (&token.module, wrapping(algorithm, &DKI));
    match custody {
        Custody::Host => {
            let opened = module
                .decrypt(session, &mechanism, private, &wrapped)
                .map_err(fail)?;
            Ok(opened.expose_secret().ct_eq(known.expose_secret()).into())
        }
        Custody::Token => {
            let template = token.unwrap_template(true, token.profile.data_key.wrap_with_trusted);
            let key = module
                .unwrap(session, &mechanism, private, &wrapped, &template)
                .map_err(fail)?;
            let ecb = Mechanism::Plain(cryptoki_sys::CKM_AES_ECB);
            let encrypted = module.encrypt_block(session, &ecb, key, &block);
            // It is a session object, and ends with the session in any case.
            let _ = module.destroy(session, key);
            let expected = host::encrypt_block(&known, &block)
                .map_err(|error| unsupported(error.to_string()))?;
            Ok(encrypted.map_err(fail)? == expected)
        }
    }
}
