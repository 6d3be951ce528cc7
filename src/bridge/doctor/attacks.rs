//! What someone can do who has the PIN and the bridge's process: tried on
//! throw-away keys, and which of it the token stops.

use cryptoki_sys as ck;
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::examiner::{Examiner, mechanism, template};
use super::findings::{Attack, AttackName, Defence, Outcome, PairKind, Sent, Trusted};
use super::pairs::Pair;
use crate::bridge::host;
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, Call, CallError, Mechanism};
use crate::bridge::token::{Token, data_key_template, import_template};
use crate::key::OaepHash;

/// Each attack, and the kinds of KEK that it is tried on.
pub(super) const ATTACKS: &[(AttackName, Option<PairKind>)] = &[
    (AttackName::WeakTemplate, Some(PairKind::Plain)),
    (AttackName::WeakTemplate, Some(PairKind::UnwrapTemplate)),
    (AttackName::LoosenTemplate, Some(PairKind::UnwrapTemplate)),
    (AttackName::LoosenTemplate, Some(PairKind::Protected)),
    (AttackName::ForeignKey, None),
    (AttackName::ForeignKey, Some(PairKind::TrustedTemplate)),
    (AttackName::CopyDecrypt, Some(PairKind::Plain)),
    (AttackName::CopyDecrypt, Some(PairKind::Frozen)),
    (AttackName::CopyDecrypt, Some(PairKind::Uncopyable)),
    (AttackName::FlipDecrypt, Some(PairKind::Plain)),
    (AttackName::FlipDecrypt, Some(PairKind::Frozen)),
    (AttackName::WrapUnextractable, None),
    (AttackName::ShortKey, None),
];

/// Tries one.
pub(super) fn attack(
    examiner: &mut Examiner,
    name: AttackName,
    against: Option<PairKind>,
) -> Attack {
    let defence = match examiner.pair(against.unwrap_or(PairKind::Plain)) {
        Err(_) => Defence::Untried("the token does not make such a KEK".to_owned()),
        Ok(pair) => match name {
            AttackName::WeakTemplate => weak_template(examiner, &pair),
            AttackName::LoosenTemplate => loosen_template(examiner, &pair),
            AttackName::ForeignKey if against.is_some() => foreign_key_through(examiner, &pair),
            AttackName::ForeignKey => foreign_key(examiner, &pair),
            AttackName::FlipDecrypt => flip_decrypt(examiner, &pair),
            AttackName::CopyDecrypt => copy_decrypt(examiner, &pair),
            AttackName::WrapUnextractable => wrap_unextractable(examiner),
            AttackName::ShortKey => short_key(examiner, &pair),
        },
    };
    Attack {
        name,
        against,
        defence,
    }
}

fn defence(tried: Call<Defence>) -> Defence {
    tried.unwrap_or_else(Defence::from)
}

/// The OAEP hash that opens; SHA-1 where none did, so that something is tried.
fn hash(examiner: &mut Examiner) -> OaepHash {
    examiner.data_keys().opened_with.unwrap_or(OaepHash::Sha1)
}

/// The template that fits; the fullest where none does.
fn sent(examiner: &mut Examiner) -> Sent {
    examiner.data_keys().fits.unwrap_or(Sent {
        sensitive: true,
        extractable: true,
        value_len: true,
    })
}

/// Every template that might leave the key open, until its value is read.
fn weak_template(examiner: &mut Examiner, pair: &Pair) -> Defence {
    let hash = hash(examiner);
    let open = Attr::flag(ck::CKA_SENSITIVE, false);
    let extractable = Attr::flag(ck::CKA_EXTRACTABLE, true);
    let weak = [
        (
            "CKA_SENSITIVE false",
            vec![open.clone(), extractable.clone()],
        ),
        ("CKA_SENSITIVE false", vec![open]),
        ("CKA_SENSITIVE left out", vec![extractable]),
        ("CKA_SENSITIVE left out", Vec::new()),
    ];
    let mut stopped = Defence::Untried("nothing opens".to_owned());
    for (what, extra) in weak {
        let mut template = data_key_template(true);
        template.extend(extra);
        match examiner.open_known(pair, hash, &[], &template) {
            Err(error) => stopped = error.into(),
            Ok(key) => {
                let value = value(examiner, key);
                examiner.destroy(key);
                if value.is_some_and(|value| examiner.drive.is_known(&value)) {
                    return Defence::NotStopped(format!(
                        "C_UnwrapKey with {what}, then CKA_VALUE was read"
                    ));
                }
                stopped =
                    Defence::quietly("C_UnwrapKey", "makes the key CKA_SENSITIVE all the same");
            }
        }
    }
    stopped
}

