//! What a `CKR_` code means for the request that met it.
//!
//! One table maps every code of PKCS#11 v3.2 to a [`FaultClass`]; the few
//! functions that mean something else by a code stand in [`classify`]. Codes
//! that a tampered EEDK and a broken token share (`CKR_GENERAL_ERROR` on
//! SoftHSM, `CKR_DEVICE_ERROR` on Kryoptic) are [`FaultClass::Ambiguous`]:
//! the canary decides, so that a bad cartridge never takes a token down.

use cryptoki::error::Rv;
use cryptoki_sys as ck;
use serde::{Deserialize, Serialize};

use super::pkcs11::{CK_RV, CallError};

/// What to do about a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultClass {
    /// The request cannot succeed on this token: answer it so.
    Request,
    /// The same call may succeed on a new session.
    NewSession,
    /// The login is gone: log in again, then find the keys again.
    Login,
    /// A handle is stale: find the keys again.
    Find,
    /// Either the data is bad, or the token is broken or cannot do it: try with
    /// data that is known to be good.
    Ambiguous,
    /// The module must be loaded afresh: end this bridge, start another.
    Restart,
    /// Only an operator can mend this; trying again may do harm.
    Operator,
}

use FaultClass::{Ambiguous, Find, Login, NewSession, Operator, Request, Restart};

