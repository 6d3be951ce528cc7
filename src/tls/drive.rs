//! Certificates that drives show for their keys, and signatures by those keys.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder,
    anchor_from_trusted_cert,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{PeerId, Role, TlsError};

/// A drive whose certificate was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedDrive {
    /// The drive's serial, 12 characters.
    pub serial: String,
    /// The certified public key, a DER SubjectPublicKeyInfo of a supported type.
    pub spki: Vec<u8>,
}

/// Verifies that `der` is a drive's certificate that leads to one of the roots.
///
/// The certificate must have the client authentication usage. Where `roots_pem` holds revocation
/// lists beside the roots, they must cover the whole chain. A drive's certificate proves its key,
/// not its presence: that takes a signature over a fresh challenge ([`verify_signature`]).
///
/// # Errors
///
/// [`TlsError::DriveRoots`] for unusable roots; [`TlsError::DriveCertificate`],
/// [`TlsError::DriveUsage`], [`TlsError::DriveName`], [`TlsError::NotADrive`] or
/// [`TlsError::UnsupportedKey`] for a certificate that is not taken.
pub fn verify_drive_certificate(
    der: &[u8],
    intermediates: &[Vec<u8>],
    roots_pem: &[u8],
    now: OffsetDateTime,
) -> Result<VerifiedDrive, TlsError> {
    let roots: Vec<_> = CertificateDer::pem_slice_iter(roots_pem)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::DriveRoots)?;
    let anchors: Vec<_> = roots
        .iter()
        .map(anchor_from_trusted_cert)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::DriveRoots)?;
    if anchors.is_empty() {
        return Err(TlsError::DriveRoots);
    }
    let lists = revocation_lists(roots_pem)?;
    let lists: Vec<_> = lists.iter().collect();
    // No lists, no revocation; one list, and every issuer of the chain needs one.
    let revocation = RevocationOptionsBuilder::new(&lists).ok();
    let intermediates: Vec<_> = intermediates
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let certificate = CertificateDer::from(der);
    let end_entity = EndEntityCert::try_from(&certificate).map_err(TlsError::DriveCertificate)?;
    end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &intermediates,
            unix_time(now),
            KeyUsage::client_auth(),
            revocation.map(RevocationOptionsBuilder::build),
            None,
        )
        .map_err(TlsError::DriveCertificate)?;
    if !has_client_auth(der) {
        return Err(TlsError::DriveUsage);
    }
    let peer = PeerId::from_certificate(der).map_err(TlsError::DriveName)?;
    match peer.role() {
        Role::Drive => {}
        Role::Proxy | Role::Operator | Role::Server => return Err(TlsError::NotADrive { peer }),
    }
    let spki = end_entity.subject_public_key_info().to_vec();
    SignatureScheme::of_key(&spki)?;
    Ok(VerifiedDrive {
        serial: peer.name().into(),
        spki,
    })
}

/// How a drive signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureScheme {
    /// ECDSA over P-256 with SHA-256, the signature in ASN.1 (RFC 3279, section 2.2.3).
    EcdsaP256Sha256,
    /// RSASSA-PSS with SHA-256, MGF1 with SHA-256 and a salt of 32 bytes (RFC 8017, section 8.1).
    RsaPssSha256,
}

impl SignatureScheme {
    /// The one scheme that goes with a public key, a DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    ///
    /// [`TlsError::UnsupportedKey`] for a key that is neither P-256 nor RSA of 2048 to 8192 bits.
    pub fn of_key(spki: &[u8]) -> Result<Self, TlsError> {
        parse_key(spki).map(|(scheme, _)| scheme)
    }
}

impl fmt::Display for SignatureScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            Self::RsaPssSha256 => "rsa-pss-sha256",
        })
    }
}

/// Verifies that `signature` is by the private half of `spki` over `message`.
///
/// # Errors
///
/// [`TlsError::UnsupportedKey`], [`TlsError::SchemeMismatch`] when `scheme` is not the key's own,
/// [`TlsError::Signature`] when the signature does not fit.
pub fn verify_signature(
    spki: &[u8],
    scheme: SignatureScheme,
    message: &[u8],
    signature: &[u8],
) -> Result<(), TlsError> {
    let (expected, key) = parse_key(spki)?;
    if scheme != expected {
        return Err(TlsError::SchemeMismatch {
            expected,
            got: scheme,
        });
    }
    let algorithm: &'static dyn VerificationAlgorithm = match scheme {
        SignatureScheme::EcdsaP256Sha256 => &ECDSA_P256_SHA256_ASN1,
        SignatureScheme::RsaPssSha256 => &RSA_PSS_2048_8192_SHA256,
    };
    UnparsedPublicKey::new(algorithm, key)
        .verify(message, signature)
        .map_err(|_| TlsError::Signature)
}

/// The key's scheme and its bytes without the SubjectPublicKeyInfo around them.
fn parse_key(spki: &[u8]) -> Result<(SignatureScheme, Vec<u8>), TlsError> {
    let (rest, info) =
        SubjectPublicKeyInfo::from_der(spki).map_err(|_| TlsError::UnsupportedKey)?;
    if !rest.is_empty() {
        return Err(TlsError::UnsupportedKey);
    }
    let key = info.subject_public_key.data.to_vec();
    let curve = || info.algorithm.parameters.as_ref()?.as_oid().ok();
    match info.parsed() {
        Ok(PublicKey::EC(_)) if curve() == Some(x509_parser::oid_registry::OID_EC_P256) => {
            Ok((SignatureScheme::EcdsaP256Sha256, key))
        }
        Ok(PublicKey::RSA(rsa)) if RSA_BITS.contains(&rsa.key_size()) => {
            Ok((SignatureScheme::RsaPssSha256, key))
        }
        Ok(_) | Err(_) => Err(TlsError::UnsupportedKey),
    }
}

fn revocation_lists(pem: &[u8]) -> Result<Vec<CertRevocationList<'static>>, TlsError> {
    CertificateRevocationListDer::pem_slice_iter(pem)
        .map(|list| {
            let list = list.map_err(|_| TlsError::DriveRoots)?;
            OwnedCertRevocationList::from_der(&list)
                .map(CertRevocationList::from)
                .map_err(|_| TlsError::DriveRoots)
        })
        .collect()
}

/// The path builder asks for the usage only where a certificate has usages at all, because it
/// would otherwise ask the intermediate certificates too.
fn has_client_auth(der: &[u8]) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else {
        return false;
    };
    matches!(certificate.extended_key_usage(), Ok(Some(usage)) if usage.value.client_auth)
}

/// A time before 1970 verifies nothing: every certificate is then not valid yet.
fn unix_time(now: OffsetDateTime) -> UnixTime {
    let seconds = u64::try_from(now.unix_timestamp()).unwrap_or(0);
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