fn value(examiner: &Examiner, key: CK_OBJECT_HANDLE) -> Option<Zeroizing<Vec<u8>>> {
    let value = examiner
        .module()
        .attribute(examiner.session, key, ck::CKA_VALUE);
    value.ok().flatten()
}

/// Another template in the place of the KEK's own, on itself or on a copy;
/// then as with a weak template.
fn loosen_template(examiner: &mut Examiner, pair: &Pair) -> Defence {
    if !weak_template(examiner, pair).stopped() {
        return Defence::Untried("a weak template is enough".to_owned());
    }
    let mut stopped = Defence::Untried("nothing was tried".to_owned());
    for loose in [vec![], vec![Attr::flag(ck::CKA_SENSITIVE, false)]] {
        let loose = [Attr::template(ck::CKA_UNWRAP_TEMPLATE, loose)];
        let (module, session) = (examiner.module(), examiner.session);
        let copied = module.copy_object(session, pair.private, &loose);
        let set = module.set_attributes(session, pair.private, &loose);
        for (function, private) in [
            ("C_CopyObject", copied),
            ("C_SetAttributeValue", set.map(|()| pair.private)),
        ] {
            let private = match private {
                Ok(private) => private,
                Err(error) => {
                    stopped = error.into();
                    continue;
                }
            };
            let after = weak_template(examiner, &pair.through(private));
            if private != pair.private {
                examiner.destroy(private);
            }
            match after {
                Defence::NotStopped(how) => {
                    return Defence::NotStopped(format!(
                        "{function} of CKA_UNWRAP_TEMPLATE; {how}"
                    ));
                }
                other => stopped = other,
            }
        }
    }
    stopped
}

/// Wraps the data key for a public key that nobody vouched for.
fn foreign_key(examiner: &mut Examiner, pair: &Pair) -> Defence {
    let (hash, sent) = (hash(examiner), sent(examiner));
    let tried = examiner
        .imported()
        .and_then(|public| wrap_for(examiner, pair, hash, &template(sent), public));
    defence(tried)
}

/// The same with a KEK that demands `CKA_WRAP_WITH_TRUSTED`: opened with and
/// without it, and wrapped for a key that the attacker makes trusted, too.
fn foreign_key_through(examiner: &mut Examiner, pair: &Pair) -> Defence {
    let (hash, sent) = (hash(examiner), sent(examiner));
    let asking = |trusted: bool| {
        let mut template = template(sent);
        template.push(Attr::flag(ck::CKA_WRAP_WITH_TRUSTED, trusted));
        template
    };
    let opened = examiner
        .open_known(pair, hash, &[], &asking(true))
        .map(|key| examiner.destroy(key));
    if let Err(error) = opened {
        return Defence::Untried(format!(
            "such a KEK opens nothing: {} {}",
            error.function,
            crate::bridge::faults::ckr_name(error.rv)
        ));
    }
    let mut publics = vec![examiner.imported()];
    publics.extend(made_trusted(examiner).map(Ok));
    let mut stopped = Defence::Untried("nothing was tried".to_owned());
    for template in [template(sent), asking(false), asking(true)] {
        for public in &publics {
            let tried = public.and_then(|public| wrap_for(examiner, pair, hash, &template, public));
            match defence(tried) {
                Defence::NotStopped(how) => return Defence::NotStopped(how),
                other => stopped = other,
            }
        }
    }
    for public in publics.into_iter().skip(1).flatten() {
        examiner.destroy(public);
    }
    stopped
}

