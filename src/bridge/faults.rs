//! What a `CKR_` code means for the request that met it.
//!
//! `codes.rs` has one row for every code of PKCS#11 v3.2, `functions.rs` rows
//! for functions that mean something else by one, and a profile may have rules
//! of its own; each says why. `ekm token explain` prints them. Codes that a
//! tampered EEDK and a broken token share (`CKR_GENERAL_ERROR` on SoftHSM,
//! `CKR_DEVICE_ERROR` on kryoptic) are [`FaultClass::Ambiguous`]: an EEDK that
//! is known to be good decides, so that a bad cartridge never takes a token
//! down.

mod codes;
mod explain;
mod functions;
mod rules;

use cryptoki::error::Rv;
use cryptoki_sys as ck;
use serde::{Deserialize, Serialize};

use super::pkcs11::{CK_RV, CallError};
use codes::CODES;
use functions::{Codes, FunctionRow, ROWS};

pub use explain::{AskError, Asked, Explained, explain};
pub use functions::{FUNCTIONS, OPENS};
pub use rules::FaultRule;

/// What to do about a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
    /// The token is well and has no room for this now: wait a moment, and leave
    /// what others hold alone.
    Full,
    /// The module must be loaded afresh: end this bridge, start another.
    Restart,
    /// Only an operator can mend this; trying again may do harm.
    Operator,
    /// Nothing is wrong: go on as if the call had succeeded.
    Harmless,
}

impl FaultClass {
    /// Every class, the mildest cure first.
    pub const ALL: [Self; 9] = [
        Self::Harmless,
        Self::Request,
        Self::NewSession,
        Self::Find,
        Self::Login,
        Self::Full,
        Self::Ambiguous,
        Self::Restart,
        Self::Operator,
    ];

    /// What `ekm` does about any class while no request is in play yet.
    pub const OPENING: &str = "While a bridge opens its token, from C_Initialize to the first canary, no request is in play: a call that fails ends that bridge, unless that is harmless or says something of one key only, and another is started, after pauses of 10 s at most. Only a PIN that was refused, is held back or is not there locks the token.";

    /// Its name, as a profile and `ekm token explain` spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::NewSession => "new-session",
            Self::Login => "login",
            Self::Find => "find",
            Self::Ambiguous => "ambiguous",
            Self::Full => "full",
            Self::Restart => "restart",
            Self::Operator => "operator",
            Self::Harmless => "harmless",
        }
    }

    /// What `ekm` does about it.
    #[must_use]
    pub const fn action(self) -> &'static str {
        match self {
            Self::Request => {
                "answers this one request with the fault, or asks another token that holds the key; the token stays in service"
            }
            Self::NewSession => {
                "closes the session and does the exchange again on a new one, at most three times and within the request's time"
            }
            Self::Login => {
                "logs in again (if the PIN's ledger allows it), finds the keys again and does the exchange again"
            }
            Self::Find => {
                "finds the keys again and does the exchange again; if the session's state says that the login is gone, logs in first"
            }
            Self::Ambiguous => {
                "opens an EEDK of its own on a new session: if that opens, the exchange is tried once more and then its data is to blame; if not, the bridge is started anew"
            }
            Self::Full => {
                "closes the session, waits a moment and tries again within the request's time; other sessions go on, and no bridge that serves is ended; one that is still opening its token ends, and another is started"
            }
            Self::Restart => {
                "ends the bridge process and starts another, with growing pauses; requests wait for it or go to another token meanwhile"
            }
            Self::Operator => {
                "does not do the request again; a login that was refused locks the token until an operator acts; any other call under which a bridge opens its token ends that bridge, and another is started"
            }
            Self::Harmless => "goes on as if the call had succeeded",
        }
    }

    /// What an operator may do, where a row has nothing better.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Request => {
                "compare the profile with the token (hsm-profiles/README.md); the message names what was being done"
            }
            Self::NewSession | Self::Login | Self::Find => {
                "nothing, if it passes; if it comes again and again, look for a program or a vendor's setting that closes sessions, logs out or changes keys"
            }
            Self::Ambiguous => {
                "see the audit record: EE32 means that the cartridge's EEDK is bad, and its other EEDK may open; if the token fails, ekm token status says so"
            }
            Self::Full => "look for other programs with sessions on the token",
            Self::Restart => {
                "nothing, if the token comes back (ekm token status); if not, look at the HSM, its network and the vendor's client software"
            }
            Self::Operator => "ekm token status says what is to be done",
            Self::Harmless => "nothing",
        }
    }
}

impl std::fmt::Display for FaultClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// A code and what it means, whichever function answers with it.
#[derive(Clone, Copy, Debug)]
struct Row {
    code: CK_RV,
    name: &'static str,
    class: FaultClass,
    reason: &'static str,
    advice: Option<&'static str>,
}

/// What a code means when a certain function answers with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaning<'a> {
    /// What follows from it.
    pub class: FaultClass,
    /// Why, in one sentence.
    pub reason: &'a str,
    /// What an operator may do, where there is more to say than for the class.
    pub advice: Option<&'a str>,
    /// What `ekm` does, where it is not what it does about the class elsewhere.
    pub action: Option<&'static str>,
    /// Who says so.
    pub source: Source,
}

/// Where a meaning was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A rule of the profile.
    Profile,
    /// A row of the function.
    Function,
    /// The row of the code.
    Code,
    /// No row: a vendor's code, or one of a later standard.
    Unlisted,
}

