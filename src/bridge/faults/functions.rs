//! What single functions mean by a code that is not what [`super::codes`] says.
//!
//! Most of it follows from what is in play. Before a session exists, and while
//! keys are looked for, no request is: what fails there is the module. Under
//! `C_UnwrapKey` and `C_Decrypt` a cartridge is, and may be to blame for
//! anything. Under `C_Login` the PIN counter is.

use cryptoki_sys as ck;

use super::FaultClass::{
    Ambiguous, Find, Full, Harmless, Login, NewSession, Operator, Request, Restart,
};
use super::{CK_RV, FaultClass};

/// Every PKCS#11 function that the bridge calls.
pub const FUNCTIONS: &[&str] = &[
    "C_Initialize",
    "C_Finalize",
    "C_GetInfo",
    "C_GetSlotList",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_GetMechanismInfo",
    "C_InitToken",
    "C_InitPIN",
    "C_OpenSession",
    "C_CloseSession",
    "C_GetSessionInfo",
    "C_Login",
    "C_Logout",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_GetAttributeValue",
    "C_SetAttributeValue",
    "C_CreateObject",
    "C_CopyObject",
    "C_DestroyObject",
    "C_GenerateKey",
    "C_GenerateKeyPair",
    "C_WrapKey",
    "C_UnwrapKey",
    "C_EncryptInit",
    "C_Encrypt",
    "C_DecryptInit",
    "C_Decrypt",
    "C_SignInit",
    "C_Sign",
    "C_GenerateRandom",
];

/// The codes of a row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Codes {
    /// These.
    These(&'static [CK_RV]),
    /// A vendor's own, from `CKR_VENDOR_DEFINED` up.
    Vendors,
    /// All that no other row of the function has and whose general class is
    /// one of these.
    Rest(&'static [FaultClass]),
}

/// A row of some functions.
#[derive(Clone, Copy, Debug)]
pub(super) struct FunctionRow {
    pub(super) functions: &'static [&'static str],
    pub(super) codes: Codes,
    pub(super) class: FaultClass,
    pub(super) reason: &'static str,
    pub(super) advice: Option<&'static str>,
    /// What is done, where it is not what is done about the class elsewhere.
    pub(super) action: Option<&'static str>,
}

const fn row(
    functions: &'static [&'static str],
    codes: Codes,
    class: FaultClass,
    reason: &'static str,
) -> FunctionRow {
    FunctionRow {
        functions,
        codes,
        class,
        reason,
        advice: None,
        action: None,
    }
}

impl FunctionRow {
    const fn advise(self, advice: &'static str) -> Self {
        Self {
            advice: Some(advice),
            ..self
        }
    }

    const fn acting(self, action: &'static str) -> Self {
        Self {
            action: Some(action),
            ..self
        }
    }
}

use Codes::{Rest, These, Vendors};

const OPENING: &[&str] = &[
    "C_Initialize",
    "C_GetInfo",
    "C_GetSlotList",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_GetMechanismInfo",
    "C_OpenSession",
    "C_GetSessionInfo",
];

const SEARCH: &[&str] = &[
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_GetAttributeValue",
];

/// The functions that an EEDK goes into.
pub const OPENS: &[&str] = &["C_UnwrapKey", "C_DecryptInit", "C_Decrypt"];

/// The classes of a code that says nothing against module or token.
const MILD: &[FaultClass] = &[Ambiguous, Request, NewSession, Login, Find];

const TEMPLATE: &[CK_RV] = &[
    ck::CKR_ATTRIBUTE_READ_ONLY,
    ck::CKR_ATTRIBUTE_SENSITIVE,
    ck::CKR_ATTRIBUTE_TYPE_INVALID,
    ck::CKR_ATTRIBUTE_VALUE_INVALID,
    ck::CKR_TEMPLATE_INCOMPLETE,
    ck::CKR_TEMPLATE_INCONSISTENT,
];

