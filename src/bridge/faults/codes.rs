//! What each `CKR_` code of PKCS#11 v3.2 means, whichever function answers
//! with it.
//!
//! A code that belongs to functions which `ekm` never calls is out of place
//! wherever it comes: it tells nothing, so it is [`FaultClass::Ambiguous`] and
//! the canary decides. "Measured" was seen with the version named.

use cryptoki_sys as ck;

use super::{FaultClass, Row};

macro_rules! rows {
    ($($code:ident => $class:ident, $reason:literal $(, do $advice:literal)?;)*) => {
        &[$(Row {
            code: ck::$code,
            name: stringify!($code),
            class: FaultClass::$class,
            reason: $reason,
            advice: rows!(@ $($advice)?),
        }),*]
    };
    (@) => { None };
    (@ $advice:literal) => { Some($advice) };
}

/// One row for each code, in the order of the standard's header.
pub(super) const CODES: &[Row] = rows! {
    CKR_CANCEL => Ambiguous,
        "Only an application's own callback cancels, and ekm has none, so the module means something else by it.";
    CKR_HOST_MEMORY => Restart,
        "The process of the module has no memory left, and a new process begins with none in use.",
        do "look at the memory limit of the service and at the machine's; a library that comes back to this leaks";
    CKR_SLOT_ID_INVALID => Restart,
        "The slot has another number now, or its token is gone: slots are looked up anew when the bridge starts (p11-kit 0.24.1 after a restart of its server, measured).",
        do "ekm slot list shows the slots that there are";
    CKR_GENERAL_ERROR => Ambiguous,
        "SoftHSM 2.6.1 says it of a tampered EEDK and kryoptic 1.5.4 of a login that is gone (measured), others of a token that is dead.";
    CKR_FUNCTION_FAILED => Ambiguous,
        "openCryptoki 3.8.1 says it of a tampered EEDK (measured), others of a token that fails.";
    CKR_ARGUMENTS_BAD => Ambiguous,
        "SoftHSM 2.6.1 says it of an OAEP hash or label that it does not have (measured): rather the profile or the EEDK than the token.",
        do "look at eedk.hash, eedk.labelled and drive.forms of the profile";
    CKR_NO_EVENT => Ambiguous,
        "Out of place: it belongs to C_WaitForSlotEvent.";
    CKR_NEED_TO_CREATE_THREADS => Operator,
        "The module wants threads of its own and believes that it may not have them, which ekm never told it: no repetition changes that.",
        do "look at the module's own configuration, and ask its vendor";
    CKR_CANT_LOCK => Operator,
        "The module cannot lock with the operating system's means, so it cannot be used by several threads: no repetition changes that.",
        do "take another version of the vendor's library";
    CKR_ATTRIBUTE_READ_ONLY => Request,
        "The template sets an attribute that this token sets itself.",
        do "look at [data_key] and [kek] of the profile";
    CKR_ATTRIBUTE_SENSITIVE => Request,
        "The token does not give the value of a sensitive attribute, and never will.";
    CKR_ATTRIBUTE_TYPE_INVALID => Request,
        "The template has an attribute that this token does not know, or lacks one that it wants.",
        do "look at [data_key] and [kek] of the profile";
    CKR_ATTRIBUTE_VALUE_INVALID => Request,
        "The template has a value that this token does not take.",
        do "look at [data_key] and [kek] of the profile";
    CKR_ACTION_PROHIBITED => Request,
        "The token's policy, or CKA_MODIFIABLE, CKA_COPYABLE or CKA_DESTROYABLE of the object, forbids it.";
    CKR_DATA_INVALID => Ambiguous,
        "What was given does not decode: a bad EEDK, or a token that has gone wrong.";
    CKR_DATA_LEN_RANGE => Ambiguous,
        "NSS 3.87 says it of a truncated EEDK (measured).";
    CKR_DEVICE_ERROR => Ambiguous,
        "kryoptic 1.5.4 says it of a tampered EEDK, and p11-kit 0.24.1 of every call once its connection is lost (both measured).";
    CKR_DEVICE_MEMORY => Full,
        "The token has no room for another object now; closing the session gives back what it holds, and others go on.",
        do "fewer workers (session.workers) hold fewer objects; look for other programs that keep objects on the token";
    CKR_DEVICE_REMOVED => Restart,
        "The token was pulled during the call, and all its sessions and handles went with it.",
        do "put the token back; ekm finds it by its URI, in whatever slot";
    CKR_ENCRYPTED_DATA_INVALID => Ambiguous,
        "The standard's own word for a tampered EEDK under C_Decrypt, if the token is well.";
    CKR_ENCRYPTED_DATA_LEN_RANGE => Ambiguous,
        "openCryptoki 3.8.1 says it of a truncated EEDK (measured).";
    CKR_AEAD_DECRYPT_FAILED => Ambiguous,
        "Out of place: ekm uses no AEAD mechanism on a token.";
    CKR_FUNCTION_CANCELED => Ambiguous,
        "The call was broken off by something else than ekm, and does not tell whether it had an effect.";
    CKR_FUNCTION_NOT_PARALLEL => Ambiguous,
        "Out of place: it belongs to functions of PKCS#11 1.0.";
    CKR_FUNCTION_NOT_SUPPORTED => Request,
        "The module does not have the function (tpm2-pkcs11 1.9 neither wraps nor unwraps, measured): no repetition changes that.",
        do "drive.forms = [] in the profile, and KEKs and drives for custody host";
    CKR_KEY_HANDLE_INVALID => Find,
        "The key is gone, or the login by which its handle was found (openCryptoki 3.27 under C_Decrypt after a logout, measured).";
    CKR_KEY_SIZE_RANGE => Ambiguous,
        "kryoptic 1.5.4 and NSS 3.87 say it of an EEDK that holds 20 bytes where a data key has 32 (measured).";
    CKR_KEY_TYPE_INCONSISTENT => Request,
        "The mechanism does not go with keys of this type.";
    CKR_KEY_NOT_NEEDED => Ambiguous,
        "Out of place: it belongs to C_SetOperationState.";
    CKR_KEY_CHANGED => Ambiguous,
        "Out of place: it belongs to C_SetOperationState.";
    CKR_KEY_NEEDED => Ambiguous,
        "Out of place: it belongs to C_SetOperationState.";
    CKR_KEY_INDIGESTIBLE => Ambiguous,
        "Out of place: it belongs to C_DigestKey.";
    CKR_KEY_FUNCTION_NOT_PERMITTED => Find,
        "A key is used only for what its flags allowed when it was read, so they are others now.",
        do "ekm kek show LABEL shows CKA_UNWRAP and CKA_DECRYPT as they are";
    CKR_KEY_NOT_WRAPPABLE => Request,
        "The token does not wrap this kind of key by this kind of key, or only by one that is CKA_TRUSTED.",
        do "look at the vendor's policy for wrapping secret keys by RSA keys";
    CKR_KEY_UNEXTRACTABLE => Request,
        "The data key became CKA_EXTRACTABLE false (SoftHSM 2.6.1 and kryoptic 1.5.4 unless the unwrap template says otherwise, measured).",
        do "data_key.extractable = \"send\" in the profile";
    CKR_MECHANISM_INVALID => Request,
        "The token does not have the mechanism, or not for this function.",
        do "ekm slot list shows the mechanisms that there are";
    CKR_MECHANISM_PARAM_INVALID => Request,
        "The token has the mechanism, but not with this hash, MGF or label.",
        do "look at eedk.hash, eedk.labelled and drive.forms of the profile";
    CKR_OBJECT_HANDLE_INVALID => Find,
        "The object is gone, or the login by which its handle was found (SoftHSM 2.6.1 under C_Decrypt after a logout or when the KEK was deleted, measured).";
    CKR_OPERATION_ACTIVE => NewSession,
        "An operation was left open on the session, and nothing else ends it (tpm2-pkcs11 1.9 after every failed C_Decrypt, measured).";
    CKR_OPERATION_NOT_INITIALIZED => NewSession,
        "The session has forgotten the operation that was begun on it.";
    CKR_PIN_INCORRECT => Operator,
        "Every repetition brings the token nearer to locking.",
        do "put the right PIN into its source; it is not sent again before that has changed";
    CKR_PIN_INVALID => Operator,
        "The token does not take such a PIN at all, and the PIN's source is what an operator has to change.",
        do "put the right PIN into its source; some vendors want it as user:password";
    CKR_PIN_LEN_RANGE => Operator,
        "The token has no PIN of this length, so the source has the wrong one.",
        do "put the right PIN into its source; look for a line break or blank in it";
    CKR_PIN_EXPIRED => Operator,
        "The token wants a new PIN, and only a person may choose it.",
        do "set a new PIN with the vendor's tool, then put it into its source";
    CKR_PIN_LOCKED => Operator,
        "Too many wrong PINs: the token takes none any more.",
        do "have the token's security officer reset the user PIN; then look who sent the wrong ones";
    CKR_SESSION_CLOSED => NewSession,
        "The session ended under the call; nothing of an exchange outlives its session.";
    CKR_SESSION_COUNT => Full,
        "The token has as many sessions as it allows, perhaps those of a process that died a moment ago: it is well, and those who have a session go on.",
        do "session.workers of the profile, times processes, plus one each, must fit the token's limit; look for other programs with sessions";
    CKR_SESSION_HANDLE_INVALID => NewSession,
        "The session is gone: closed by the token, by C_CloseAllSessions or with the device.";
    CKR_SESSION_PARALLEL_NOT_SUPPORTED => Ambiguous,
        "Out of place: ekm always asks for a serial session.";
    CKR_SESSION_READ_ONLY => NewSession,
        "ekm opens read-write sessions only, so this is not the session that it opened.";
    CKR_SESSION_EXISTS => Ambiguous,
        "Out of place: it belongs to C_InitToken.";
    CKR_SESSION_READ_ONLY_EXISTS => Ambiguous,
        "Out of place: it belongs to C_Login of a security officer.";
    CKR_SESSION_READ_WRITE_SO_EXISTS => Ambiguous,
        "Out of place: it belongs to read-only sessions, and ekm opens none.";
    CKR_SIGNATURE_INVALID => Ambiguous,
        "Out of place: ekm verifies no signature on a token.";
    CKR_SIGNATURE_LEN_RANGE => Ambiguous,
        "Out of place: ekm verifies no signature on a token.";
    CKR_TEMPLATE_INCOMPLETE => Request,
        "The template lacks an attribute that this token wants.",
        do "look at [data_key] and [kek] of the profile";
    CKR_TEMPLATE_INCONSISTENT => Request,
        "The template says two things that this token does not take together.",
        do "look at [data_key] and [kek] of the profile";
    CKR_TOKEN_NOT_PRESENT => Restart,
        "The slot is empty: slots and tokens are looked up anew when the bridge starts.",
        do "put the token back, or bring the HSM's network up; ekm finds it by its URI";
    CKR_TOKEN_NOT_RECOGNIZED => Restart,
        "The module does not know what is in the slot, as after a device that was put in badly: it is looked up anew when the bridge starts.";
    CKR_TOKEN_WRITE_PROTECTED => Operator,
        "The token lets nothing be written, also no session object.",
        do "take the write protection off with the vendor's tool";
    CKR_UNWRAPPING_KEY_HANDLE_INVALID => Find,
        "The KEK is gone, or the login by which its handle was found (SoftHSM 2.6.1 and openCryptoki 3.27 after a logout, measured); the session's state tells which.";
    CKR_UNWRAPPING_KEY_SIZE_RANGE => Ambiguous,
        "The KEK's size was taken when the canary was made, so something has changed.";
    CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT => Find,
        "A KEK was an RSA key when it was read, so the handle is another object's now.";
    CKR_USER_ALREADY_LOGGED_IN => Ambiguous,
        "Out of place: it belongs to C_Login.";
    CKR_USER_NOT_LOGGED_IN => Login,
        "The login is gone, for all sessions of this process.";
    CKR_USER_PIN_NOT_INITIALIZED => Operator,
        "The token has no user PIN yet, and only its security officer can set one.",
        do "set the user PIN with the vendor's tool, or begin with ekm slot init";
    CKR_USER_TYPE_INVALID => Operator,
        "The token has no user of this kind.",
        do "look at the kind of user that the vendor wants for applications";
    CKR_USER_ANOTHER_ALREADY_LOGGED_IN => Restart,
        "Another user is logged in here, which no thread of this bridge did; a new process has a login of its own.",
        do "look for a tool of the vendor's that shares the login with other programs";
    CKR_USER_TOO_MANY_TYPES => Restart,
        "Another kind of user is logged in and the token allows one; a new process has a login of its own.",
        do "log out the security officer, or whoever else is logged in at the token";
    CKR_WRAPPED_KEY_INVALID => Ambiguous,
        "The standard's own word for a tampered EEDK, if the token is well (NSS 3.87, measured).";
    CKR_WRAPPED_KEY_LEN_RANGE => Ambiguous,
        "The standard's own word for a truncated EEDK, if the token is well.";
    CKR_WRAPPING_KEY_HANDLE_INVALID => Find,
        "The public key that wraps is gone, or the session that it was imported on.";
    CKR_WRAPPING_KEY_SIZE_RANGE => Request,
        "The token does not wrap by public keys of this size.";
    CKR_WRAPPING_KEY_TYPE_INCONSISTENT => Request,
        "The token does not wrap by public keys of this type with this mechanism.";
    CKR_RANDOM_SEED_NOT_SUPPORTED => Ambiguous,
        "Out of place: it belongs to C_SeedRandom.";
    CKR_RANDOM_NO_RNG => Operator,
        "The token has no random number generator, so no data key can be made on it.",
        do "let another token make data keys";
    CKR_DOMAIN_PARAMS_INVALID => Ambiguous,
        "Out of place: RSA and AES have no domain parameters.";
    CKR_CURVE_NOT_SUPPORTED => Ambiguous,
        "Out of place: ekm uses no elliptic curve on a token.";
    CKR_BUFFER_TOO_SMALL => Request,
        "The answer is longer than 1,024 bytes, and no EEDK or SEDK is.";
    CKR_SAVED_STATE_INVALID => Ambiguous,
        "Out of place: it belongs to C_SetOperationState.";
    CKR_INFORMATION_SENSITIVE => Ambiguous,
        "Out of place: it belongs to C_GetOperationState.";
    CKR_STATE_UNSAVEABLE => Ambiguous,
        "Out of place: it belongs to C_GetOperationState.";
    CKR_CRYPTOKI_NOT_INITIALIZED => Restart,
        "The module has lost its own state (openCryptoki 3.27 after a fork, measured); it is initialised once for each process.";
    CKR_CRYPTOKI_ALREADY_INITIALIZED => Restart,
        "Something else in this process has initialised the module; a new process begins without.";
    CKR_MUTEX_BAD => Restart,
        "The module's own locks are broken.";
    CKR_MUTEX_NOT_LOCKED => Restart,
        "The module's own locks are broken.";
    CKR_NEW_PIN_MODE => Operator,
        "The token wants a new PIN to be chosen, and only a person may.",
        do "finish the change of the PIN with the vendor's tool";
    CKR_NEXT_OTP => Operator,
        "The token wants the next one-time password, and only a person has it.",
        do "bring the one-time password token back into step with the vendor's tool";
    CKR_EXCEEDED_MAX_ITERATIONS => Ambiguous,
        "A search on the token gave up; only a key pair is searched for.";
    CKR_FIPS_SELF_TEST_FAILED => Restart,
        "The module refuses all work after a failed self-test, and tests itself again when it is loaded.",
        do "if it fails again, the HSM or its library is broken: call the vendor";
    CKR_LIBRARY_LOAD_FAILED => Operator,
        "The module needs another library and does not find it.",
        do "look at module.environment of the profile (LD_LIBRARY_PATH), and at the vendor's installation";
    CKR_PIN_TOO_WEAK => Operator,
        "The token's policy does not take the PIN.",
        do "choose another PIN";
    CKR_PUBLIC_KEY_INVALID => Request,
        "The token does not take this public key: the drive's, or that of a partner's KEK.",
        do "ekm drive show SERIAL shows the drive's key";
    CKR_FUNCTION_REJECTED => Ambiguous,
        "A person at the device, or its policy, said no; or the module means something else by it.";
    CKR_TOKEN_RESOURCE_EXCEEDED => Full,
        "Something that the token has only so much of is used up now; closing the session gives back what it holds, and others go on.",
        do "fewer workers (session.workers); look for other programs on the token";
    CKR_OPERATION_CANCEL_FAILED => NewSession,
        "An operation was left open on the session, and the token cannot end it.";
    CKR_KEY_EXHAUSTED => Operator,
        "The key has been used as often as it may be, or its time is over.",
        do "rekey the cartridges to another KEK; see the key's limits with the vendor's tool";
    CKR_PENDING => Ambiguous,
        "Out of place: ekm opens no asynchronous session.";
    CKR_SESSION_ASYNC_NOT_SUPPORTED => Ambiguous,
        "Out of place: ekm opens no asynchronous session.";
    CKR_SEED_RANDOM_REQUIRED => Operator,
        "The random number generator wants seed from outside, which ekm does not give it.",
        do "seed it with the vendor's tool";
    CKR_OPERATION_NOT_VALIDATED => Request,
        "The token does only what it is validated for, and this is not.",
        do "look at the validated (FIPS) mode of the token";
    CKR_TOKEN_NOT_INITIALIZED => Operator,
        "The token is blank: it was erased, or another is in its place (kryoptic 1.5.4 when its database file is gone, measured).",
        do "bring the right token, or restore it from its backup; never initialise one that may still have keys";
    CKR_PARAMETER_SET_NOT_SUPPORTED => Ambiguous,
        "Out of place: RSA and AES have no parameter sets.";
};
