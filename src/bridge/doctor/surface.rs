//! What a module and its token show before any login, and how many sessions
//! they give.

use cryptoki_sys as ck;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use super::findings::{MechanismSeen, SeenToken, Sessions, Surface};
use crate::bridge::faults::Fault;
use crate::bridge::pkcs11::{CK_MECHANISM_TYPE, CK_SLOT_ID, Module, TokenInfo};
use crate::bridge::token::{Token, list};
use crate::bridge::uri::TokenUri;
use crate::bridge::which::Which;

/// The mechanisms that matter: number, name, what for.
const MECHANISMS: &[(CK_MECHANISM_TYPE, &str, &str)] = &[
    (
        ck::CKM_RSA_PKCS_KEY_PAIR_GEN,
        "CKM_RSA_PKCS_KEY_PAIR_GEN",
        "making KEKs",
    ),
    (
        ck::CKM_RSA_PKCS_OAEP,
        "CKM_RSA_PKCS_OAEP",
        "EEDKs, and keys for drives",
    ),
    (ck::CKM_AES_KEY_GEN, "CKM_AES_KEY_GEN", "making data keys"),
    (ck::CKM_AES_ECB, "CKM_AES_ECB", "the proof of an EEDK"),
    (
        ck::CKM_RSA_PKCS,
        "CKM_RSA_PKCS",
        "EEDKs, where there is no OAEP",
    ),
    (
        ck::CKM_RSA_AES_KEY_WRAP,
        "CKM_RSA_AES_KEY_WRAP",
        "not used by ekm",
    ),
    (
        ck::CKM_AES_KEY_WRAP_KWP,
        "CKM_AES_KEY_WRAP_KWP",
        "bringing KEKs in",
    ),
];

/// Flags of a mechanism that matter (PKCS#11 v3.1, table 8).
const MECHANISM_FLAGS: &[(u64, &str)] = &[
    (ck::CKF_HW, "HW"),
    (ck::CKF_ENCRYPT, "ENCRYPT"),
    (ck::CKF_DECRYPT, "DECRYPT"),
    (ck::CKF_WRAP, "WRAP"),
    (ck::CKF_UNWRAP, "UNWRAP"),
    (ck::CKF_GENERATE, "GENERATE"),
    (ck::CKF_GENERATE_KEY_PAIR, "GENERATE_KEY_PAIR"),
];

/// Flags of a token (PKCS#11 v3.1, table 6).
const TOKEN_FLAGS: &[(u64, &str)] = &[
    (ck::CKF_RNG, "CKF_RNG"),
    (ck::CKF_WRITE_PROTECTED, "CKF_WRITE_PROTECTED"),
    (ck::CKF_LOGIN_REQUIRED, "CKF_LOGIN_REQUIRED"),
    (ck::CKF_USER_PIN_INITIALIZED, "CKF_USER_PIN_INITIALIZED"),
    (ck::CKF_CLOCK_ON_TOKEN, "CKF_CLOCK_ON_TOKEN"),
    (
        ck::CKF_PROTECTED_AUTHENTICATION_PATH,
        "CKF_PROTECTED_AUTHENTICATION_PATH",
    ),
    (ck::CKF_TOKEN_INITIALIZED, "CKF_TOKEN_INITIALIZED"),
    (ck::CKF_USER_PIN_COUNT_LOW, "CKF_USER_PIN_COUNT_LOW"),
    (ck::CKF_USER_PIN_FINAL_TRY, "CKF_USER_PIN_FINAL_TRY"),
    (ck::CKF_USER_PIN_LOCKED, "CKF_USER_PIN_LOCKED"),
    (ck::CKF_USER_PIN_TO_BE_CHANGED, "CKF_USER_PIN_TO_BE_CHANGED"),
    (ck::CKF_SO_PIN_COUNT_LOW, "CKF_SO_PIN_COUNT_LOW"),
    (ck::CKF_SO_PIN_FINAL_TRY, "CKF_SO_PIN_FINAL_TRY"),
    (ck::CKF_SO_PIN_LOCKED, "CKF_SO_PIN_LOCKED"),
    (ck::CKF_SO_PIN_TO_BE_CHANGED, "CKF_SO_PIN_TO_BE_CHANGED"),
    (ck::CKF_ERROR_STATE, "CKF_ERROR_STATE"),
];