/// What a code means when that function answers with it: by the profile's
/// rules, else by the function's row, else by the code's.
#[must_use]
pub fn meaning<'a>(function: &str, rv: CK_RV, rules: &'a [FaultRule]) -> Meaning<'a> {
    if let Some(rule) = rules.iter().find(|rule| rule.covers(function, rv)) {
        return Meaning {
            class: rule.class,
            reason: &rule.reason,
            advice: None,
            action: None,
            source: Source::Profile,
        };
    }
    let general = in_general(rv);
    function_row(function, rv, general.class).map_or(general, |row| Meaning {
        class: row.class,
        reason: row.reason,
        advice: row.advice,
        action: row.action,
        source: Source::Function,
    })
}

/// What a code means, whichever function answers with it.
fn in_general(rv: CK_RV) -> Meaning<'static> {
    CODES.iter().find(|row| row.code == rv).map_or(
        Meaning {
            class: FaultClass::Ambiguous,
            reason: "No code of the standard: a vendor's own tells nothing about whose fault it is.",
            advice: Some(
                "look the code up in the vendor's manual; [[faults]] of the profile can say what it means",
            ),
            action: None,
            source: Source::Unlisted,
        },
        |row| Meaning {
            class: row.class,
            reason: row.reason,
            advice: row.advice,
            action: None,
            source: Source::Code,
        },
    )
}

fn function_row(function: &str, rv: CK_RV, general: FaultClass) -> Option<&'static FunctionRow> {
    let of_function = || ROWS.iter().filter(|row| row.functions.contains(&function));
    let exact = of_function().find(|row| match row.codes {
        Codes::These(codes) => codes.contains(&rv),
        Codes::Vendors => rv >= ck::CKR_VENDOR_DEFINED,
        Codes::Rest(_) => false,
    });
    exact.or_else(|| {
        of_function()
            .find(|row| matches!(row.codes, Codes::Rest(classes) if classes.contains(&general)))
    })
}

/// The name of a `CKR_` code as the standard spells it, or its number.
#[must_use]
pub fn ckr_name(rv: CK_RV) -> String {
    CODES.iter().find(|row| row.code == rv).map_or_else(
        || {
            if rv >= ck::CKR_VENDOR_DEFINED {
                format!("CKR_VENDOR_DEFINED+{:#x}", rv - ck::CKR_VENDOR_DEFINED)
            } else {
                format!("CKR_{rv:#010x}")
            }
        },
        |row| row.name.to_owned(),
    )
}

/// The code of a name as [`ckr_name`] gives it, with or without `CKR_` and in
/// any case, or of a number, decimal or hexadecimal with `0x`.
fn ckr_code(text: &str) -> Option<CK_RV> {
    let upper = text.trim().to_ascii_uppercase();
    let short = upper.strip_prefix("CKR_").unwrap_or(&upper);
    if let Some(row) = CODES.iter().find(|row| row.name.get(4..) == Some(short)) {
        return Some(row.code);
    }
    let number = |text: &str| match text.strip_prefix("0X") {
        Some(hex) => CK_RV::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    match short.strip_prefix("VENDOR_DEFINED+") {
        Some(offset) => number(offset)?.checked_add(ck::CKR_VENDOR_DEFINED),
        None => number(short),
    }
}

/// What the standard says of a code (PKCS#11 v2.40, 5.1), in its first
/// sentence; nothing for a vendor's own and for those that came later.
fn standard(rv: CK_RV) -> Option<String> {
    use cryptoki::error::RvError;
    match Rv::from(rv) {
        Rv::Ok | Rv::Error(RvError::UnknownErrorCode(_) | RvError::VendorDefined(_)) => None,
        Rv::Error(error) => {
            let text = error.to_string();
            let sentence = text.split_inclusive(". ").next().unwrap_or_default();
            Some(sentence.trim().trim_end_matches('.').to_owned())
        }
    }
}

/// The same in parentheses, for a message; only for codes with a name.
fn in_parentheses(name: &str) -> String {
    CODES
        .iter()
        .find(|row| row.name == name)
        .and_then(|row| standard(row.code))
        .map_or_else(String::new, |text| format!(" ({text})"))
}

/// A failure on a token, as the bridge reports it to the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Fault {
    /// A PKCS#11 call failed.
    #[error(
        "token {token}: {what}: {function} answered {name}{}; see ekm token explain {name} --function {function}",
        in_parentheses(name)
    )]
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
    /// Wrong PINs were given, or the token says so: it is left alone until an operator acts.
    #[error("token {token}: {reason}")]
    WrongPin {
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
            class: error.class,
        }
    }

    /// Whether it may be over soon: the token is down, not unable.
    #[must_use]
    pub const fn passes(&self) -> bool {
        match self {
            Self::Call { class, .. } => {
                !matches!(class, FaultClass::Request | FaultClass::Operator)
            }
            Self::Operator { .. }
            | Self::WrongPin { .. }
            | Self::Down { .. }
            | Self::Deadline { .. } => true,
            Self::BadEedk { .. }
            | Self::NotTried { .. }
            | Self::NoKek { .. }
            | Self::Refused { .. }
            | Self::Unsupported { .. } => false,
        }
    }

    /// Whether another token that holds the key may do better. That an EEDK is
    /// bad was found with a fresh EEDK that opened under the same key, so every
    /// token with that key would find the same; a cartridge's other EEDK is
    /// another matter, and the exchange's.
    #[must_use]
    pub const fn elsewhere(&self) -> bool {
        match self {
            Self::BadEedk { .. } | Self::NotTried { .. } => false,
            Self::Call { .. }
            | Self::NoKek { .. }
            | Self::Refused { .. }
            | Self::Unsupported { .. }
            | Self::Operator { .. }
            | Self::WrongPin { .. }
            | Self::Down { .. }
            | Self::Deadline { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests;