/// Public keys of the attacker's that he has made `CKA_TRUSTED` himself.
fn made_trusted(examiner: &Examiner) -> impl Iterator<Item = CK_OBJECT_HANDLE> + use<> {
    let (module, session) = (examiner.module(), examiner.session);
    let trusted = Attr::flag(ck::CKA_TRUSTED, true);
    let mut template = import_template(examiner.drive.numbers());
    template.push(trusted.clone());
    let created = module.create_object(session, &template);
    let copied = examiner.drive.import(module, session).and_then(|public| {
        let copy = module.copy_object(session, public, &[trusted]);
        examiner.destroy(public);
        copy
    });
    [created, copied].into_iter().flatten()
}

/// Opens the known data key with that template and wraps it for that key.
fn wrap_for(
    examiner: &Examiner,
    pair: &Pair,
    hash: OaepHash,
    template: &[Attr],
    public: CK_OBJECT_HANDLE,
) -> Call<Defence> {
    let key = examiner.open_known(pair, hash, &[], template)?;
    let wrapped = examiner
        .module()
        .wrap(examiner.session, &mechanism(hash, &[]), public, key);
    examiner.destroy(key);
    Ok(if examiner.drive.holds(hash, &[], &wrapped?) {
        Defence::NotStopped("C_WrapKey under an imported public key, opened outside".to_owned())
    } else {
        Defence::quietly("C_WrapKey", "gives something else than the key")
    })
}

/// Whether a private key decrypts the known data key.
fn decrypts(examiner: &mut Examiner, pair: &Pair, private: CK_OBJECT_HANDLE) -> Call<bool> {
    let hash = hash(examiner);
    let wrapped = examiner
        .drive
        .wrap(&pair.spki, hash, &[])
        .ok_or(CallError::new("C_Decrypt", ck::CKR_DATA_INVALID, &[]))?;
    let opened = examiner.decrypt(private, hash, &[], &wrapped)?;
    Ok(examiner.drive.is_known(opened.expose_secret()))
}

fn flip_decrypt(examiner: &mut Examiner, pair: &Pair) -> Defence {
    let set = examiner.module().set_attributes(
        examiner.session,
        pair.private,
        &[Attr::flag(ck::CKA_DECRYPT, true)],
    );
    let tried = set
        .and_then(|()| decrypts(examiner, pair, pair.private))
        .map(|opened| {
            if opened {
                Defence::NotStopped(
                    "C_SetAttributeValue, then C_Decrypt gave the data key".to_owned(),
                )
            } else {
                Defence::quietly("C_Decrypt", "gives something else than the key")
            }
        });
    defence(tried)
}

fn copy_decrypt(examiner: &mut Examiner, pair: &Pair) -> Defence {
    let copied = examiner.module().copy_object(
        examiner.session,
        pair.private,
        &[
            Attr::flag(ck::CKA_TOKEN, false),
            Attr::flag(ck::CKA_DECRYPT, true),
        ],
    );
    let tried = copied
        .and_then(|copy| {
            let opened = decrypts(examiner, pair, copy);
            examiner.destroy(copy);
            opened
        })
        .map(|opened| {
            if opened {
                Defence::NotStopped("C_CopyObject, then C_Decrypt gave the data key".to_owned())
            } else {
                Defence::quietly("C_Decrypt", "gives something else than the key")
            }
        });
    defence(tried)
}

fn wrap_unextractable(examiner: &mut Examiner) -> Defence {
    let hash = hash(examiner);
    let mut template = Token::generate_template();
    template.retain(|attr| !attr.is(ck::CKA_EXTRACTABLE));
    template.push(Attr::flag(ck::CKA_EXTRACTABLE, false));
    let made = examiner.module().generate_key(
        examiner.session,
        &Mechanism::Plain(ck::CKM_AES_KEY_GEN),
        &template,
    );
    let Ok(key) = made else {
        return Defence::Untried("the token makes no such key".to_owned());
    };
    let tried = examiner
        .imported()
        .and_then(|public| {
            examiner
                .module()
                .wrap(examiner.session, &mechanism(hash, &[]), public, key)
        })
        .map(|_| Defence::NotStopped("C_WrapKey wrapped it".to_owned()));
    examiner.destroy(key);
    defence(tried)
}

