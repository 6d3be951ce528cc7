//! The transport key on the token, and by which mechanism it wraps a private key.

use cryptoki_sys as ck;
use secrecy::SecretSlice;

use super::{Ceremony, Opened, Stepped, WrapFormat, template_refused};
use crate::bridge::carry::{self, Under, WAYS, Way};
use crate::bridge::doctor::pairs::PREFIX;
use crate::bridge::faults::{Fault, ckr_name};
use crate::bridge::host;
use crate::bridge::pkcs11::{Attr, CK_OBJECT_HANDLE, Call, CallError, Mechanism, PairHandles};
use crate::copies::TransportKey;

/// The transport key on the token.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) handle: CK_OBJECT_HANDLE,
    pub(super) trusted: bool,
    pub(super) way: Option<(Way, WrapFormat)>,
}

/// An RSA pair of the session, which may be wrapped out: nothing is under it for longer than this takes.
struct ThrowAway {
    handles: PairHandles,
    spki: Vec<u8>,
}

impl Ceremony {
    /// Brings the transport key in, in place of the last one.
    pub(super) fn open(&mut self, key: &TransportKey, wraps: bool) -> Result<Stepped, Fault> {
        if let Some(last) = self.transport.take() {
            self.drop_key(last.handle);
        }
        let pair = self.throw_away();
        let brought = self.bring(key, &pair, wraps);
        let outcome = brought.and_then(|(handle, how, trusted)| {
            let mut transport = Transport {
                handle,
                trusted,
                way: None,
            };
            let wraps_by = if wraps {
                let (way, format, unwraps) = match &pair {
                    Ok(pair) => self.way(&transport, pair, key)?,
                    Err(error) => return Err(self.failed(*error, "making a throw-away RSA pair to see whether the token can wrap a private key")),
                };
                transport.way = Some((way, format));
                Some((way.name.to_owned(), unwraps))
            } else {
                None
            };
            Ok((transport, how, wraps_by))
        });
        if let Ok(pair) = &pair {
            self.drop_key(pair.handles.private);
            self.drop_key(pair.handles.public);
        }
        host::scrub_stack();
        let (transport, brought, wraps_by) = outcome?;
        let opened = Opened {
            token: self.token.info.clone(),
            brought,
            trusted: transport.trusted,
            wraps_by,
        };
        self.transport = Some(transport);
        Ok(Stepped::Opened(Box::new(opened)))
    }

