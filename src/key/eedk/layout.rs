//! The DER of an EEDK, to and from its parts.

use der::{
    Choice, Decode, Encode, ErrorKind, Sequence,
    asn1::{Any, AnyRef, Null, ObjectIdentifier, OctetStringRef, UintRef, Utf8StringRef},
};
use spki::{AlgorithmIdentifierOwned, AlgorithmIdentifierRef};

use super::{EedkError, OaepHash, WrapAlgorithm};
use crate::key::{DataKeyId, KekHash, KekId};

pub(super) fn encode(
    dki: &DataKeyId,
    kek: &KekId,
    wrap: WrapAlgorithm,
    wrapped: &[u8],
) -> Result<Vec<u8>, EedkError> {
    let (oid, parameters) = match wrap {
        WrapAlgorithm::Oaep { hash, .. } => (RSAES_OAEP, oaep_parameters(hash)?),
        WrapAlgorithm::Pkcs1V15 => (RSA_ENCRYPTION, Null.into()),
    };
    let layout = Layout {
        version: UintRef::new(&[VERSION])?,
        dki: if wrap.labelled() {
            DkiLayout::Label(OctetStringRef::new(dki.as_bytes())?)
        } else {
            DkiLayout::Bare(OctetStringRef::new(dki.as_bytes())?)
        },
        kek: match kek {
            KekId::Label(label) => KekLayout::Label(Utf8StringRef::new(label.as_str())?),
            KekId::Hash(hash) => KekLayout::Hash(HashLayout {
                algorithm: AlgorithmIdentifierRef {
                    oid: SHA256,
                    parameters: None,
                },
                value: OctetStringRef::new(hash.as_bytes())?,
            }),
        },
        wrap: AlgorithmIdentifierRef {
            oid,
            parameters: Some((&parameters).into()),
        },
        wrapped: OctetStringRef::new(wrapped)?,
    };
    Ok(layout.to_der()?)
}

pub(super) fn decode(
    bytes: &[u8],
) -> Result<(DataKeyId, KekId, WrapAlgorithm, Vec<u8>), EedkError> {
    let Layout {
        version,
        dki,
        kek,
        wrap,
        wrapped,
    } = Layout::from_der(bytes)?;
    if version.as_bytes() != [VERSION] {
        return Err(EedkError::UnknownVersion {
            got: format!("{}h", hex::encode_upper(version.as_bytes())),
        });
    }
    let (dki, labelled) = match dki {
        DkiLayout::Bare(dki) => (dki, false),
        DkiLayout::Label(dki) => (dki, true),
    };
    Ok((
        DataKeyId::try_from(dki.as_bytes()).map_err(EedkError::Dki)?,
        kek_id(&kek)?,
        algorithm(&wrap, labelled)?,
        wrapped.as_bytes().to_vec(),
    ))
}

fn kek_id(kek: &KekLayout<'_>) -> Result<KekId, EedkError> {
    match kek {
        KekLayout::Label(label) => label
            .as_str()
            .parse()
            .map(KekId::Label)
            .map_err(EedkError::Label),
        KekLayout::Hash(HashLayout { algorithm, value }) => {
            if algorithm.oid != SHA256 {
                return Err(EedkError::KekHashAlgorithm {
                    got: algorithm.oid.to_string(),
                });
            }
            if algorithm.parameters.is_some() {
                return Err(EedkError::NotCanonical);
            }
            let value: [u8; 32] =
                value
                    .as_bytes()
                    .try_into()
                    .map_err(|_| EedkError::KekHashLength {
                        got: value.as_bytes().len(),
                    })?;
            Ok(KekId::Hash(KekHash::from(value)))
        }
    }
}

fn algorithm(
    wrap: &AlgorithmIdentifierRef<'_>,
    labelled: bool,
) -> Result<WrapAlgorithm, EedkError> {
    if wrap.oid != RSA_ENCRYPTION {
        return Ok(WrapAlgorithm::oaep(wrap_hash(wrap)?, labelled));
    }
    if wrap.parameters != Some(AnyRef::NULL) {
        return Err(EedkError::NullParameters);
    }
    if labelled {
        return Err(EedkError::LabelWithoutOaep);
    }
    Ok(WrapAlgorithm::Pkcs1V15)
}

