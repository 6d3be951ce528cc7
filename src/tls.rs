//! Who is at the other end: mutual TLS, drive certificates, and a small certificate authority.
//!
//! A certificate names its holder in one URI, `urn:ekm:<role>:<name>`, which becomes a [`PeerId`].
//! What that peer may do is no matter of this module.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::VerifierBuilderError;
use rustls::{RootCertStore, SupportedProtocolVersion};
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub mod ca;
mod client;
mod drive;
mod peer;
mod server;

pub use client::{
    ClientPaths, ClientTls, check_client_files, client_config, client_config_with, sender_config,
};
pub use drive::{SignatureScheme, VerifiedDrive, verify_drive_certificate, verify_signature};
pub use peer::{PeerError, PeerId, Role};
pub use server::{Paths, Reloaded, ServerTls, ShownChain};

/// Why TLS cannot be set up, or a drive's certificate is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: check that it exists and that this user may read it")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} does not hold {wanted} in PEM: write it anew")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// Where reading it failed.
        source: pem::Error,
    },
    /// A certificate in a file is not well-formed.
    #[error("{path} holds a certificate that cannot be used: issue it anew")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The certificate and the private key do not make a TLS identity.
    #[error("{cert} and {key} cannot be used together: name the key that the certificate is for")]
    Identity {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
    /// The CA certificates and revocation lists cannot verify clients.
    #[error("clients cannot be verified with {path} and its revocation list: write both anew")]
    ClientVerifier {
        /// The file of CA certificates.
        path: PathBuf,
        /// What is wrong with it.
        source: VerifierBuilderError,
    },
    /// The trusted roots of drive certificates cannot be used.
    #[error("the drive CA's certificates cannot be used: give one or more in PEM")]
    DriveRoots,
    /// A drive certificate does not lead to a trusted root, has expired or is revoked.
    #[error("the drive certificate is refused: have the drive CA issue it anew")]
    DriveCertificate(#[source] webpki::Error),
    /// A drive certificate is not for client authentication.
    #[error("the drive certificate lacks the client authentication usage: have it issued anew")]
    DriveUsage,
    /// A drive certificate does not say which drive.
    #[error("the drive certificate names no drive: have the drive CA issue it anew")]
    DriveName(#[source] PeerError),
    /// A certificate of another role where a drive's was wanted.
    #[error("the certificate is that of {peer}, not of a drive: use the drive's own")]
    NotADrive {
        /// Whom it names.
        peer: PeerId,
    },
    /// A public key is of no supported type.
    #[error("the public key is neither ECDSA P-256 nor RSA of 2048 bits or more: use such a key")]
    UnsupportedKey,
    /// The signature scheme is not the one that goes with the key.
    #[error("the key signs with {expected}, but the signature says {got}: sign with {expected}")]
    SchemeMismatch {
        /// The scheme of the key.
        expected: SignatureScheme,
        /// The scheme that was named.
        got: SignatureScheme,
    },
    /// The signature is not by this key over this message.
    #[error("the signature does not fit: sign the challenge with the key in the certificate")]
    Signature,
}

/// Names the one provider wherever it is used, so that no library's default can take its place.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

const ALPN: &[u8] = b"http/1.1";

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        path: path.into(),
        source,
    })
}

/// Every PEM block of `T` in `path`; at least one.
fn pem_blocks<T>(path: &Path, wanted: &'static str) -> Result<Vec<T>, TlsError>
where
    T: pem::PemObject,
{
    let failed = |source| TlsError::Pem {
        path: path.into(),
        wanted,
        source,
    };
    let blocks: Vec<T> = T::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    if blocks.is_empty() {
        return Err(failed(pem::Error::NoItemsFound));
    }
    Ok(blocks)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem_blocks(path, "a certificate")
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = Zeroizing::new(read(path)?);
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|source| TlsError::Pem {
        path: path.into(),
        wanted: "a private key",
        source,
    })
}

fn root_store(path: &Path, roots: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root.clone())
            .map_err(|source| TlsError::Certificate {
                path: path.into(),
                source,
            })?;
    }
    Ok(store)
}

/// The end of a certificate's validity.
fn not_after(der: &[u8]) -> Option<OffsetDateTime> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    OffsetDateTime::from_unix_timestamp(certificate.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests;
