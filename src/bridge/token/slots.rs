//! The slots of a module, and a new token in one.

use cryptoki_sys as ck;

use crate::bridge::faults::Fault;
use crate::bridge::message::SlotOnModule;
use crate::bridge::pin::{Pin, PinError};
use crate::bridge::pkcs11::Module;
use crate::bridge::uri::TokenUri;
use crate::bridge::which::Which;

/// The mechanisms that `ekm slot list` tells of.
const MECHANISMS: &[(ck::CK_MECHANISM_TYPE, &str)] = &[
    (ck::CKM_RSA_PKCS_KEY_PAIR_GEN, "CKM_RSA_PKCS_KEY_PAIR_GEN"),
    (ck::CKM_RSA_PKCS_OAEP, "CKM_RSA_PKCS_OAEP"),
    (ck::CKM_AES_KEY_GEN, "CKM_AES_KEY_GEN"),
    (ck::CKM_AES_ECB, "CKM_AES_ECB"),
    (ck::CKM_SHA256, "CKM_SHA256"),
];

/// Every slot of the module.
pub(in crate::bridge) fn list(name: &str, module: &Module) -> Result<Vec<SlotOnModule>, Fault> {
    let fail = |error| Fault::call(name, error, "listing the slots");
    module
        .slots(false)
        .map_err(fail)?
        .into_iter()
        .map(|slot| {
            let token = module.token_info(slot).ok();
            let listed = module.mechanisms(slot).unwrap_or_default();
            Ok(SlotOnModule {
                id: slot,
                uri: token
                    .as_ref()
                    .filter(|token| token.initialized())
                    .map(|token| TokenUri::of(token).to_string()),
                token,
                mechanisms: MECHANISMS
                    .iter()
                    .map(|(mechanism, name)| ((*name).to_owned(), listed.contains(mechanism)))
                    .collect(),
            })
        })
        .collect()
}

/// Initialises the one free slot, or the slot named. A token that is
/// initialised already is never touched: erasing it would erase its KEKs.
pub(in crate::bridge) fn init(
    name: &str,
    module: &Module,
    label: &str,
    slot: Option<u64>,
    so_pin: &Pin,
    user_pin: &Pin,
) -> Result<SlotOnModule, Fault> {
    let operator = |reason: String| Fault::Operator {
        token: name.to_owned(),
        reason,
    };
    let call = |error, what: &str| Fault::call(name, error, what);
    if label.is_empty() || label.len() > 32 {
        return Err(operator("a token label has 1 to 32 bytes".to_owned()));
    }
    let slots = list(name, module)?;
    if slots
        .iter()
        .filter_map(|slot| slot.token.as_ref())
        .any(|token| token.initialized() && token.label == label)
    {
        return Err(operator(format!(
            "there is a token {label:?} already, and initialising would erase its keys; choose another label"
        )));
    }
    let free: Vec<u64> = slots
        .iter()
        .filter(|slot| {
            slot.token
                .as_ref()
                .is_some_and(|token| !token.initialized())
        })
        .map(|slot| slot.id)
        .collect();
    let slot = match (slot, free.as_slice()) {
        (Some(slot), _) if free.contains(&slot) => slot,
        (Some(slot), _) => {
            return Err(operator(format!(
                "slot {slot} is not free: it is missing, empty or initialised already (see ekm slot list)"
            )));
        }
        (None, [only]) => *only,
        (None, []) => {
            return Err(operator(
                "there is no uninitialised slot (see ekm slot list)".to_owned(),
            ));
        }
        (None, many) => {
            return Err(operator(format!(
                "slots {many:?} are free; say which with --slot"
            )));
        }
    };
    let pin_error = |error: PinError| operator(error.to_string());
    let so_pin = so_pin.read_secret(name).map_err(pin_error)?;
    let user_pin = user_pin.read_secret(name).map_err(pin_error)?;
    let officer = module
        .init_token(slot, &so_pin, label)
        .map_err(|error| call(error, "initialising the token"))?;
    // Some modules move the token to another slot number when it is initialised.
    let (slot, _) = Which::labelled(label).find(name, module)?;
    let session = module
        .open_session(slot)
        .map_err(|error| call(error, "opening a session on the new token"))?;
    module
        .login_as_officer(session, &so_pin, officer)
        .map_err(|error| call(error, "logging in as security officer"))?;
    module.init_pin(session, &user_pin).map_err(|error| {
        call(
            error,
            "setting the user PIN; the token is initialised, its user PIN is not set",
        )
    })?;
    module
        .logout(session)
        .map_err(|error| call(error, "logging out"))?;
    list(name, module)?
        .into_iter()
        .find(|listed| listed.id == slot)
        .ok_or_else(|| operator("the new token has vanished".to_owned()))
}
