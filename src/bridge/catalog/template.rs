//! Templates of KEKs: what the token is asked for, and what it may refuse.

use cryptoki_sys as ck;

use crate::bridge::message::Custody;
use crate::bridge::pkcs11::Attr;
use crate::bridge::profile::{HsmProfile, Send, UnwrapTemplate};
use crate::key::KeyLabel;

/// How a token refuses a template: before it makes anything.
pub(in crate::bridge) const REFUSES_TEMPLATE: [ck::CK_RV; 4] = [
    ck::CKR_ATTRIBUTE_TYPE_INVALID,
    ck::CKR_ATTRIBUTE_VALUE_INVALID,
    ck::CKR_ATTRIBUTE_READ_ONLY,
    ck::CKR_TEMPLATE_INCONSISTENT,
];

/// Template of a new KEK's public half.
pub(in crate::bridge) fn public_template(
    label: &KeyLabel,
    id: &[u8],
    bits: u32,
    profile: &HsmProfile,
) -> Vec<Attr> {
    let mut template = vec![
        Attr::flag(ck::CKA_TOKEN, true),
        Attr::flag(ck::CKA_PRIVATE, false),
        Attr::bytes(ck::CKA_LABEL, label.as_str()),
        Attr::bytes(ck::CKA_ID, id),
        Attr::ulong(ck::CKA_MODULUS_BITS, ck::CK_ULONG::from(bits)),
        Attr::bytes(ck::CKA_PUBLIC_EXPONENT, [1, 0, 1]),
    ];
    uses(
        &mut template,
        profile,
        &[
            (ck::CKA_WRAP, true),
            (ck::CKA_ENCRYPT, false),
            (ck::CKA_VERIFY, false),
        ],
    );
    template
}

/// Template of a new KEK's private half.
pub(in crate::bridge) fn private_template(
    label: &KeyLabel,
    id: &[u8],
    custody: Custody,
    sign: bool,
    profile: &HsmProfile,
) -> Vec<Attr> {
    let mut template = vec![
        Attr::flag(ck::CKA_TOKEN, true),
        Attr::flag(ck::CKA_PRIVATE, true),
        Attr::bytes(ck::CKA_LABEL, label.as_str()),
        Attr::bytes(ck::CKA_ID, id),
        Attr::flag(ck::CKA_SENSITIVE, true),
        Attr::flag(ck::CKA_EXTRACTABLE, false),
    ];
    uses(
        &mut template,
        profile,
        &[
            (ck::CKA_UNWRAP, custody == Custody::Token),
            (ck::CKA_DECRYPT, custody == Custody::Host),
            (ck::CKA_SIGN, sign),
        ],
    );
    if profile.kek.frozen == Send::Send {
        template.push(Attr::flag(ck::CKA_MODIFIABLE, false));
    }
    if profile.kek.uncopyable == Send::Send {
        template.push(Attr::flag(ck::CKA_COPYABLE, false));
    }
    demand(&mut template, custody, profile);
    template
}

/// Adds `CKA_UNWRAP_TEMPLATE` to the template of a KEK's private half, made
/// here or brought in, where the profile asks for it: a data key that opens
/// under it is `CKA_SENSITIVE`, and `CKA_WRAP_WITH_TRUSTED` where data keys are.
pub(super) fn demand(template: &mut Vec<Attr>, custody: Custody, profile: &HsmProfile) {
    if profile.kek.unwrap_template == UnwrapTemplate::Never || custody != Custody::Token {
        return;
    }
    let mut demanded = vec![Attr::flag(ck::CKA_SENSITIVE, true)];
    if profile.data_key.wrap_with_trusted {
        demanded.push(Attr::flag(ck::CKA_WRAP_WITH_TRUSTED, true));
    }
    template.push(Attr::template(ck::CKA_UNWRAP_TEMPLATE, demanded));
}

/// The same template without it, to try again where the token refused and the
/// profile only says to try; none where there is nothing to leave out.
pub(in crate::bridge) fn undemanding(template: &[Attr], profile: &HsmProfile) -> Option<Vec<Attr>> {
    let demands = |attr: &Attr| attr.is(ck::CKA_UNWRAP_TEMPLATE);
    (profile.kek.unwrap_template == UnwrapTemplate::Try && template.iter().any(demands)).then(
        || {
            template
                .iter()
                .filter(|attr| !attr.is(ck::CKA_UNWRAP_TEMPLATE))
                .cloned()
                .collect()
        },
    )
}

/// What a key is for and, unless the token refuses to hear it, what it is not for.
pub(in crate::bridge) fn uses(
    template: &mut Vec<Attr>,
    profile: &HsmProfile,
    flags: &[(ck::CK_ATTRIBUTE_TYPE, bool)],
) {
    let wanted = flags
        .iter()
        .filter(|(_, on)| *on || profile.kek.denied_uses == Send::Send);
    template.extend(wanted.map(|(kind, on)| Attr::flag(*kind, *on)));
}
