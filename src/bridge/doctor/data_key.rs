//! Data keys on the token: which templates open one, which OAEP, and what may
//! be done with it then.

use cryptoki_sys as ck;
use secrecy::ExposeSecret;

use super::examiner::{DKI, Examiner, mechanism, template};
use super::findings::{DataKeys, Oaep, Outcome, PairKind, Rung, Sent, UnwrappedKey, V15};
use super::fitting;
use super::pairs::Pair;
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, Call, Mechanism};
use crate::bridge::token::{Token, wrapping};
use crate::drive::Wwn;
use crate::key::{OaepHash, WrapAlgorithm};
use crate::t10::WrappedKeyLabel;

/// The one to take first stands first.
const HASHES: [OaepHash; 4] = [
    OaepHash::Sha256,
    OaepHash::Sha384,
    OaepHash::Sha512,
    OaepHash::Sha1,
];

/// A WWN of the right shape, for the label of form t10-02h.
const WWN: &str = "5005076300000000";

pub(super) fn examine(examiner: &mut Examiner) -> DataKeys {
    let import = examiner.imported();
    let pair = examiner.pair(PairKind::Plain);
    let opened_with = pair
        .as_ref()
        .ok()
        .and_then(|pair| first_opening(examiner, pair));
    let ladder: Vec<Rung> = Sent::ladder()
        .into_iter()
        .map(|sent| rung(examiner, &pair, opened_with, sent))
        .collect();
    let fit = fitting::rung(&ladder);
    let opens = fit.map(|(sent, _)| sent).or_else(|| {
        let opened = ladder.iter().find(|rung| rung.unwrap.works());
        opened.map(|rung| rung.sent)
    });
    let host = examiner.pair(PairKind::Host);
    let oaep = HASHES
        .into_iter()
        .flat_map(|hash| [true, false].map(|labelled| (hash, labelled)))
        .map(|(hash, labelled)| Oaep {
            hash,
            labelled,
            unwrap: unwraps(examiner, &pair, opens, hash, labelled),
            wrap: wraps(examiner, &pair, opened_with.zip(opens), hash, labelled),
            decrypt: decrypts(examiner, &host, hash, labelled),
        })
        .collect();
    DataKeys {
        import: outcome(import),
        generate: generates(examiner),
        random: random(examiner),
        opened_with,
        ladder,
        fits: fit.map(|(sent, _)| sent),
        set_after: fit.is_some_and(|(_, set_after)| set_after),
        oaep,
        v15: v15(examiner, &pair, &host),
        under_unwrap_template: opens_under(examiner, PairKind::UnwrapTemplate, opened_with, fit),
        under_protected: opens_under(examiner, PairKind::Protected, opened_with, fit),
    }
}

fn outcome<T>(call: Call<T>) -> Outcome {
    call.map(|_| Outcome::Works).into()
}

/// The first hash with which any template opens the known key.
fn first_opening(examiner: &Examiner, pair: &Pair) -> Option<OaepHash> {
    HASHES.into_iter().find(|hash| {
        Sent::ladder().into_iter().any(|sent| {
            examiner
                .open_known(pair, *hash, &[], &template(sent))
                .map(|key| examiner.destroy(key))
                .is_ok()
        })
    })
}

/// Tries one unwrap template.
fn rung(examiner: &mut Examiner, pair: &Call<Pair>, hash: Option<OaepHash>, sent: Sent) -> Rung {
    let refused = |unwrap| Rung {
        sent,
        unwrap,
        key: None,
    };
    let pair = match pair {
        Ok(pair) => pair,
        Err(_) => return refused(Outcome::untried("there is no throw-away KEK")),
    };
    // Where nothing opens, what SHA-1 is refused for is told: every token has that.
    let hash = hash.unwrap_or(OaepHash::Sha1);
    match examiner.open_known(pair, hash, &[], &template(sent)) {
        Err(error) => refused(error.into()),
        Ok(key) => {
            let same = examiner.is_known(key).map(Outcome::same).into();
            let found = unwrapped(examiner, key, hash);
            examiner.destroy(key);
            Rung {
                sent,
                unwrap: same,
                key: Some(found),
            }
        }
    }
}