/// Code, name and class, in the order of the standard's header.
const TABLE: &[(CK_RV, &str, FaultClass)] = &[
    (ck::CKR_CANCEL, "CKR_CANCEL", Ambiguous),
    (ck::CKR_HOST_MEMORY, "CKR_HOST_MEMORY", Restart),
    (ck::CKR_SLOT_ID_INVALID, "CKR_SLOT_ID_INVALID", Restart),
    (ck::CKR_GENERAL_ERROR, "CKR_GENERAL_ERROR", Ambiguous),
    (ck::CKR_FUNCTION_FAILED, "CKR_FUNCTION_FAILED", Ambiguous),
    (ck::CKR_ARGUMENTS_BAD, "CKR_ARGUMENTS_BAD", Ambiguous),
    (ck::CKR_NO_EVENT, "CKR_NO_EVENT", Request),
    (
        ck::CKR_NEED_TO_CREATE_THREADS,
        "CKR_NEED_TO_CREATE_THREADS",
        Restart,
    ),
    (ck::CKR_CANT_LOCK, "CKR_CANT_LOCK", Restart),
    (
        ck::CKR_ATTRIBUTE_READ_ONLY,
        "CKR_ATTRIBUTE_READ_ONLY",
        Request,
    ),
    (
        ck::CKR_ATTRIBUTE_SENSITIVE,
        "CKR_ATTRIBUTE_SENSITIVE",
        Request,
    ),
    (
        ck::CKR_ATTRIBUTE_TYPE_INVALID,
        "CKR_ATTRIBUTE_TYPE_INVALID",
        Request,
    ),
    (
        ck::CKR_ATTRIBUTE_VALUE_INVALID,
        "CKR_ATTRIBUTE_VALUE_INVALID",
        Request,
    ),
    (ck::CKR_ACTION_PROHIBITED, "CKR_ACTION_PROHIBITED", Request),
    (ck::CKR_DATA_INVALID, "CKR_DATA_INVALID", Ambiguous),
    (ck::CKR_DATA_LEN_RANGE, "CKR_DATA_LEN_RANGE", Ambiguous),
    (ck::CKR_DEVICE_ERROR, "CKR_DEVICE_ERROR", Ambiguous),
    (ck::CKR_DEVICE_MEMORY, "CKR_DEVICE_MEMORY", Restart),
    (ck::CKR_DEVICE_REMOVED, "CKR_DEVICE_REMOVED", Restart),
    (
        ck::CKR_ENCRYPTED_DATA_INVALID,
        "CKR_ENCRYPTED_DATA_INVALID",
        Ambiguous,
    ),
    (
        ck::CKR_ENCRYPTED_DATA_LEN_RANGE,
        "CKR_ENCRYPTED_DATA_LEN_RANGE",
        Ambiguous,
    ),
    (
        ck::CKR_AEAD_DECRYPT_FAILED,
        "CKR_AEAD_DECRYPT_FAILED",
        Ambiguous,
    ),
    (
        ck::CKR_FUNCTION_CANCELED,
        "CKR_FUNCTION_CANCELED",
        Ambiguous,
    ),
    (
        ck::CKR_FUNCTION_NOT_PARALLEL,
        "CKR_FUNCTION_NOT_PARALLEL",
        Request,
    ),
    (
        ck::CKR_FUNCTION_NOT_SUPPORTED,
        "CKR_FUNCTION_NOT_SUPPORTED",
        Request,
    ),
    (ck::CKR_KEY_HANDLE_INVALID, "CKR_KEY_HANDLE_INVALID", Find),
    (ck::CKR_KEY_SIZE_RANGE, "CKR_KEY_SIZE_RANGE", Ambiguous),
    (
        ck::CKR_KEY_TYPE_INCONSISTENT,
        "CKR_KEY_TYPE_INCONSISTENT",
        Request,
    ),
    (ck::CKR_KEY_NOT_NEEDED, "CKR_KEY_NOT_NEEDED", Request),
    (ck::CKR_KEY_CHANGED, "CKR_KEY_CHANGED", Find),
    (ck::CKR_KEY_NEEDED, "CKR_KEY_NEEDED", Request),
    (ck::CKR_KEY_INDIGESTIBLE, "CKR_KEY_INDIGESTIBLE", Request),
    (
        ck::CKR_KEY_FUNCTION_NOT_PERMITTED,
        "CKR_KEY_FUNCTION_NOT_PERMITTED",
        Request,
    ),
    (ck::CKR_KEY_NOT_WRAPPABLE, "CKR_KEY_NOT_WRAPPABLE", Request),
    (ck::CKR_KEY_UNEXTRACTABLE, "CKR_KEY_UNEXTRACTABLE", Request),
    (ck::CKR_MECHANISM_INVALID, "CKR_MECHANISM_INVALID", Request),
    (
        ck::CKR_MECHANISM_PARAM_INVALID,
        "CKR_MECHANISM_PARAM_INVALID",
        Ambiguous,
    ),
    (
        ck::CKR_OBJECT_HANDLE_INVALID,
        "CKR_OBJECT_HANDLE_INVALID",
        Find,
    ),
    (ck::CKR_OPERATION_ACTIVE, "CKR_OPERATION_ACTIVE", NewSession),
    (
        ck::CKR_OPERATION_NOT_INITIALIZED,
        "CKR_OPERATION_NOT_INITIALIZED",
        NewSession,
    ),
    (ck::CKR_PIN_INCORRECT, "CKR_PIN_INCORRECT", Operator),
    (ck::CKR_PIN_INVALID, "CKR_PIN_INVALID", Operator),
    (ck::CKR_PIN_LEN_RANGE, "CKR_PIN_LEN_RANGE", Operator),
    (ck::CKR_PIN_EXPIRED, "CKR_PIN_EXPIRED", Operator),
    (ck::CKR_PIN_LOCKED, "CKR_PIN_LOCKED", Operator),
    (ck::CKR_SESSION_CLOSED, "CKR_SESSION_CLOSED", NewSession),
    (ck::CKR_SESSION_COUNT, "CKR_SESSION_COUNT", NewSession),
    (
        ck::CKR_SESSION_HANDLE_INVALID,
        "CKR_SESSION_HANDLE_INVALID",
        NewSession,
    ),
    (
        ck::CKR_SESSION_PARALLEL_NOT_SUPPORTED,
        "CKR_SESSION_PARALLEL_NOT_SUPPORTED",
        NewSession,
    ),
    (
        ck::CKR_SESSION_READ_ONLY,
        "CKR_SESSION_READ_ONLY",
        NewSession,
    ),
    (ck::CKR_SESSION_EXISTS, "CKR_SESSION_EXISTS", Request),
    (
        ck::CKR_SESSION_READ_ONLY_EXISTS,
        "CKR_SESSION_READ_ONLY_EXISTS",
        Request,
    ),
    (
        ck::CKR_SESSION_READ_WRITE_SO_EXISTS,
        "CKR_SESSION_READ_WRITE_SO_EXISTS",
        Request,
    ),
    (ck::CKR_SIGNATURE_INVALID, "CKR_SIGNATURE_INVALID", Request),
    (
        ck::CKR_SIGNATURE_LEN_RANGE,
        "CKR_SIGNATURE_LEN_RANGE",
        Request,
    ),
    (
        ck::CKR_TEMPLATE_INCOMPLETE,
        "CKR_TEMPLATE_INCOMPLETE",
        Request,
    ),
    (
        ck::CKR_TEMPLATE_INCONSISTENT,
        "CKR_TEMPLATE_INCONSISTENT",
        Request,
    ),
    (ck::CKR_TOKEN_NOT_PRESENT, "CKR_TOKEN_NOT_PRESENT", Restart),
    (
        ck::CKR_TOKEN_NOT_RECOGNIZED,
        "CKR_TOKEN_NOT_RECOGNIZED",
        Restart,
    ),
    (
        ck::CKR_TOKEN_WRITE_PROTECTED,
        "CKR_TOKEN_WRITE_PROTECTED",
        Operator,
    ),
    (
        ck::CKR_UNWRAPPING_KEY_HANDLE_INVALID,
        "CKR_UNWRAPPING_KEY_HANDLE_INVALID",
        Find,
    ),
    (
        ck::CKR_UNWRAPPING_KEY_SIZE_RANGE,
        "CKR_UNWRAPPING_KEY_SIZE_RANGE",
        Ambiguous,
    ),
    (
        ck::CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT,
        "CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT",
        Request,
    ),
    (
        ck::CKR_USER_ALREADY_LOGGED_IN,
        "CKR_USER_ALREADY_LOGGED_IN",
        Request,
    ),
    (ck::CKR_USER_NOT_LOGGED_IN, "CKR_USER_NOT_LOGGED_IN", Login),
    (
        ck::CKR_USER_PIN_NOT_INITIALIZED,
        "CKR_USER_PIN_NOT_INITIALIZED",
        Operator,
    ),
    (ck::CKR_USER_TYPE_INVALID, "CKR_USER_TYPE_INVALID", Operator),
    (
        ck::CKR_USER_ANOTHER_ALREADY_LOGGED_IN,
        "CKR_USER_ANOTHER_ALREADY_LOGGED_IN",
        Operator,
    ),
    (
        ck::CKR_USER_TOO_MANY_TYPES,
        "CKR_USER_TOO_MANY_TYPES",
        Operator,
    ),
    (
        ck::CKR_WRAPPED_KEY_INVALID,
        "CKR_WRAPPED_KEY_INVALID",
        Ambiguous,
    ),
    (
        ck::CKR_WRAPPED_KEY_LEN_RANGE,
        "CKR_WRAPPED_KEY_LEN_RANGE",
        Ambiguous,
    ),
    (
        ck::CKR_WRAPPING_KEY_HANDLE_INVALID,
        "CKR_WRAPPING_KEY_HANDLE_INVALID",
        Find,
    ),
    (
        ck::CKR_WRAPPING_KEY_SIZE_RANGE,
        "CKR_WRAPPING_KEY_SIZE_RANGE",
        Request,
    ),
    (
        ck::CKR_WRAPPING_KEY_TYPE_INCONSISTENT,
        "CKR_WRAPPING_KEY_TYPE_INCONSISTENT",
        Request,
    ),
    (
        ck::CKR_RANDOM_SEED_NOT_SUPPORTED,
        "CKR_RANDOM_SEED_NOT_SUPPORTED",
        Operator,
    ),
    (ck::CKR_RANDOM_NO_RNG, "CKR_RANDOM_NO_RNG", Operator),
    (
        ck::CKR_DOMAIN_PARAMS_INVALID,
        "CKR_DOMAIN_PARAMS_INVALID",
        Request,
    ),
    (
        ck::CKR_CURVE_NOT_SUPPORTED,
        "CKR_CURVE_NOT_SUPPORTED",
        Request,
    ),
    (ck::CKR_BUFFER_TOO_SMALL, "CKR_BUFFER_TOO_SMALL", Request),
    (
        ck::CKR_SAVED_STATE_INVALID,
        "CKR_SAVED_STATE_INVALID",
        Request,
    ),
    (
        ck::CKR_INFORMATION_SENSITIVE,
        "CKR_INFORMATION_SENSITIVE",
        Request,
    ),
    (ck::CKR_STATE_UNSAVEABLE, "CKR_STATE_UNSAVEABLE", Request),
    (
        ck::CKR_CRYPTOKI_NOT_INITIALIZED,
        "CKR_CRYPTOKI_NOT_INITIALIZED",
        Restart,
    ),
    (
        ck::CKR_CRYPTOKI_ALREADY_INITIALIZED,
        "CKR_CRYPTOKI_ALREADY_INITIALIZED",
        Request,
    ),
    (ck::CKR_MUTEX_BAD, "CKR_MUTEX_BAD", Restart),
    (ck::CKR_MUTEX_NOT_LOCKED, "CKR_MUTEX_NOT_LOCKED", Restart),
    (ck::CKR_NEW_PIN_MODE, "CKR_NEW_PIN_MODE", Operator),
    (ck::CKR_NEXT_OTP, "CKR_NEXT_OTP", Operator),
    (
        ck::CKR_EXCEEDED_MAX_ITERATIONS,
        "CKR_EXCEEDED_MAX_ITERATIONS",
        Request,
    ),
    (
        ck::CKR_FIPS_SELF_TEST_FAILED,
        "CKR_FIPS_SELF_TEST_FAILED",
        Restart,
    ),
    (
        ck::CKR_LIBRARY_LOAD_FAILED,
        "CKR_LIBRARY_LOAD_FAILED",
        Operator,
    ),
    (ck::CKR_PIN_TOO_WEAK, "CKR_PIN_TOO_WEAK", Operator),
    (
        ck::CKR_PUBLIC_KEY_INVALID,
        "CKR_PUBLIC_KEY_INVALID",
        Request,
    ),
    (
        ck::CKR_FUNCTION_REJECTED,
        "CKR_FUNCTION_REJECTED",
        Ambiguous,
    ),
    (
        ck::CKR_TOKEN_RESOURCE_EXCEEDED,
        "CKR_TOKEN_RESOURCE_EXCEEDED",
        NewSession,
    ),
    (
        ck::CKR_OPERATION_CANCEL_FAILED,
        "CKR_OPERATION_CANCEL_FAILED",
        NewSession,
    ),
    (ck::CKR_KEY_EXHAUSTED, "CKR_KEY_EXHAUSTED", Operator),
    (ck::CKR_PENDING, "CKR_PENDING", Request),
    (
        ck::CKR_SESSION_ASYNC_NOT_SUPPORTED,
        "CKR_SESSION_ASYNC_NOT_SUPPORTED",
        Request,
    ),
    (
        ck::CKR_SEED_RANDOM_REQUIRED,
        "CKR_SEED_RANDOM_REQUIRED",
        Operator,
    ),
    (
        ck::CKR_OPERATION_NOT_VALIDATED,
        "CKR_OPERATION_NOT_VALIDATED",
        Request,
    ),
    (
        ck::CKR_TOKEN_NOT_INITIALIZED,
        "CKR_TOKEN_NOT_INITIALIZED",
        Operator,
    ),
    (
        ck::CKR_PARAMETER_SET_NOT_SUPPORTED,
        "CKR_PARAMETER_SET_NOT_SUPPORTED",
        Request,
    ),
];

