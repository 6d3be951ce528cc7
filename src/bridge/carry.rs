//! How an AES-256 key gets into a token, and a private key under it: what an import and a
//! ceremony have in common.
//!
//! ```text
//! token: throw-away RSA pair ---- public key ----> bridge
//! token: AES-256 key <-- C_UnwrapKey, RSA-OAEP --- bridge: AES-256 key
//! token: private key <-- C_UnwrapKey, AES -------> bridge: PKCS#8, wrapped under it
//! ```
//!
//! So nothing between the two, a network or a vendor's daemon, sees a key in clear. The pair is
//! each user's own: an import takes one as a KEK is made, a ceremony one that may be wrapped out,
//! to see by it whether the token wraps private keys.

use aws_lc_rs::cipher::{
    AES_256 as AES_256_CBC, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey,
    PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded as _};
use cryptoki_sys as ck;
use secrecy::SecretSlice;
use zeroize::Zeroizing;

use super::host;
use super::pkcs11::{
    Attr, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, CallError, Mechanism,
};
use super::profile::{Send as SendAttr, Sensitive};
use super::token::{Token, wrapping};

/// PKCS#11 v3.0, 6.13.3; the bindings are of v2.40 in this place.
const CKM_AES_KEY_WRAP_KWP: CK_MECHANISM_TYPE = 0x0000_210B;

/// The mechanisms that wrap and unwrap a private key, the best first: authenticated before not,
/// and the one that means the same everywhere before the one that means three things.
/// `CKM_AES_KEY_WRAP_PAD` is RFC 5649 on some tokens (SoftHSM, nShield) and something else on
/// others; there what was wrapped in software fails, and the next is tried.
pub(super) const WAYS: [Way; 3] = [
    Way {
        name: "CKM_AES_KEY_WRAP_KWP",
        mechanism: CKM_AES_KEY_WRAP_KWP,
        iv: false,
    },
    Way {
        name: "CKM_AES_KEY_WRAP_PAD",
        mechanism: ck::CKM_AES_KEY_WRAP_PAD,
        iv: false,
    },
    Way {
        name: "CKM_AES_CBC_PAD",
        mechanism: ck::CKM_AES_CBC_PAD,
        iv: true,
    },
];

/// A mechanism that wraps a private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) mechanism: CK_MECHANISM_TYPE,
    iv: bool,
}

impl Way {
    /// Whether it has an initialisation vector, and so no authentication.
    pub(super) const fn has_iv(self) -> bool {
        self.iv
    }

    /// With a new initialisation vector where it has one.
    pub(super) fn fresh(self) -> Option<(Mechanism, Vec<u8>)> {
        if !self.iv {
            return Some((Mechanism::Plain(self.mechanism), Vec::new()));
        }
        let mut iv = [0; 16];
        aws_lc_rs::rand::fill(&mut iv).ok()?;
        self.with(&iv).map(|mechanism| (mechanism, iv.to_vec()))
    }

    /// With that initialisation vector.
    pub(super) fn with(self, iv: &[u8]) -> Option<Mechanism> {
        match (self.iv, <[u8; 16]>::try_from(iv)) {
            (false, _) if iv.is_empty() => Some(Mechanism::Plain(self.mechanism)),
            (true, Ok(iv)) => Some(Mechanism::Iv {
                mechanism: self.mechanism,
                iv,
            }),
            _ => None,
        }
    }

    /// `plain` under the key in software, as a token unwraps it: RFC 5649, or CBC with PKCS#7
    /// padding; none where aws-lc-rs does not.
    pub(super) fn wrap(self, key: &[u8], plain: &[u8]) -> Option<(Mechanism, Vec<u8>)> {
        let (mechanism, iv) = self.fresh()?;
        if self.iv {
            // One block more, so that the padding does not move it and leave a copy behind.
            let mut text = Zeroizing::new(Vec::with_capacity(plain.len() + 16));
            text.extend_from_slice(plain);
            let iv = FixedLength::from(<[u8; 16]>::try_from(iv).ok()?);
            UnboundCipherKey::new(&AES_256_CBC, key)
                .and_then(PaddedBlockEncryptingKey::cbc_pkcs7)
                .and_then(|cbc| cbc.less_safe_encrypt(&mut *text, EncryptionContext::Iv128(iv)))
                .ok()?;
            return Some((mechanism, text.to_vec()));
        }
        // RFC 5649: eight bytes more, after padding to eight.
        let mut wrapped = vec![0; plain.len() + 16];
        let length = AesKek::new(&AES_256, key)
            .and_then(|kek| {
                kek.wrap_with_padding(plain, &mut wrapped)
                    .map(|out| out.len())
            })
            .ok()?;
        wrapped.truncate(length);
        Some((mechanism, wrapped))
    }