    fn throw_away(&self) -> Call<ThrowAway> {
        let module = &self.token.module;
        let label = format!("{PREFIX}{}", hex::encode(uuid::Uuid::new_v4().as_bytes()));
        let common = || {
            vec![
                Attr::flag(ck::CKA_TOKEN, false),
                Attr::bytes(ck::CKA_LABEL, label.as_str()),
            ]
        };
        let mut public = common();
        public.extend([
            Attr::flag(ck::CKA_PRIVATE, false),
            Attr::flag(ck::CKA_WRAP, true),
            Attr::ulong(ck::CKA_MODULUS_BITS, 2048),
            Attr::bytes(ck::CKA_PUBLIC_EXPONENT, [1, 0, 1]),
        ]);
        let mut private = common();
        private.extend([
            Attr::flag(ck::CKA_PRIVATE, true),
            Attr::flag(ck::CKA_SENSITIVE, true),
            Attr::flag(ck::CKA_EXTRACTABLE, true),
            Attr::flag(ck::CKA_UNWRAP, true),
        ]);
        let handles = module.generate_pair(
            self.session,
            &Mechanism::Plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN),
            &public,
            &private,
        )?;
        let number = |kind| {
            module
                .attribute(self.session, handles.public, kind)
                .map(|value| value.map(|value| value.to_vec()).unwrap_or_default())
        };
        let spki = number(ck::CKA_MODULUS).and_then(|modulus| {
            let exponent = number(ck::CKA_PUBLIC_EXPONENT)?;
            host::spki(&modulus, &exponent).map_err(|_| {
                CallError::new("C_GetAttributeValue", ck::CKR_ATTRIBUTE_VALUE_INVALID, &[])
            })
        });
        match spki {
            Ok((spki, _)) => Ok(ThrowAway { handles, spki }),
            Err(error) => {
                self.drop_key(handles.private);
                self.drop_key(handles.public);
                Err(error)
            }
        }
    }

    /// Unwraps the transport key under the throw-away pair, so that it is in
    /// clear in no call; where the token does not, creates it.
    fn bring(
        &self,
        key: &TransportKey,
        pair: &Call<ThrowAway>,
        wraps: bool,
    ) -> Result<(CK_OBJECT_HANDLE, String, bool), Fault> {
        let unwrapped = match pair {
            Ok(pair) => self.bring_wrapped(key, pair, wraps),
            Err(error) => Err(*error),
        };
        let why = match unwrapped {
            Ok((handle, trusted)) => {
                let how = "C_UnwrapKey under a throw-away RSA-2048 session pair".to_owned();
                return Ok((handle, how, trusted));
            }
            Err(error) => error,
        };
        let template = |trusted| {
            let mut template = self.usage(wraps, trusted);
            template.push(Attr::flag(ck::CKA_SENSITIVE, true));
            template.push(Attr::secret(ck::CKA_VALUE, key.expose()));
            template
        };
        let create = |trusted| {
            self.token
                .module
                .create_object(self.session, &template(trusted))
        };
        let created = if wraps { create(true) } else { create(false) };
        let handle = created.or_else(|_| create(false)).map_err(|error| {
            self.failed(
                error,
                format!(
                    "bringing the transport key in (before that {} answered {})",
                    why.function,
                    ckr_name(why.rv)
                ),
            )
        })?;
        let how = format!(
            "C_CreateObject, since {} answered {}",
            why.function,
            ckr_name(why.rv)
        );
        Ok((handle, how, self.trusted(handle)))
    }

    fn bring_wrapped(
        &self,
        key: &TransportKey,
        pair: &ThrowAway,
        wraps: bool,
    ) -> Call<(CK_OBJECT_HANDLE, bool)> {
        let secret = SecretSlice::from(key.expose().to_vec());
        let under = Under {
            private: pair.handles.private,
            spki: &pair.spki,
        };
        let unwrap = |trusted| {
            let usage = self.usage(wraps, trusted);
            carry::bring(&self.token, self.session, under, &secret, usage)
        };
        let handle = match unwrap(wraps) {
            Err(error) if wraps && template_refused(error) => unwrap(false)?,
            other => other?,
        };
        Ok((handle, self.trusted(handle)))
    }

    /// A session key that wraps and unwraps; that it be trusted is for the token to grant.
    fn usage(&self, wraps: bool, trusted: bool) -> Vec<Attr> {
        let mut template = vec![
            Attr::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
            Attr::flag(ck::CKA_TOKEN, false),
            Attr::flag(ck::CKA_PRIVATE, true),
            Attr::flag(ck::CKA_WRAP, wraps),
            Attr::flag(ck::CKA_UNWRAP, true),
            Attr::flag(ck::CKA_ENCRYPT, false),
            Attr::flag(ck::CKA_DECRYPT, false),
        ];
        if trusted {
            template.push(Attr::flag(ck::CKA_TRUSTED, true));
        }
        template
    }

    fn trusted(&self, handle: CK_OBJECT_HANDLE) -> bool {
        let flag = self
            .token
            .module
            .flag(self.session, handle, ck::CKA_TRUSTED);
        flag.ok().flatten() == Some(true)
    }

    /// The first mechanism by which the throw-away private key comes out and
    /// in again, or else comes out.
    fn way(
        &self,
        transport: &Transport,
        pair: &ThrowAway,
        key: &TransportKey,
    ) -> Result<(Way, WrapFormat, bool), Fault> {
        let mut refused = Vec::new();
        let mut one_way = None;
        for way in WAYS {
            let Some((mechanism, iv)) = way.fresh() else {
                continue;
            };
            let wrapped = match self.token.module.wrap_private(
                self.session,
                &mechanism,
                transport.handle,
                pair.handles.private,
            ) {
                Ok(wrapped) => wrapped,
                Err(error) => {
                    refused.push(format!("{}: {}", way.name, ckr_name(error.rv)));
                    continue;
                }
            };
            let format = format(way, key, &iv, &wrapped);
            let template = [
                Attr::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY),
                Attr::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
                Attr::flag(ck::CKA_TOKEN, false),
                Attr::flag(ck::CKA_PRIVATE, true),
                Attr::flag(ck::CKA_SENSITIVE, true),
                Attr::flag(ck::CKA_EXTRACTABLE, false),
                Attr::flag(ck::CKA_UNWRAP, true),
            ];
            let unwrapped = self.token.module.unwrap(
                self.session,
                &mechanism,
                transport.handle,
                &wrapped,
                &template,
            );
            match unwrapped {
                Ok(handle) => {
                    self.drop_key(handle);
                    return Ok((way, format, true));
                }
                Err(error) => {
                    refused.push(format!(
                        "{}: C_UnwrapKey of what it wrapped: {}",
                        way.name,
                        ckr_name(error.rv)
                    ));
                    one_way.get_or_insert((way, format, false));
                }
            }
        }
        one_way.ok_or_else(|| {
            self.unsupported(format!(
                "it wraps no private key out (C_WrapKey, tried with a throw-away key: {}), so a KEK cannot have a copy made by ekm; nothing was left on it. If the vendor clones this product's tokens, do that, and tell ekm with: ekm kek copy confirm LABEL",
                refused.join(", ")
            ))
        })
    }
}

