//! How long each kind of call takes, one after another on one session.

use std::time::{Duration, Instant};

use cryptoki_sys as ck;

use super::examiner::{BLOCK, Examiner, mechanism, template};
use super::findings::{Latency, PairKind};
use crate::bridge::pkcs11::{Call, Mechanism};
use crate::bridge::token::Token;
use crate::key::OaepHash;

/// Repetitions of a call, and the time after which it is enough.
const TIMES: usize = 25;
const ENOUGH: Duration = Duration::from_secs(2);

/// Times every call that works.
pub(super) fn measure(examiner: &mut Examiner) -> Vec<Latency> {
    let found = examiner.data_keys();
    let pair = examiner.pair(PairKind::Plain);
    let host = examiner.pair(PairKind::Host);
    let public = examiner.imported();
    let examiner = &*examiner;
    let (module, session) = (examiner.module(), examiner.session);
    let mut measured = Vec::new();

    let mut add = |call: &str, body: &mut dyn FnMut() -> Call<()>| {
        measured.extend(time(call, body));
    };
    add("C_GetSessionInfo", &mut || {
        module.session_state(session).map(drop)
    });
    add("C_OpenSession + C_CloseSession", &mut || {
        module.close_session(module.open_session(examiner.token.slot())?)
    });
    add("C_FindObjects (private keys)", &mut || {
        let private = [crate::bridge::pkcs11::Attr::ulong(
            ck::CKA_CLASS,
            ck::CKO_PRIVATE_KEY,
        )];
        module.find(session, &private).map(drop)
    });
    if let Ok(pair) = &pair {
        add("C_GetAttributeValue", &mut || {
            module
                .attribute(session, pair.public, ck::CKA_MODULUS)
                .map(drop)
        });
    }
    add("C_CreateObject + C_DestroyObject", &mut || {
        module.destroy(session, examiner.drive.import(module, session)?)
    });
    let generate = || {
        module.generate_key(
            session,
            &Mechanism::Plain(ck::CKM_AES_KEY_GEN),
            &Token::generate_template(),
        )
    };
    add("C_GenerateKey + C_DestroyObject", &mut || {
        module.destroy(session, generate()?)
    });
    let hash = found.opened_with.unwrap_or(OaepHash::Sha1);
    if let (Ok(public), Ok(key)) = (public, generate()) {
        add("C_WrapKey", &mut || {
            module
                .wrap(session, &mechanism(hash, &[]), public, key)
                .map(drop)
        });
        add("C_EncryptInit + C_Encrypt", &mut || {
            module
                .encrypt_block(session, &Mechanism::Plain(ck::CKM_AES_ECB), key, &BLOCK)
                .map(drop)
        });
        examiner.destroy(key);
    }
    if let (Ok(pair), Some(sent)) = (&pair, found.fits)
        && let Some(wrapped) = examiner.drive.wrap(&pair.spki, hash, &[])
    {
        add("C_UnwrapKey + C_DestroyObject", &mut || {
            let key = examiner.unwrap(pair, hash, &[], &wrapped, &template(sent))?;
            module.destroy(session, key)
        });
    }
    let decrypts = found.oaep.iter().find(|oaep| oaep.decrypt.works());
    if let (Ok(pair), Some(hash)) = (&host, decrypts.map(|oaep| oaep.hash))
        && let Some(wrapped) = examiner.drive.wrap(&pair.spki, hash, &[])
    {
        add("C_DecryptInit + C_Decrypt", &mut || {
            module
                .decrypt(session, &mechanism(hash, &[]), pair.private, &wrapped)
                .map(drop)
        });
    }
    measured
}

/// Calls it again and again; none where it fails.
fn time(call: &str, body: &mut dyn FnMut() -> Call<()>) -> Option<Latency> {
    let begin = Instant::now();
    let mut took = Vec::new();
    while took.len() < TIMES && begin.elapsed() < ENOUGH {
        let start = Instant::now();
        body().ok()?;
        took.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    took.sort_unstable();
    Some(Latency {
        call: call.to_owned(),
        times: took.len(),
        p50_ns: took.get(took.len() / 2).copied()?,
        max_ns: took.last().copied()?,
    })
}