/// The name of a `CKR_` code as the standard spells it, or its number.
#[must_use]
pub fn ckr_name(rv: CK_RV) -> String {
    TABLE.iter().find(|(code, _, _)| *code == rv).map_or_else(
        || {
            if rv >= ck::CKR_VENDOR_DEFINED {
                format!("CKR_VENDOR_DEFINED+{:#x}", rv - ck::CKR_VENDOR_DEFINED)
            } else {
                format!("CKR_{rv:#010x}")
            }
        },
        |(_, name, _)| (*name).to_owned(),
    )
}

/// What the standard says of a code (PKCS#11 v2.40, 5.1), in its first
/// sentence and in parentheses; nothing for a vendor's own.
fn meaning(name: &str) -> String {
    let known = TABLE.iter().find(|(_, known, _)| *known == name);
    match known.map(|(rv, _, _)| Rv::from(*rv)) {
        Some(Rv::Error(error)) => {
            let text = error.to_string();
            let sentence = text.split_inclusive(". ").next().unwrap_or_default();
            format!(" ({})", sentence.trim().trim_end_matches('.'))
        }
        Some(Rv::Ok) | None => String::new(),
    }
}

/// The class of a failed call.
#[must_use]
pub fn classify(error: CallError) -> FaultClass {
    match (error.function, error.rv) {
        // Another thread of this bridge was faster: nothing is wrong.
        ("C_Login", ck::CKR_USER_ALREADY_LOGGED_IN) => Request,
        // Nothing but the token itself is in play before a session exists.
        ("C_Initialize" | "C_GetSlotList" | "C_GetTokenInfo" | "C_OpenSession", rv)
            if !matches!(class_of(rv), Operator) =>
        {
            Restart
        }
        (_, rv) => class_of(rv),
    }
}

