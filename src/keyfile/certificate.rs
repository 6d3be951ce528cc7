//! What is needed of a certificate (RFC 5280).

use time::OffsetDateTime;
use x509_parser::parse_x509_certificate;

/// A certificate, as far as key files are concerned.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// Its subject, as text.
    pub(crate) subject: String,
    /// The common name in it.
    pub(crate) common_name: Option<String>,
    /// Until when it is valid.
    pub(crate) not_after: OffsetDateTime,
    /// What is in the SubjectPublicKeyInfo's bit string: for RSA, RSAPublicKey.
    pub(super) public_key: Vec<u8>,
    /// DER of the subject's name.
    pub(super) subject_der: Vec<u8>,
    /// DER of the issuer's name.
    pub(super) issuer_der: Vec<u8>,
}

impl Certificate {
    /// None where it is no certificate, or has something after it.
    pub(crate) fn parse(der: &[u8]) -> Option<Self> {
        let Ok((rest, parsed)) = parse_x509_certificate(der) else {
            return None;
        };
        if !rest.is_empty() {
            return None;
        }
        let subject = parsed.subject();
        let common_name = subject
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .map(str::to_owned);
        Some(Self {
            subject: subject.to_string(),
            common_name,
            not_after: parsed.validity().not_after.to_datetime(),
            public_key: parsed.public_key().subject_public_key.data.to_vec(),
            subject_der: subject.as_raw().to_vec(),
            issuer_der: parsed.issuer().as_raw().to_vec(),
        })
    }
}
