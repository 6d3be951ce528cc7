//! Attributes: what keys are made, found and changed by.

use std::ffi::c_void;
use std::ptr;

use cryptoki_sys as ck;
use zeroize::Zeroizing;

use super::{CK_ATTRIBUTE_TYPE, ulong};

/// One attribute of a template, owned.
#[derive(Clone, Debug)]
pub struct Attr {
    kind: CK_ATTRIBUTE_TYPE,
    value: Value,
}

#[derive(Clone)]
enum Value {
    Bytes(Vec<u8>),
    Secret(Zeroizing<Vec<u8>>),
    Nested(Vec<Attr>),
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Secret(_) => f.write_str("[redacted]"),
            Self::Nested(template) => template.fmt(f),
        }
    }
}

impl Attr {
    /// A `CK_BBOOL` attribute.
    #[must_use]
    pub fn flag(kind: CK_ATTRIBUTE_TYPE, on: bool) -> Self {
        Self {
            kind,
            value: Value::Bytes(vec![u8::from(on)]),
        }
    }

    /// A `CK_ULONG` attribute, in the machine's byte order.
    #[must_use]
    pub fn ulong(kind: CK_ATTRIBUTE_TYPE, value: ck::CK_ULONG) -> Self {
        Self {
            kind,
            value: Value::Bytes(value.to_ne_bytes().to_vec()),
        }
    }

    /// Whether it is the attribute of that type.
    #[must_use]
    pub const fn is(&self, kind: CK_ATTRIBUTE_TYPE) -> bool {
        self.kind == kind
    }

    /// A byte-string attribute.
    #[must_use]
    pub fn bytes(kind: CK_ATTRIBUTE_TYPE, value: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            value: Value::Bytes(value.into()),
        }
    }

    /// A number of a private key, wiped afterwards and never shown.
    pub(in crate::bridge) fn secret(kind: CK_ATTRIBUTE_TYPE, value: &[u8]) -> Self {
        Self {
            kind,
            value: Value::Secret(Zeroizing::new(value.to_vec())),
        }
    }

    /// An attribute whose value is a template: `CKA_UNWRAP_TEMPLATE`.
    #[must_use]
    pub fn template(kind: CK_ATTRIBUTE_TYPE, value: Vec<Self>) -> Self {
        Self {
            kind,
            value: Value::Nested(value),
        }
    }
}

/// Attributes as the module reads them. The raw structures point into the
/// `Attr`s and into `nested`, so both are borrowed for as long as it lives.
pub(super) struct RawTemplate<'a> {
    attributes: Vec<ck::CK_ATTRIBUTE>,
    _nested: Vec<Self>,
    _source: &'a [Attr],
}

impl<'a> RawTemplate<'a> {
    pub(super) fn new(source: &'a [Attr]) -> Self {
        let mut nested = Vec::new();
        let attributes = source
            .iter()
            .map(|attr| {
                let (pointer, length): (*mut c_void, usize) = match &attr.value {
                    Value::Bytes(bytes) if bytes.is_empty() => (ptr::null_mut(), 0),
                    Value::Bytes(bytes) => (bytes.as_ptr().cast_mut().cast(), bytes.len()),
                    Value::Secret(bytes) => (bytes.as_ptr().cast_mut().cast(), bytes.len()),
                    Value::Nested(inner) => {
                        let mut raw = RawTemplate::new(inner);
                        let pointer = raw.attributes.as_mut_ptr().cast();
                        let length = raw.attributes.len() * size_of::<ck::CK_ATTRIBUTE>();
                        nested.push(raw);
                        (pointer, length)
                    }
                };
                ck::CK_ATTRIBUTE {
                    type_: attr.kind,
                    pValue: pointer,
                    ulValueLen: ulong(length),
                }
            })
            .collect();
        Self {
            attributes,
            _nested: nested,
            _source: source,
        }
    }

    pub(super) fn parts(&mut self) -> (*mut ck::CK_ATTRIBUTE, ck::CK_ULONG) {
        (self.attributes.as_mut_ptr(), ulong(self.attributes.len()))
    }
}