/// What the token made of the throw-away private key, which is good for nothing else.
fn format(way: Way, key: &TransportKey, iv: &[u8], wrapped: &[u8]) -> WrapFormat {
    match way.unwrap(key.expose(), iv, wrapped) {
        Some(der) if is_private_key_info(&der) => {
            if way.has_iv() {
                WrapFormat::CbcPad
            } else {
                WrapFormat::Rfc5649
            }
        }
        Some(_) | None => WrapFormat::Own,
    }
}

/// Whether it is a `PrivateKeyInfo` (RFC 5958): a sequence whose first member is version 0 or 1.
/// SoftHSM 2.6.1 fills it up to a multiple of 8 bytes with zeros before it wraps it by RFC 5649,
/// which would do that itself; kryoptic does not mind.
fn is_private_key_info(der: &[u8]) -> bool {
    use der::{Reader as _, SliceReader, asn1::AnyRef};
    let read = || {
        let mut reader = SliceReader::new(der)?;
        let version = reader.sequence(|inner| {
            let version = inner.decode::<u8>()?;
            // The rest is the token's business.
            while !inner.is_finished() {
                inner.decode::<AnyRef<'_>>()?;
            }
            Ok(version)
        })?;
        let filling = reader.read_slice(reader.remaining_len())?;
        der::Result::Ok(version <= 1 && filling.len() < 8 && filling.iter().all(|zero| *zero == 0))
    };
    read().is_ok_and(|good| good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_info_may_be_filled_up_and_no_more() {
        // Version 0, an algorithm, an octet string.
        let der = [
            0x30, 0x09, 0x02, 0x01, 0x00, 0x30, 0x00, 0x04, 0x02, 0xaa, 0xbb,
        ];
        let with = |more: &[u8]| [&der[..], more].concat();
        assert!(is_private_key_info(&der));
        assert!(is_private_key_info(&with(&[0; 7])));
        for wrong in [
            with(&[0; 8]),
            with(&[1]),
            der[..10].to_vec(),
            Vec::new(),
            vec![0; 16],
            [&[0x30, 0x09, 0x02, 0x01, 0x02], &der[5..]].concat(),
        ] {
            assert!(!is_private_key_info(&wrong), "{wrong:?}");
        }
    }

    #[test]
    fn what_a_token_wrapped_is_told_apart() {
        let key = TransportKey::new().unwrap();
        let der = [
            0x30, 0x09, 0x02, 0x01, 0x00, 0x30, 0x00, 0x04, 0x02, 0xaa, 0xbb,
        ];
        let [kwp, _, cbc] = WAYS;
        let (_, wrapped) = kwp.wrap(key.expose(), &der).unwrap();
        assert_eq!(format(kwp, &key, &[], &wrapped), WrapFormat::Rfc5649);
        let other = TransportKey::new().unwrap();
        assert_eq!(format(kwp, &other, &[], &wrapped), WrapFormat::Own);
        assert_eq!(format(cbc, &key, &[0; 16], &wrapped), WrapFormat::Own);
    }
}