/// Looks at the module, and at the token of that URI or the only one there is.
pub(super) fn look(
    name: &str,
    library: &str,
    module: &Module,
    which: Option<&Which>,
) -> Result<Surface, Fault> {
    let info = module
        .info()
        .map_err(|error| Fault::call(name, error, "asking the module what it is"))?;
    let (token, no_token) = match choose(name, module, which).and_then(|(slot, info)| {
        see(module, slot, info).map_err(|error| Fault::call(name, error, "looking at the token"))
    }) {
        Ok(token) => (Some(token), None),
        Err(fault) => (None, Some(fault.to_string())),
    };
    Ok(Surface {
        library: library.to_owned(),
        module: info,
        slots: list(name, module)?,
        token,
        no_token,
    })
}

/// The slot of the token of that URI, or of the only initialised token.
pub(super) fn choose(
    name: &str,
    module: &Module,
    which: Option<&Which>,
) -> Result<(CK_SLOT_ID, TokenInfo), Fault> {
    if let Some(which) = which {
        return which.find(name, module);
    }
    let mut tokens = list(name, module)?
        .into_iter()
        .filter_map(|slot| slot.token.map(|token| (slot.id, token)))
        .filter(|(_, token)| token.initialized());
    match (tokens.next(), tokens.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(Fault::Down {
            token: name.to_owned(),
            reason: "the module shows no initialised token; is the HSM reachable? ekm slot init makes a token".to_owned(),
        }),
        (Some(_), Some(_)) => Err(Fault::Operator {
            token: name.to_owned(),
            reason: "the module shows more than one token; say which with --uri or --label (ekm slot list)".to_owned(),
        }),
    }
}

fn see(
    module: &Module,
    slot: CK_SLOT_ID,
    info: TokenInfo,
) -> crate::bridge::pkcs11::Call<SeenToken> {
    let limits = module.token_limits(slot)?;
    let listed = module.mechanisms(slot)?;
    Ok(SeenToken {
        slot,
        uri: TokenUri::of(&info).to_string(),
        flags: names(TOKEN_FLAGS, info.flags),
        clock_ahead: limits.utc_time.as_deref().and_then(ahead),
        mechanisms: MECHANISMS
            .iter()
            .map(|(mechanism, name, purpose)| {
                let info = module.mechanism_info(slot, *mechanism).ok();
                MechanismSeen {
                    name: (*name).to_owned(),
                    purpose: (*purpose).to_owned(),
                    listed: listed.contains(mechanism),
                    flags: info
                        .map(|info| names(MECHANISM_FLAGS, info.flags))
                        .unwrap_or_default(),
                    info,
                }
            })
            .collect(),
        info,
        limits,
    })
}

fn names(table: &[(u64, &str)], flags: u64) -> Vec<String> {
    table
        .iter()
        .filter(|(flag, _)| flags & flag != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

/// Seconds that a `utcTime` is ahead of this machine's clock.
fn ahead(utc_time: &str) -> Option<i64> {
    const FORMAT: &[BorrowedFormatItem<'_>] =
        format_description!("[year][month][day][hour][minute][second]");
    let theirs = PrimitiveDateTime::parse(utc_time.get(..14)?, FORMAT)
        .ok()?
        .assume_utc();
    Some((theirs - OffsetDateTime::now_utc()).whole_seconds())
}

/// Opens sessions up to `bound` at the same time and closes them again.
pub(super) fn sessions(token: &Token, bound: usize) -> Sessions {
    let mut open = Vec::new();
    let mut ended = None;
    // The first session, which holds the login, counts.
    while open.len() + 1 < bound {
        match token.session() {
            Ok(session) => open.push(session),
            Err(error) => {
                ended = Some(error.into());
                break;
            }
        }
    }
    let opened = open.len() + 1;
    for session in open {
        let _ = token.module.close_session(session);
    }
    Sessions {
        opened,
        bound,
        ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_compared_in_seconds() {
        let later = OffsetDateTime::now_utc() + time::Duration::seconds(90);
        let text = later
            .format(format_description!(
                "[year][month][day][hour][minute][second]00"
            ))
            .unwrap();
        assert!((60..=90).contains(&ahead(&text).unwrap()), "{text}");
        assert_eq!(ahead("2026"), None);
        assert_eq!(ahead("                "), None);
    }
}