fn class_of(rv: CK_RV) -> FaultClass {
    TABLE
        .iter()
        .find(|(code, _, _)| *code == rv)
        // A vendor's own code tells nothing about whose fault it is.
        .map_or(Ambiguous, |(_, _, class)| *class)
}

/// A failure on a token, as the bridge reports it to the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Fault {
    /// A PKCS#11 call failed.
    #[error("token {token}: {what}: {function} answered {name}{}", meaning(name))]
    Call {
        /// The token's configured name.
        token: String,
        /// The PKCS#11 function.
        function: String,
        /// The `CKR_` name.
        name: String,
        /// What was being done, with the key's label.
        what: String,
        /// What follows from it.
        class: FaultClass,
    },
    /// The EEDK does not open under its KEK although the token is well.
    #[error(
        "token {token}: the EEDK does not open under KEK {kek}: {function} answered {name} while the token's canary opens; the EEDK is damaged or was made for another key"
    )]
    BadEedk {
        /// The token's configured name.
        token: String,
        /// The KEK's public-key hash.
        kek: String,
        /// The PKCS#11 function.
        function: String,
        /// The `CKR_` name.
        name: String,
    },
    /// An EEDK of the cartridge is not even tried.
    #[error("EEDK {number} is not tried: {reason}")]
    NotTried {
        /// Its place on the cartridge, from 1.
        number: usize,
        /// Why.
        reason: String,
    },
    /// The token does not hold the private half of that KEK.
    #[error("{} the private half of KEK {kek}", holder(token))]
    NoKek {
        /// The token's configured name; none where every token was asked.
        token: Option<String>,
        /// The KEK's public-key hash.
        kek: String,
    },
    /// The KEK is on the token but may not serve.
    #[error("token {token}: KEK {label} is refused: {reason}")]
    Refused {
        /// The token's configured name.
        token: String,
        /// The key label.
        label: String,
        /// The attribute and what it should be.
        reason: String,
    },
    /// The token cannot do what was asked, in this way of working.
    #[error("token {token}: {reason}")]
    Unsupported {
        /// The token's configured name.
        token: String,
        /// What it cannot do, and what to configure instead.
        reason: String,
    },
    /// The token is not usable until an operator acts.
    #[error("token {token}: {reason}")]
    Operator {
        /// The token's configured name.
        token: String,
        /// What happened and what to do.
        reason: String,
    },
    /// The bridge ended, or is not up.
    #[error("token {token} is not available: {reason}")]
    Down {
        /// The token's configured name.
        token: String,
        /// Why.
        reason: String,
    },
    /// The request's time ran out before the token answered.
    #[error("token {token} did not answer within {seconds} s")]
    Deadline {
        /// The token's configured name.
        token: String,
        /// The time allowed.
        seconds: u64,
    },
}