    /// What a token wrapped, opened in software; none where it is wrapped otherwise.
    pub(super) fn unwrap(
        self,
        key: &[u8],
        iv: &[u8],
        wrapped: &[u8],
    ) -> Option<Zeroizing<Vec<u8>>> {
        if self.iv {
            let mut opened = Zeroizing::new(wrapped.to_vec());
            let cipher = UnboundCipherKey::new(&AES_256_CBC, key).ok()?;
            let iv = FixedLength::from(<[u8; 16]>::try_from(iv).ok()?);
            let length = PaddedBlockDecryptingKey::cbc_pkcs7(cipher)
                .ok()?
                .decrypt(&mut opened, DecryptionContext::Iv128(iv))
                .ok()?
                .len();
            opened.truncate(length);
            return Some(opened);
        }
        let mut opened = Zeroizing::new(vec![0; wrapped.len()]);
        let length = AesKek::new(&AES_256, key)
            .ok()?
            .unwrap_with_padding(wrapped, &mut opened)
            .ok()?
            .len();
        opened.truncate(length);
        Some(opened)
    }
}

/// A throw-away RSA pair, as the AES key needs it: the private half in the token, the public
/// one here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Under<'a> {
    pub(super) private: CK_OBJECT_HANDLE,
    pub(super) spki: &'a [u8],
}

/// Unwraps the AES key into the session under the pair, so that it is in clear in no call.
/// `usage` is its template, but for what the profile says of secret keys.
pub(super) fn bring(
    token: &Token,
    session: CK_SESSION_HANDLE,
    pair: Under<'_>,
    key: &SecretSlice<u8>,
    mut usage: Vec<Attr>,
) -> Call<CK_OBJECT_HANDLE> {
    let profile = &token.profile;
    let algorithm = profile.wrap_algorithm().unlabelled();
    let wrapped = host::wrap(pair.spki, algorithm, &[], key)
        .map_err(|_| CallError::new("C_UnwrapKey", ck::CKR_FUNCTION_FAILED, &[]))?;
    if profile.data_key.sensitive == Sensitive::Send {
        usage.push(Attr::flag(ck::CKA_SENSITIVE, true));
    }
    if profile.data_key.value_len == SendAttr::Send {
        usage.push(Attr::ulong(ck::CKA_VALUE_LEN, 32));
    }
    let mechanism = wrapping(algorithm, &[]);
    let module = &token.module;
    let handle = module.unwrap(session, &mechanism, pair.private, &wrapped, &usage)?;
    if profile.data_key.sensitive == Sensitive::SetAfter {
        // It is this session's and goes with it; where this fails it is only less well guarded.
        let _ = module.set_attributes(session, handle, &[Attr::flag(ck::CKA_SENSITIVE, true)]);
    }
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_in_software_opens_there_again_and_under_no_other_key() {
        let plain: Vec<u8> = (0..=255).cycle().take(1217).collect();
        for way in WAYS {
            let (mechanism, wrapped) = way.wrap(&[7; 32], &plain).unwrap();
            let iv = match mechanism {
                Mechanism::Iv { iv, .. } => iv.to_vec(),
                _ => Vec::new(),
            };
            let opened = way.unwrap(&[7; 32], &iv, &wrapped);
            assert_eq!(*opened.unwrap(), plain, "{}", way.name);
            let other = way.unwrap(&[8; 32], &iv, &wrapped);
            assert!(other.is_none_or(|opened| *opened != plain), "{}", way.name);
            assert!(way.with(&[1, 2]).is_none(), "{}", way.name);
        }
    }
}
