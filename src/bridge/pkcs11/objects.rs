//! Objects: found, read, made, changed and destroyed.

use std::ptr;

use cryptoki_sys as ck;
use zeroize::Zeroizing;

use super::template::RawTemplate;
use super::{
    Attr, BUFFER, CK_ATTRIBUTE_TYPE, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, Call, CallError, Module,
    call, length, ulong,
};
use crate::bridge::faults::FaultClass;

/// Most attributes that a nested template is read with: more than the standard has flags for a key.
const NESTED: usize = 64;

impl Module {
    /// All objects that match the template.
    ///
    /// # Errors
    /// The module's code.
    pub fn find(
        &self,
        session: CK_SESSION_HANDLE,
        template: &[Attr],
    ) -> Call<Vec<CK_OBJECT_HANDLE>> {
        let mut raw = RawTemplate::new(template);
        let (pointer, count) = raw.parts();
        call!(self, C_FindObjectsInit(session, pointer, count))?;
        let mut found = Vec::new();
        let outcome = loop {
            let mut batch = [0; 64];
            let mut got = 0;
            if let Err(error) = call!(
                self,
                C_FindObjects(session, batch.as_mut_ptr(), 64, &raw mut got)
            ) {
                break Err(error);
            }
            found.extend(batch.iter().take(length(got)));
            if got == 0 {
                break Ok(());
            }
        };
        // The search must end on the session even when it failed.
        let end = call!(self, C_FindObjectsFinal(session));
        outcome.and(end)?;
        Ok(found)
    }

    /// One attribute of an object; `None` where the token does not have it or will not say.
    ///
    /// # Errors
    /// The module's code, other than "no such attribute", "sensitive" and "too long for the buffer".
    pub fn attribute(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        kind: CK_ATTRIBUTE_TYPE,
    ) -> Call<Option<Zeroizing<Vec<u8>>>> {
        let mut value = Zeroizing::new(vec![0_u8; BUFFER * 4]);
        let mut raw = ck::CK_ATTRIBUTE {
            type_: kind,
            pValue: value.as_mut_ptr().cast(),
            ulValueLen: ulong(value.len()),
        };
        match call!(self, C_GetAttributeValue(session, object, &raw mut raw, 1)) {
            Ok(()) if raw.ulValueLen == ck::CK_UNAVAILABLE_INFORMATION => Ok(None),
            Ok(()) => {
                value.truncate(length(raw.ulValueLen));
                Ok(Some(value))
            }
            Err(CallError {
                rv:
                    ck::CKR_ATTRIBUTE_TYPE_INVALID
                    | ck::CKR_ATTRIBUTE_SENSITIVE
                    | ck::CKR_BUFFER_TOO_SMALL,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A `CK_BBOOL` attribute.
    ///
    /// # Errors
    /// As [`Self::attribute`].
    pub fn flag(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        kind: CK_ATTRIBUTE_TYPE,
    ) -> Call<Option<bool>> {
        Ok(self
            .attribute(session, object, kind)?
            .and_then(|value| value.first().map(|byte| *byte != 0)))
    }

    /// The `CK_BBOOL` attributes in a template that is an attribute itself,
    /// `CKA_UNWRAP_TEMPLATE`; empty where there is no template, `None` where
    /// the token does not say.
    ///
    /// # Errors
    /// The module's code, but for a refusal to tell.
    pub fn nested_flags(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        kind: CK_ATTRIBUTE_TYPE,
    ) -> Call<Option<Vec<(CK_ATTRIBUTE_TYPE, bool)>>> {
        // How many, how long each, and what: one call each (PKCS#11 v2.40, C_GetAttributeValue).
        let mut outer = ck::CK_ATTRIBUTE {
            type_: kind,
            pValue: ptr::null_mut(),
            ulValueLen: 0,
        };
        let ask = |outer: &mut ck::CK_ATTRIBUTE| match call!(
            self,
            C_GetAttributeValue(session, object, ptr::from_mut(outer), 1)
        ) {
            Ok(()) => Ok(outer.ulValueLen != ck::CK_UNAVAILABLE_INFORMATION),
            Err(CallError {
                rv: ck::CKR_ATTRIBUTE_SENSITIVE | ck::CKR_BUFFER_TOO_SMALL,
                ..
            }) => Ok(false),
            Err(error) if matches!(error.class, FaultClass::Request | FaultClass::Ambiguous) => {
                Ok(false)
            }
            Err(error) => Err(error),
        };
        match ask(&mut outer) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            // The object has no such attribute, which is no template.
            Err(CallError {
                rv: ck::CKR_ATTRIBUTE_TYPE_INVALID,
                ..
            }) => return Ok(Some(Vec::new())),
            Err(error) => return Err(error),
        }
        let count = length(outer.ulValueLen) / size_of::<ck::CK_ATTRIBUTE>();
        if count == 0 {
            return Ok(Some(Vec::new()));
        }
        if count > NESTED {
            return Ok(None);
        }
        // "Which are there?" (PKCS#11 v3.1, C_GetAttributeValue); older modules write over it in any case.
        let empty = ck::CK_ATTRIBUTE {
            type_: ck::CK_UNAVAILABLE_INFORMATION,
            pValue: ptr::null_mut(),
            ulValueLen: 0,
        };
        let mut inner = vec![empty; count];
        outer.pValue = inner.as_mut_ptr().cast();
        if !ask(&mut outer)? || inner.iter().any(|attr| length(attr.ulValueLen) > BUFFER) {
            return Ok(None);
        }
        let mut values: Vec<Vec<u8>> = inner
            .iter()
            .map(|attr| vec![0; length(attr.ulValueLen)])
            .collect();
        for (attr, value) in inner.iter_mut().zip(&mut values) {
            attr.pValue = value.as_mut_ptr().cast();
        }
        if !ask(&mut outer)? {
            return Ok(None);
        }
        let flags = inner.iter().zip(&values).filter_map(|(attr, value)| {
            let [byte] = value.as_slice() else {
                return None;
            };
            Some((attr.type_, *byte != 0))
        });
        Ok(Some(flags.collect()))
    }

    /// `C_SetAttributeValue`.
    ///
    /// # Errors
    /// The module's code.
    pub fn set_attributes(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        template: &[Attr],
    ) -> Call<()> {
        let mut raw = RawTemplate::new(template);
        let (pointer, count) = raw.parts();
        call!(self, C_SetAttributeValue(session, object, pointer, count))
    }

    /// `C_CreateObject`.
    ///
    /// # Errors
    /// The module's code.
    pub fn create_object(
        &self,
        session: CK_SESSION_HANDLE,
        template: &[Attr],
    ) -> Call<CK_OBJECT_HANDLE> {
        let mut raw = RawTemplate::new(template);
        let (pointer, count) = raw.parts();
        let mut object = 0;
        call!(
            self,
            C_CreateObject(session, pointer, count, &raw mut object)
        )?;
        Ok(object)
    }

    /// `C_CopyObject`: a copy with other attributes.
    ///
    /// # Errors
    /// The module's code.
    pub fn copy_object(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        template: &[Attr],
    ) -> Call<CK_OBJECT_HANDLE> {
        let mut raw = RawTemplate::new(template);
        let (pointer, count) = raw.parts();
        let mut copy = 0;
        call!(
            self,
            C_CopyObject(session, object, pointer, count, &raw mut copy)
        )?;
        Ok(copy)
    }

    /// `C_DestroyObject`.
    ///
    /// # Errors
    /// The module's code.
    pub fn destroy(&self, session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) -> Call<()> {
        call!(self, C_DestroyObject(session, object))
    }
}
