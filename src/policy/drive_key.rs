//! Which public key of a drive is to be believed.
//!
//! Page 0031h of a T10 drive is not signed, so an operator pins its key. A
//! 3592-like drive makes a key per session and signs it, with the server's
//! challenge, by a key that the drive CA certified for its serial.

use time::OffsetDateTime;

use super::{DriveClaim, Refusal};
use crate::drive::session_key_message;
use crate::store::DriveKey;
use crate::tls::{SignatureScheme, verify_drive_certificate, verify_signature};

/// The key that a drive shows with its request.
#[derive(Clone, Debug, Default)]
pub struct KeyClaim {
    /// The wrapping key that it shows, `SubjectPublicKeyInfo` DER.
    pub wrapping: Option<Vec<u8>>,
    /// The session key that it signed.
    pub session: Option<SessionKeyClaim>,
}

/// A session key, signed by the drive.
#[derive(Clone, Debug)]
pub struct SessionKeyClaim {
    /// The session key, `SubjectPublicKeyInfo` DER.
    pub spki: Vec<u8>,
    /// The signature over [`session_key_message`].
    pub signature: Vec<u8>,
    /// The drive's certificate, DER.
    pub certificate: Vec<u8>,
    /// The challenge that this server gave and has just taken back.
    pub challenge: Vec<u8>,
}

/// The key that a data key may be wrapped for.
///
/// # Errors
/// The claim does not fit what the table trusts.
pub(super) fn trusted(
    key: &DriveKey,
    claim: &DriveClaim,
    drive_ca: Option<&[u8]>,
) -> Result<Vec<u8>, Refusal> {
    let refuse = |reason: &str| Refusal::DriveKey {
        serial: claim.serial.clone(),
        reason: reason.to_owned(),
    };
    match key {
        DriveKey::Pinned(pinned) => {
            let shown = match (&claim.key.wrapping, &claim.key.session) {
                (_, Some(session)) => Some(&session.spki),
                (shown, None) => shown.as_ref(),
            };
            match shown {
                Some(shown) if shown != pinned => Err(refuse(
                    "the public key that it shows is not the one pinned in the drive table; if the drive was replaced or reset, compare the fingerprint and pin the new key with: ekm drive mod SERIAL --key PEM",
                )),
                Some(_) | None => Ok(pinned.clone()),
            }
        }
        DriveKey::Certified => certified(claim, drive_ca),
        DriveKey::None => Err(refuse("it has no key in the drive table")),
    }
}

/// The session key of a certified drive.
///
/// # Errors
/// Certificate, serial or signature are wrong.
pub fn certified(claim: &DriveClaim, drive_ca: Option<&[u8]>) -> Result<Vec<u8>, Refusal> {
    let refuse = |reason: String| Refusal::DriveKey {
        serial: claim.serial.clone(),
        reason,
    };
    let Some(session) = &claim.key.session else {
        return Err(refuse(
            "it is enrolled by its certificate, and the request has no session key signed with it"
                .to_owned(),
        ));
    };
    let Some(roots) = drive_ca else {
        return Err(refuse(
            "the server has no drive CA (server.drive_ca in the configuration)".to_owned(),
        ));
    };
    let drive =
        verify_drive_certificate(&session.certificate, &[], roots, OffsetDateTime::now_utc())
            .map_err(|error| refuse(error.to_string()))?;
    if drive.serial != claim.serial.as_str() {
        return Err(refuse(format!(
            "its certificate is for drive {}",
            drive.serial
        )));
    }
    let message = session_key_message(&session.challenge, &claim.serial, &session.spki)
        .map_err(|error| refuse(error.to_string()))?;
    SignatureScheme::of_key(&drive.spki)
        .and_then(|scheme| verify_signature(&drive.spki, scheme, &message, &session.signature))
        .map_err(|error| refuse(format!("its session key: {error}")))?;
    Ok(session.spki.clone())
}