/// Looks at an unwrapped key, and wraps it for the drive.
fn unwrapped(examiner: &mut Examiner, key: CK_OBJECT_HANDLE, hash: OaepHash) -> UnwrappedKey {
    let flag = |kind| {
        let (module, session) = (examiner.module(), examiner.session);
        module.flag(session, key, kind).ok().flatten()
    };
    let sensitive = flag(ck::CKA_SENSITIVE);
    UnwrappedKey {
        sensitive,
        extractable: flag(ck::CKA_EXTRACTABLE),
        value_len: value_len(examiner, key),
        readable: readable(examiner, key),
        set_after: if sensitive == Some(true) {
            Outcome::untried("it is CKA_SENSITIVE already")
        } else {
            set_sensitive(examiner, key).into()
        },
        wrap: wrap_for_drive(examiner, key, hash, &[]).into(),
    }
}

fn value_len(examiner: &Examiner, key: CK_OBJECT_HANDLE) -> Option<u64> {
    let value = examiner
        .module()
        .attribute(examiner.session, key, ck::CKA_VALUE_LEN)
        .ok()??;
    let bytes = value.first_chunk::<8>().filter(|_| value.len() == 8)?;
    Some(u64::from_ne_bytes(*bytes))
}

/// Whether `CKA_VALUE` comes out.
pub(super) fn readable(examiner: &Examiner, key: CK_OBJECT_HANDLE) -> bool {
    examiner
        .module()
        .attribute(examiner.session, key, ck::CKA_VALUE)
        .is_ok_and(|value| value.is_some_and(|value| !value.is_empty()))
}

/// Sets `CKA_SENSITIVE`, and looks whether that helped.
fn set_sensitive(examiner: &Examiner, key: CK_OBJECT_HANDLE) -> Call<Outcome> {
    let (module, session) = (examiner.module(), examiner.session);
    module.set_attributes(session, key, &[Attr::flag(ck::CKA_SENSITIVE, true)])?;
    let set = module.flag(session, key, ck::CKA_SENSITIVE)? == Some(true);
    Ok(if !set {
        Outcome::Wrong("CKA_SENSITIVE is not true afterwards".to_owned())
    } else if readable(examiner, key) {
        Outcome::Wrong("CKA_VALUE can be read afterwards".to_owned())
    } else {
        Outcome::Works
    })
}

/// Wraps the known key for the drive, which opens it.
fn wrap_for_drive(
    examiner: &mut Examiner,
    key: CK_OBJECT_HANDLE,
    hash: OaepHash,
    label: &[u8],
) -> Call<Outcome> {
    let public = examiner.imported()?;
    let wrapped = examiner
        .module()
        .wrap(examiner.session, &mechanism(hash, label), public, key)?;
    Ok(Outcome::same(examiner.drive.holds(hash, label, &wrapped)))
}

/// `C_UnwrapKey` with one OAEP.
fn unwraps(
    examiner: &Examiner,
    pair: &Call<Pair>,
    sent: Option<Sent>,
    hash: OaepHash,
    labelled: bool,
) -> Outcome {
    let (Ok(pair), Some(sent)) = (pair, sent) else {
        return Outcome::untried("no template opens a data key");
    };
    let label: &[u8] = if labelled { &DKI } else { &[] };
    let tried = examiner
        .open_known(pair, hash, label, &template(sent))
        .and_then(|key| {
            let same = examiner.is_known(key).map(Outcome::same);
            examiner.destroy(key);
            same
        });
    tried.into()
}

/// `C_WrapKey` for a drive with one OAEP; with a label, in the form of T10.
fn wraps(
    examiner: &mut Examiner,
    pair: &Call<Pair>,
    opening: Option<(OaepHash, Sent)>,
    hash: OaepHash,
    labelled: bool,
) -> Outcome {
    let (Ok(pair), Some((opened_with, sent))) = (pair, opening) else {
        return Outcome::untried("there is no data key to wrap");
    };
    let label = if labelled {
        match WWN.parse::<Wwn>() {
            Ok(wwn) => WrappedKeyLabel::new(wwn).bytes(),
            Err(_) => return Outcome::untried("there is no WWN"),
        }
    } else {
        Vec::new()
    };
    let tried = examiner
        .open_known(pair, opened_with, &[], &template(sent))
        .and_then(|key| {
            let wrapped = wrap_for_drive(examiner, key, hash, &label);
            examiner.destroy(key);
            wrapped
        });
    tried.into()
}