fn wrap_hash(wrap: &AlgorithmIdentifierRef<'_>) -> Result<OaepHash, EedkError> {
    if wrap.oid != RSAES_OAEP {
        return Err(EedkError::WrapAlgorithm {
            got: wrap.oid.to_string(),
        });
    }
    let OaepLayout { hash, mask, source } = wrap
        .parameters
        .ok_or(EedkError::WrapParameters)?
        .decode_as()?;
    let hash = hash
        .as_ref()
        .map_or(Ok(OaepHash::Sha1), |hash| oaep_hash(&hash.oid))?;
    let mask_hash = mask.as_ref().map_or(Ok(OaepHash::Sha1), mask_hash)?;
    if mask_hash != hash {
        return Err(EedkError::MaskHash {
            expected: hash,
            got: mask_hash,
        });
    }
    if source.is_some() {
        return Err(EedkError::OaepLabel);
    }
    Ok(hash)
}

fn mask_hash(mask: &AlgorithmIdentifierOwned) -> Result<OaepHash, EedkError> {
    if mask.oid != MGF1 {
        return Err(EedkError::MaskGeneration {
            got: mask.oid.to_string(),
        });
    }
    let hash: AlgorithmIdentifierRef<'_> = mask
        .parameters
        .as_ref()
        .ok_or(EedkError::WrapParameters)?
        .decode_as()?;
    oaep_hash(&hash.oid)
}

fn oaep_hash(oid: &ObjectIdentifier) -> Result<OaepHash, EedkError> {
    match *oid {
        SHA1 => Ok(OaepHash::Sha1),
        SHA256 => Ok(OaepHash::Sha256),
        SHA384 => Ok(OaepHash::Sha384),
        SHA512 => Ok(OaepHash::Sha512),
        got => Err(EedkError::OaepHash {
            got: got.to_string(),
        }),
    }
}

fn oaep_parameters(hash: OaepHash) -> Result<Any, EedkError> {
    let hash = match hash {
        OaepHash::Sha1 => None,
        OaepHash::Sha256 => Some(SHA256),
        OaepHash::Sha384 => Some(SHA384),
        OaepHash::Sha512 => Some(SHA512),
    }
    .map(|oid| AlgorithmIdentifierOwned {
        oid,
        parameters: Some(Null.into()),
    });
    let mask = match &hash {
        Some(hash) => Some(AlgorithmIdentifierOwned {
            oid: MGF1,
            parameters: Some(Any::encode_from(hash)?),
        }),
        None => None,
    };
    Ok(Any::encode_from(&OaepLayout {
        hash,
        mask,
        source: None,
    })?)
}

impl From<der::Error> for EedkError {
    fn from(error: der::Error) -> Self {
        match error.kind() {
            ErrorKind::Incomplete { .. } => Self::Truncated,
            ErrorKind::TrailingData { .. } => Self::TrailingBytes,
            ErrorKind::Noncanonical { .. }
            | ErrorKind::IndefiniteLength
            | ErrorKind::Length { .. } => Self::NotCanonical,
            // The remaining kinds all say that this is another structure.
            _ => Self::Malformed(error),
        }
    }
}

#[derive(Sequence)]
struct Layout<'a> {
    version: UintRef<'a>,
    dki: DkiLayout<'a>,
    kek: KekLayout<'a>,
    wrap: AlgorithmIdentifierRef<'a>,
    wrapped: OctetStringRef<'a>,
}

#[derive(Choice)]
enum DkiLayout<'a> {
    Bare(OctetStringRef<'a>),
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", constructed = "true")]
    Label(OctetStringRef<'a>),
}

#[derive(Choice)]
enum KekLayout<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", constructed = "true")]
    Label(Utf8StringRef<'a>),
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", constructed = "true")]
    Hash(HashLayout<'a>),
}

#[derive(Sequence)]
struct HashLayout<'a> {
    algorithm: AlgorithmIdentifierRef<'a>,
    value: OctetStringRef<'a>,
}

#[derive(Sequence)]
struct OaepLayout {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    hash: Option<AlgorithmIdentifierOwned>,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", optional = "true")]
    mask: Option<AlgorithmIdentifierOwned>,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT", optional = "true")]
    source: Option<AlgorithmIdentifierOwned>,
}

const VERSION: u8 = 1;

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const RSAES_OAEP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.7");
const MGF1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.8");
const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");