/// The rows, in the order in which a bridge calls the functions.
pub(super) const ROWS: &[FunctionRow] = &[
    row(
        OPENING,
        Rest(MILD),
        Restart,
        "Nothing of a request is in play here: the module itself is not well, and only a fresh one may be.",
    ),
    row(
        &["C_Initialize"],
        These(&[ck::CKR_ARGUMENTS_BAD]),
        Operator,
        "The module does not take its pReserved (SoftHSM 2.6.1 takes none, measured), and no repetition changes that.",
    )
    .acting("ends the bridge and starts another, after pauses of 10 s at most, until an operator has mended it; no PIN is sent meanwhile")
    .advise("look at module.reserved of the profile"),
    row(
        &["C_Initialize"],
        These(&[ck::CKR_GENERAL_ERROR, ck::CKR_FUNCTION_FAILED]),
        Restart,
        "The module did not find its configuration or its daemon (openCryptoki 3.27 without pkcsslotd: CKR_FUNCTION_FAILED, measured); it is loaded again, with growing pauses.",
    )
    .advise("look at module.environment of the profile and the vendor's configuration; is the vendor's daemon running?"),
    row(
        &["C_GetSessionInfo"],
        These(&[ck::CKR_SESSION_HANDLE_INVALID, ck::CKR_SESSION_CLOSED]),
        NewSession,
        "It was asked for just this: whether the session is alive.",
    ),
    row(
        &["C_GetMechanismInfo"],
        These(&[ck::CKR_MECHANISM_INVALID]),
        Harmless,
        "It was asked for just this: whether the token has the mechanism.",
    ),
    row(
        &["C_InitToken", "C_InitPIN"],
        Rest(&[
            Ambiguous, Request, NewSession, Login, Find, Full, Restart, Operator,
        ]),
        Operator,
        "Only ekm slot init calls this, a person is waiting for the answer, and what erases a token is never repeated.",
    )
    .acting("tells who runs ekm slot init")
    .advise("look at the token with ekm slot list before trying again"),
    row(
        &["C_InitToken"],
        These(&[ck::CKR_SESSION_EXISTS]),
        Operator,
        "Another program has a session with the token, so it cannot be initialised.",
    )
    .acting("tells who runs ekm slot init")
    .advise("stop ekm serve and other programs that use the token"),
    // The class says whether the PIN was judged: Operator yes, Ambiguous
    // unknown, any other no.
    row(
        &["C_Login"],
        These(&[ck::CKR_USER_ALREADY_LOGGED_IN]),
        Harmless,
        "Another thread of this bridge was faster, and the login is for all of them.",
    ),
    row(
        &["C_Login"],
        These(&[
            ck::CKR_SESSION_HANDLE_INVALID,
            ck::CKR_CRYPTOKI_NOT_INITIALIZED,
        ]),
        Restart,
        "The PIN was not judged: the session was gone before the call, and a bridge that is opening its token begins again.",
    ),
    row(
        &["C_Login"],
        These(&[
            ck::CKR_USER_ANOTHER_ALREADY_LOGGED_IN,
            ck::CKR_USER_TOO_MANY_TYPES,
            ck::CKR_SESSION_READ_ONLY_EXISTS,
        ]),
        Restart,
        "The PIN was not judged: somebody else is logged in through this module, and a new process has a login of its own.",
    )
    .advise("log out the security officer, or whoever else is logged in at the token"),
    row(
        &["C_Login"],
        These(&[ck::CKR_ARGUMENTS_BAD, ck::CKR_FUNCTION_NOT_SUPPORTED]),
        Operator,
        "The token takes no PIN in this form, which only a change of PIN or profile mends.",
    )
    .advise("look at the form that the vendor wants a PIN in (AWS CloudHSM: user:password), and at [login] of the profile"),
    row(
        &["C_Login"],
        Vendors,
        Operator,
        "It may well be the vendor's word for a wrong PIN, and a PIN counter is not for trying.",
    )
    .advise("look the code up in the vendor's manual; [[faults]] of the profile can say what it means"),
    row(
        &["C_Login"],
        Rest(&[Ambiguous, Request, NewSession, Login, Find, Full, Restart]),
        Ambiguous,
        "The answer does not tell whether the PIN was judged, so it counts as one whose answer was not seen.",
    )
    .acting("starts the bridge anew; the PIN is sent again only if its ledger allows that")
    .advise("ekm token status says whether the PIN is held back, and what to do then"),
    row(
        &["C_Logout"],
        These(&[ck::CKR_USER_NOT_LOGGED_IN]),
        Harmless,
        "That nobody is logged in is what was wanted.",
    ),
    row(
        &["C_CloseSession", "C_Finalize"],
        Rest(&[
            Ambiguous, Request, NewSession, Login, Find, Full, Restart, Operator,
        ]),
        Harmless,
        "What was closed is not used again, whatever the module says of it.",
    ),
    row(
        SEARCH,
        Rest(&[Ambiguous, Request]),
        Restart,
        "Keys are looked for by class, type and CKA_TOKEN only, and nothing of a request is in play: the module itself is not well.",
    ),
    row(
        &["C_GetAttributeValue"],
        These(&[
            ck::CKR_ATTRIBUTE_TYPE_INVALID,
            ck::CKR_ATTRIBUTE_SENSITIVE,
            ck::CKR_BUFFER_TOO_SMALL,
        ]),
        Harmless,
        "The token does not have the attribute or does not tell it: it counts as not known, and a KEK is refused where it must be.",
    ),
    row(
        OPENS,
        These(TEMPLATE),
        Ambiguous,
        "The profile may not fit the token, or the EEDK may hold something else than a key of 32 bytes; a fresh EEDK under the same KEK tells which.",
    )
    .advise("if every cartridge fails: look at data_key.value_len, then data_key.extractable and data_key.sensitive of the profile"),
    row(
        OPENS,
        These(&[
            ck::CKR_MECHANISM_INVALID,
            ck::CKR_MECHANISM_PARAM_INVALID,
            ck::CKR_FUNCTION_NOT_SUPPORTED,
        ]),
        Ambiguous,
        "An EEDK says itself how it was wrapped, perhaps by a token that can do more than this one; a fresh EEDK of its kind tells.",
    )
    .advise("if every cartridge fails: look at eedk.hash and eedk.labelled of the profile; a token that cannot unwrap needs drive.forms = [] and custody host"),
    row(
        OPENS,
        These(&[ck::CKR_KEY_TYPE_INCONSISTENT]),
        Find,
        "A KEK was an RSA key with the right flags when it was read, so something has changed (NSS 3.87 says it of CKA_DECRYPT false, measured).",
    ),
    row(
        OPENS,
        These(&[ck::CKR_BUFFER_TOO_SMALL, ck::CKR_ACTION_PROHIBITED]),
        Ambiguous,
        "What is in the EEDK may be to blame, or the KEK's policy; a fresh EEDK under the same KEK tells which.",
    ),
    row(
        &["C_SetAttributeValue", "C_EncryptInit"],
        These(&[ck::CKR_OBJECT_HANDLE_INVALID, ck::CKR_KEY_HANDLE_INVALID]),
        NewSession,
        "The data key was on this session only, and has gone with it or with the login.",
    ),
    row(
        &["C_SetAttributeValue"],
        These(TEMPLATE),
        Request,
        "The token does not let an unwrapped key be made sensitive afterwards.",
    )
    .advise("data_key.sensitive = \"send\" in the profile"),
    row(
        &["C_EncryptInit"],
        These(&[ck::CKR_KEY_FUNCTION_NOT_PERMITTED]),
        Request,
        "The token did not let the data key have CKA_ENCRYPT, so its EEDK cannot be proved.",
    ),
    row(
        &["C_SignInit", "C_Sign"],
        These(&[
            ck::CKR_KEY_FUNCTION_NOT_PERMITTED,
            ck::CKR_KEY_SIZE_RANGE,
            ck::CKR_DATA_LEN_RANGE,
        ]),
        Request,
        "Only a request for a certificate and the seal of a partner's KEK are signed, and the token does not let this key.",
    )
    .acting("tells who wanted the request or the seal; no cartridge depends on it")
    .advise("ekm kek show LABEL shows CKA_SIGN; a KEK has it only if it was made with ekm kek generate --sign"),
    row(
        &["C_WrapKey"],
        These(&[ck::CKR_KEY_HANDLE_INVALID, ck::CKR_OBJECT_HANDLE_INVALID]),
        NewSession,
        "The data key was on this session only, and has gone with it or with the login.",
    ),
    row(
        &["C_WrapKey", "C_CreateObject"],
        These(&[ck::CKR_KEY_SIZE_RANGE]),
        Request,
        "The token does not take a public key of this size: the drive's, or that of a partner's KEK.",
    )
    .advise("ekm drive show SERIAL shows the drive's key"),
    row(
        &["C_CreateObject"],
        These(TEMPLATE),
        Request,
        "The token does not take the drive's public key as an object of a session.",
    )
    .advise("let the drive use custody host on this token, or another token"),
    row(
        &["C_DestroyObject"],
        Rest(&[Ambiguous, Request, Find]),
        NewSession,
        "Closing the session destroys what lives on it, whatever the token says of the object.",
    ),
    row(
        &["C_GenerateKey"],
        These(&[ck::CKR_KEY_SIZE_RANGE]),
        Request,
        "The token makes no AES keys of 32 bytes.",
    ),
    row(
        &["C_GenerateKeyPair"],
        These(TEMPLATE),
        Request,
        "The token does not take a KEK's template.",
    )
    .advise("look at kek.unwrap_template, then kek.frozen of the profile"),
    row(
        &["C_GenerateKeyPair"],
        These(&[
            ck::CKR_DEVICE_ERROR,
            ck::CKR_GENERAL_ERROR,
            ck::CKR_FUNCTION_FAILED,
        ]),
        Ambiguous,
        "p11-kit 0.24.1 says it of CKA_UNWRAP_TEMPLATE (measured), others of a token that fails; a key pair may have been made all the same, so it is not repeated.",
    )
    .acting("opens an EEDK of its own: if that opens, who wanted the key is told; if not, the bridge is started anew")
    .advise("ekm kek list shows whether there is a key now; look at kek.unwrap_template of the profile"),
    row(
        &["C_GenerateKeyPair"],
        Rest(&[NewSession, Login, Find]),
        Request,
        "A key pair may have been made all the same, so it is not repeated.",
    )
    .acting("tells who wanted the key; the next request mends the session or the login")
    .advise("ekm kek list shows whether there is a key now; if not, ask for it again"),
    row(
        &["C_GenerateKeyPair"],
        These(&[ck::CKR_KEY_SIZE_RANGE]),
        Request,
        "The token makes no RSA keys of this size.",
    )
    .advise("ekm kek generate --bits with a size that the token has"),
    row(
        &["C_GenerateKeyPair"],
        These(&[ck::CKR_EXCEEDED_MAX_ITERATIONS]),
        Request,
        "The token found no primes this time; whoever wanted the key may ask again.",
    ),
    row(
        &["C_GenerateKeyPair"],
        These(&[ck::CKR_DEVICE_MEMORY, ck::CKR_TOKEN_RESOURCE_EXCEEDED]),
        Operator,
        "The token has no room for another key pair, which stays for good.",
    )
    .advise("delete what is no longer needed with the vendor's tool; never a KEK that a cartridge still needs"),
];
