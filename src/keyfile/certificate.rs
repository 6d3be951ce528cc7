//! What is needed of a certificate (RFC 5280).

use time::OffsetDateTime;
use x509_parser::parse_x509_certificate;

/// The longest certificate, bytes; one of RSA-4096 has some 2,000. A chain is copied for each key.
const MAX_CERTIFICATE: usize = 16 * 1024;

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
    /// None where it is no certificate, too long for one, or has something after it.
    pub(crate) fn parse(der: &[u8]) -> Option<Self> {
        if der.len() > MAX_CERTIFICATE {
            return None;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_longer_than_any_is_none() {
        let certificate = |padding: usize| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
            let content = vec![0; padding];
            let extension = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 99], content);
            parameters.custom_extensions.push(extension);
            parameters.self_signed(&key).unwrap().der().to_vec()
        };
        assert!(Certificate::parse(&certificate(10_000)).is_some());
        assert!(Certificate::parse(&certificate(MAX_CERTIFICATE)).is_none());
    }
}