fn holder(token: &Option<String>) -> String {
    token.as_ref().map_or_else(
        || "no token here holds".to_owned(),
        |token| format!("token {token} does not hold"),
    )
}

impl Fault {
    /// A failed call in the words of the server.
    #[must_use]
    pub fn call(token: &str, error: CallError, what: impl Into<String>) -> Self {
        Self::Call {
            token: token.to_owned(),
            function: error.function.to_owned(),
            name: ckr_name(error.rv),
            what: what.into(),
            class: classify(error),
        }
    }

    /// Whether it may be over soon: the token is down, not unable.
    #[must_use]
    pub const fn passes(&self) -> bool {
        match self {
            Self::Call { class, .. } => !matches!(class, Request),
            Self::Operator { .. } | Self::Down { .. } | Self::Deadline { .. } => true,
            Self::BadEedk { .. }
            | Self::NotTried { .. }
            | Self::NoKek { .. }
            | Self::Refused { .. }
            | Self::Unsupported { .. } => false,
        }
    }

    /// Whether another token that holds the key may do better.
    #[must_use]
    pub const fn elsewhere(&self) -> bool {
        match self {
            Self::NotTried { .. } => false,
            Self::Call { .. }
            | Self::BadEedk { .. }
            | Self::NoKek { .. }
            | Self::Refused { .. }
            | Self::Unsupported { .. }
            | Self::Operator { .. }
            | Self::Down { .. }
            | Self::Deadline { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_row() {
        let mut codes: Vec<CK_RV> = TABLE.iter().map(|(code, _, _)| *code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), TABLE.len());
    }

    #[test]
    fn a_tampered_eedk_does_not_condemn_the_token() {
        for rv in [ck::CKR_GENERAL_ERROR, ck::CKR_DEVICE_ERROR] {
            let class = classify(CallError {
                function: "C_UnwrapKey",
                rv,
            });
            assert_eq!(class, Ambiguous);
        }
    }

    #[test]
    fn a_refused_pin_is_never_tried_again() {
        for rv in [
            ck::CKR_PIN_INCORRECT,
            ck::CKR_PIN_LOCKED,
            ck::CKR_PIN_EXPIRED,
        ] {
            let class = classify(CallError {
                function: "C_Login",
                rv,
            });
            assert_eq!(class, Operator);
        }
    }

    #[test]
    fn codes_are_named_as_the_standard_names_them() {
        assert_eq!(ckr_name(ck::CKR_DEVICE_ERROR), "CKR_DEVICE_ERROR");
        assert_eq!(ckr_name(0x8000_0042), "CKR_VENDOR_DEFINED+0x42");
    }
}