/// An EEDK with a key of 20 bytes in it, opened as an AES key.
fn short_key(examiner: &mut Examiner, pair: &Pair) -> Defence {
    let (hash, sent) = (hash(examiner), sent(examiner));
    let short = vec![0x55; 20];
    let Ok(wrapped) = host::oaep_wrap(&pair.spki, hash, &[], &short.into()) else {
        return Defence::Untried("the host cannot wrap it".to_owned());
    };
    let tried = examiner
        .unwrap(pair, hash, &[], &wrapped, &template(sent))
        .map(|key| {
            examiner.destroy(key);
            Defence::NotStopped("C_UnwrapKey took it for an AES key".to_owned())
        });
    defence(tried)
}

/// Whether trust can be used, and whether the user can give it to himself.
pub(super) fn trusted(examiner: &mut Examiner) -> Trusted {
    Trusted {
        user_creates: user_creates(examiner).into(),
        user_sets: user_sets(examiner).into(),
        user_copies: user_copies(examiner).into(),
        generated: defence(generated(examiner)),
        unwrapped: defence(unwrapped(examiner)),
    }
}

fn user_creates(examiner: &Examiner) -> Call<Outcome> {
    let mut template = import_template(examiner.drive.numbers());
    template.push(Attr::flag(ck::CKA_TRUSTED, true));
    let (module, session) = (examiner.module(), examiner.session);
    let public = module.create_object(session, &template)?;
    let trusted = module.flag(session, public, ck::CKA_TRUSTED);
    examiner.destroy(public);
    told(trusted)
}

fn user_sets(examiner: &mut Examiner) -> Call<Outcome> {
    let public = examiner.imported()?;
    let (module, session) = (examiner.module(), examiner.session);
    module.set_attributes(session, public, &[Attr::flag(ck::CKA_TRUSTED, true)])?;
    told(module.flag(session, public, ck::CKA_TRUSTED))
}

fn user_copies(examiner: &Examiner) -> Call<Outcome> {
    let (module, session) = (examiner.module(), examiner.session);
    let public = examiner.drive.import(module, session)?;
    let trusted = [Attr::flag(ck::CKA_TRUSTED, true)];
    let copied = module.copy_object(session, public, &trusted);
    examiner.destroy(public);
    let copy = copied?;
    let trusted = module.flag(session, copy, ck::CKA_TRUSTED);
    examiner.destroy(copy);
    told(trusted)
}

fn told(trusted: Call<Option<bool>>) -> Call<Outcome> {
    Ok(match trusted? {
        Some(true) => Outcome::Works,
        _ => Outcome::Wrong("it was taken, and CKA_TRUSTED is not true".to_owned()),
    })
}

fn generated(examiner: &mut Examiner) -> Call<Defence> {
    let mut template = Token::generate_template();
    template.push(Attr::flag(ck::CKA_WRAP_WITH_TRUSTED, true));
    let made = examiner.module().generate_key(
        examiner.session,
        &Mechanism::Plain(ck::CKM_AES_KEY_GEN),
        &template,
    );
    untrusted(examiner, made)
}

fn unwrapped(examiner: &mut Examiner) -> Call<Defence> {
    let (hash, sent) = (hash(examiner), sent(examiner));
    let pair = examiner.pair(PairKind::Plain)?;
    let mut template = template(sent);
    template.push(Attr::flag(ck::CKA_WRAP_WITH_TRUSTED, true));
    let made = examiner.open_known(&pair, hash, &[], &template);
    untrusted(examiner, made)
}

/// Wraps a `CKA_WRAP_WITH_TRUSTED` key under one that is not trusted.
fn untrusted(examiner: &mut Examiner, key: Call<CK_OBJECT_HANDLE>) -> Call<Defence> {
    let key = match key {
        Ok(key) => key,
        Err(error) => {
            return Ok(Defence::Untried(format!(
                "the token takes no CKA_WRAP_WITH_TRUSTED: {} {}",
                error.function,
                crate::bridge::faults::ckr_name(error.rv)
            )));
        }
    };
    let hash = hash(examiner);
    // Its own import: the shared one may have been made trusted just before.
    let wrapped = examiner
        .drive
        .import(examiner.module(), examiner.session)
        .and_then(|public| {
            let wrapped =
                examiner
                    .module()
                    .wrap(examiner.session, &mechanism(hash, &[]), public, key);
            examiner.destroy(public);
            wrapped
        });
    examiner.destroy(key);
    wrapped.map(|_| Defence::NotStopped("C_WrapKey wrapped it all the same".to_owned()))
}
