//! Mechanisms and their parameters.

use std::ptr;

use cryptoki_sys as ck;

use super::{CK_MECHANISM_TYPE, ulong};

/// A mechanism with the parameters that this crate uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A mechanism without parameters.
    Plain(CK_MECHANISM_TYPE),
    /// `CKM_RSA_PKCS_OAEP` with `CK_RSA_PKCS_OAEP_PARAMS` (PKCS#11 v2.40, 2.1.7).
    Oaep {
        /// `CKM_SHA_1`, `CKM_SHA256` …
        hash: CK_MECHANISM_TYPE,
        /// `CKG_MGF1_SHA1` …
        mgf: ck::CK_RSA_PKCS_MGF_TYPE,
        /// `pSourceData`; empty for none.
        label: Vec<u8>,
    },
    /// A mechanism whose parameter is an initialisation vector: `CKM_AES_CBC_PAD`.
    Iv {
        /// The mechanism.
        mechanism: CK_MECHANISM_TYPE,
        /// The vector.
        iv: [u8; 16],
    },
}

impl Mechanism {
    /// Calls `body` with the raw structure, whose parameter lives that long.
    pub(super) fn with<T>(&self, body: impl FnOnce(*mut ck::CK_MECHANISM) -> T) -> T {
        match self {
            Self::Plain(mechanism) => {
                let mut raw = ck::CK_MECHANISM {
                    mechanism: *mechanism,
                    pParameter: ptr::null_mut(),
                    ulParameterLen: 0,
                };
                body(&raw mut raw)
            }
            Self::Oaep { hash, mgf, label } => {
                let mut params = ck::CK_RSA_PKCS_OAEP_PARAMS {
                    hashAlg: *hash,
                    mgf: *mgf,
                    source: ck::CKZ_DATA_SPECIFIED,
                    pSourceData: if label.is_empty() {
                        ptr::null_mut()
                    } else {
                        label.as_ptr().cast_mut().cast()
                    },
                    ulSourceDataLen: ulong(label.len()),
                };
                let mut raw = ck::CK_MECHANISM {
                    mechanism: ck::CKM_RSA_PKCS_OAEP,
                    pParameter: (&raw mut params).cast(),
                    ulParameterLen: ulong(size_of::<ck::CK_RSA_PKCS_OAEP_PARAMS>()),
                };
                body(&raw mut raw)
            }
            Self::Iv { mechanism, iv } => {
                let mut raw = ck::CK_MECHANISM {
                    mechanism: *mechanism,
                    pParameter: iv.as_ptr().cast_mut().cast(),
                    ulParameterLen: ulong(iv.len()),
                };
                body(&raw mut raw)
            }
        }
    }
}
