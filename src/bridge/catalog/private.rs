//! The private half of a KEK: its attributes, and whether it may serve by them.

use cryptoki_sys as ck;

use crate::bridge::message::{Custody, KekAttributes, PrivateHalf, Provenance};
use crate::bridge::pkcs11::{CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, Module};
use crate::bridge::profile::{HsmProfile, UnwrapTemplate};

/// Modulus lengths of KEKs, bits: those that an EEDK has room for.
pub(in crate::bridge) const BITS: [u32; 3] = [2048, 3072, 4096];

/// The attributes of a private key that matter; its `CKA_UNWRAP_TEMPLATE` only
/// where that is asked for, since not every token can be asked.
pub(in crate::bridge) fn attributes(
    module: &Module,
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    asked: UnwrapTemplate,
) -> Call<KekAttributes> {
    let flag = |kind| module.flag(session, object, kind);
    let template = if asked == UnwrapTemplate::Never {
        None
    } else {
        module.nested_flags(session, object, ck::CKA_UNWRAP_TEMPLATE)?
    };
    let demands = |kind| {
        template
            .as_ref()
            .map(|template| template.contains(&(kind, true)))
    };
    Ok(KekAttributes {
        sensitive: flag(ck::CKA_SENSITIVE)?,
        extractable: flag(ck::CKA_EXTRACTABLE)?,
        always_sensitive: flag(ck::CKA_ALWAYS_SENSITIVE)?,
        never_extractable: flag(ck::CKA_NEVER_EXTRACTABLE)?,
        local: flag(ck::CKA_LOCAL)?,
        unwrap: flag(ck::CKA_UNWRAP)?,
        decrypt: flag(ck::CKA_DECRYPT)?,
        modifiable: flag(ck::CKA_MODIFIABLE)?,
        sign: flag(ck::CKA_SIGN)?,
        unwraps_sensitive: demands(ck::CKA_SENSITIVE),
        unwraps_trusted: demands(ck::CKA_WRAP_WITH_TRUSTED),
    })
}

/// Whether a private key may serve, and for what.
pub(in crate::bridge) fn judge(
    attributes: &KekAttributes,
    bits: u32,
    host_only: bool,
    profile: &HsmProfile,
) -> PrivateHalf {
    let refuse = |reason: &str| PrivateHalf::Refused {
        reason: reason.to_owned(),
        attributes: *attributes,
    };
    if !BITS.contains(&bits) {
        return refuse("its modulus is not 2048, 3072 or 4096 bits long");
    }
    if attributes.sensitive != Some(true) {
        return refuse("CKA_SENSITIVE is not true, so its value can be read from the token");
    }
    if attributes.extractable != Some(false) {
        return refuse("CKA_EXTRACTABLE is not false, so it can be wrapped out of the token");
    }
    let custody = match (attributes.unwrap, attributes.decrypt) {
        (Some(true), _) if !host_only => Custody::Token,
        (_, Some(true)) => Custody::Host,
        _ if host_only => {
            return refuse(
                "CKA_DECRYPT is not true, and this product opens EEDKs by C_Decrypt alone",
            );
        }
        _ => {
            return refuse("neither CKA_UNWRAP nor CKA_DECRYPT is true, so it cannot open an EEDK");
        }
    };
    if custody == Custody::Token && profile.kek.unwrap_template == UnwrapTemplate::Require {
        if attributes.unwraps_sensitive != Some(true) {
            return refuse(
                "CKA_UNWRAP_TEMPLATE does not show CKA_SENSITIVE true, which kek.unwrap_template = \"require\" of the profile asks for",
            );
        }
        if profile.data_key.wrap_with_trusted && attributes.unwraps_trusted != Some(true) {
            return refuse(
                "CKA_UNWRAP_TEMPLATE does not show CKA_WRAP_WITH_TRUSTED true, which kek.unwrap_template = \"require\" with data_key.wrap_with_trusted of the profile asks for",
            );
        }
    }
    PrivateHalf::Serves {
        custody,
        provenance: provenance(attributes),
        attributes: *attributes,
    }
}

/// How a private key came to the token.
pub(in crate::bridge) const fn provenance(attributes: &KekAttributes) -> Provenance {
    match (
        attributes.local,
        attributes.always_sensitive,
        attributes.never_extractable,
    ) {
        (Some(true), Some(true), Some(true)) => Provenance::Born,
        (Some(true), _, _) => Provenance::Copied,
        _ => Provenance::Imported,
    }
}