/// `C_Decrypt` with one OAEP.
fn decrypts(examiner: &Examiner, host: &Call<Pair>, hash: OaepHash, labelled: bool) -> Outcome {
    let Ok(pair) = host else {
        return Outcome::untried("there is no throw-away KEK for custody host");
    };
    let label: &[u8] = if labelled { &DKI } else { &[] };
    let Some(wrapped) = examiner.drive.wrap(&pair.spki, hash, label) else {
        return Outcome::untried("the host cannot wrap this way");
    };
    let tried = examiner
        .decrypt(pair.private, hash, label, &wrapped)
        .map(|key| Outcome::same(examiner.drive.is_known(key.expose_secret())));
    tried.into()
}

/// What a token without OAEP has instead.
fn v15(examiner: &Examiner, pair: &Call<Pair>, host: &Call<Pair>) -> V15 {
    let unwrap = match pair {
        Err(_) => Outcome::untried("there is no throw-away KEK"),
        Ok(pair) => {
            let mut tries = Sent::ladder().into_iter().map(|sent| {
                let opened = examiner.open_known_v15(pair, &template(sent));
                let same = opened.and_then(|key| {
                    let same = examiner.is_known(key).map(Outcome::same);
                    examiner.destroy(key);
                    same
                });
                Outcome::from(same)
            });
            let first = tries.next();
            first
                .filter(|first| !first.works())
                .map_or(Outcome::Works, |first| {
                    tries.find(Outcome::works).unwrap_or(first)
                })
        }
    };
    let by = WrapAlgorithm::Pkcs1V15;
    let decrypt = match host {
        Err(_) => Outcome::untried("there is no throw-away KEK for custody host"),
        Ok(pair) => match examiner.drive.wrap_by(&pair.spki, by, &[]) {
            None => Outcome::untried("the host cannot wrap this way"),
            Some(wrapped) => examiner
                .decrypt_by(pair.private, &wrapping(by, &[]), &wrapped)
                .map(|key| Outcome::same(examiner.drive.is_known(key.expose_secret())))
                .into(),
        },
    };
    V15 { unwrap, decrypt }
}

/// `C_GenerateKey` of a data key: wrapped and never readable.
fn generates(examiner: &Examiner) -> Outcome {
    let made = examiner.module().generate_key(
        examiner.session,
        &Mechanism::Plain(ck::CKM_AES_KEY_GEN),
        &Token::generate_template(),
    );
    let tried = made.map(|key| {
        let readable = readable(examiner, key);
        examiner.destroy(key);
        if readable {
            Outcome::Wrong("CKA_VALUE can be read although CKA_SENSITIVE was sent".to_owned())
        } else {
            Outcome::Works
        }
    });
    tried.into()
}

/// `C_GenerateRandom`.
fn random(examiner: &Examiner) -> Outcome {
    outcome(examiner.module().random(examiner.session, 32))
}

/// Whether a protected KEK opens with the template that fits.
fn opens_under(
    examiner: &mut Examiner,
    kind: PairKind,
    hash: Option<OaepHash>,
    fit: Option<(Sent, bool)>,
) -> Outcome {
    let Ok(pair) = examiner.pair(kind) else {
        return Outcome::untried("the token does not make such a KEK");
    };
    let (Some(hash), Some((sent, _))) = (hash, fit) else {
        return Outcome::untried("no template fits");
    };
    let tried = examiner
        .open_known(&pair, hash, &[], &template(sent))
        .and_then(|key| {
            let same = examiner.is_known(key).map(Outcome::same);
            examiner.destroy(key);
            same
        });
    tried.into()
}
