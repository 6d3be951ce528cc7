//! Who vouches for a certificate.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use webpki::{
    ALL_VERIFICATION_ALGS, EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    anchor_from_trusted_cert,
};

use super::{Certificate, CertificateError};

/// Who vouches for a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vouched {
    /// Nobody but itself: only its fingerprint tells whose it is.
    Itself,
    /// A CA that the operator gave, by name.
    Ca(String),
}

impl std::fmt::Display for Vouched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Itself => f.write_str("nobody: it is self-signed"),
            Self::Ca(name) => write!(f, "{name}"),
        }
    }
}

/// A KEK's certificate is for wrapping, for which no extended usage is defined.
struct AnyPurpose;

impl ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// Who vouches for it: one of these CAs, over these certificates in between; without a CA it must
/// have signed itself. One that has ended is not vouched for; of one that begins later it is asked
/// how it will be then.
///
/// # Errors
/// Nobody does.
pub fn vouched(
    certificate: &Certificate,
    between: &[Vec<u8>],
    cas: Option<&[Vec<u8>]>,
    now: OffsetDateTime,
) -> Result<Vouched, CertificateError> {
    let cas = match cas {
        // Whoever gives the certificate itself as its CA says no more than it does.
        Some(cas) if !cas.contains(&certificate.der) => cas,
        _ if certificate.subject_der == certificate.issuer_der => {
            return signed_itself(&certificate.der).map(|()| Vouched::Itself);
        }
        _ => {
            return Err(CertificateError::NoCa {
                issuer: certificate.issuer.clone(),
            });
        }
    };
    let chain = |reason: String| CertificateError::Chain { reason };
    let cas: Vec<CertificateDer<'_>> = cas
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let anchors: Vec<TrustAnchor<'_>> = cas
        .iter()
        .map(anchor_from_trusted_cert)
        .collect::<Result<_, _>>()
        .map_err(|error| chain(format!("a CA's certificate: {error}")))?;
    let between: Vec<CertificateDer<'_>> = between
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let der = CertificateDer::from(certificate.der.as_slice());
    let leaf = EndEntityCert::try_from(&der).map_err(|error| chain(words(&error)))?;
    let at = now.max(certificate.validity.not_before);
    let seconds = u64::try_from(at.unix_timestamp()).unwrap_or_default();
    let path = leaf
        .verify_for_usage(
            ALL_VERIFICATION_ALGS,
            &anchors,
            &between,
            UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
            AnyPurpose,
            None,
            None,
        )
        .map_err(|error| chain(words(&error)))?;
    let anchor = path.anchor();
    let name = cas
        .iter()
        .zip(&anchors)
        .find(|(_, known)| *known == anchor)
        .and_then(|(der, _)| x509_parser::parse_x509_certificate(der).ok())
        .map(|(_, ca)| super::readable(&ca.subject().to_string()));
    Ok(Vouched::Ca(
        name.unwrap_or_else(|| certificate.issuer.clone()),
    ))
}

/// What an operator can do something about, in words.
fn words(error: &webpki::Error) -> String {
    match error {
        webpki::Error::UnsupportedCertVersion => {
            "it is of X.509 version 1, and only version 3 is taken; have it issued with extensions (openssl x509 -req … -extfile FILE)".to_owned()
        }
        webpki::Error::UnknownIssuer => {
            "none of them has issued it, or one between is missing".to_owned()
        }
        other => other.to_string(),
    }
}

fn signed_itself(der: &[u8]) -> Result<(), CertificateError> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(der).map_err(|_| CertificateError::Malformed)?;
    let owned = CertificateDer::from(der);
    let key = EndEntityCert::try_from(&owned).map_err(|_| CertificateError::Malformed)?;
    let signature = &parsed.signature_value.data;
    // Each of them refuses a key that is not its own.
    let good = ALL_VERIFICATION_ALGS.iter().any(|algorithm| {
        key.verify_signature(*algorithm, parsed.tbs_certificate.as_ref(), signature)
            .is_ok()
    });
    if good {
        Ok(())
    } else {
        Err(CertificateError::SelfSignature)
    }
}
