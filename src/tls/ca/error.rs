//! Why the authority did not do what was asked.

use std::io;
use std::path::PathBuf;

use time::OffsetDateTime;

use super::{PeerId, TlsError};

/// Why the authority did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file could not be handled.
    #[error("cannot {action} {path}: check that it exists and belongs to this user")]
    File {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no authority.
    #[error(
        "there is no certificate authority in {path}: make one with ekm tls init, or name the directory of yours"
    )]
    Absent {
        /// The directory.
        path: PathBuf,
    },
    /// There is an authority already.
    #[error("{path} exists: use that authority, or name another directory")]
    Exists {
        /// The file that is there.
        path: PathBuf,
    },
    /// The authority's certificate cannot be read.
    #[error("{path} is no CA certificate: restore it from the backup")]
    Certificate {
        /// The file.
        path: PathBuf,
    },
    /// The authority's key cannot be read.
    #[error("{path} is no private key: restore it from the backup")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rcgen::Error,
    },
    /// The authority's certificate and key are of two authorities.
    #[error("{key} is not the key of {cert}: restore both from the same backup")]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The index cannot be read.
    #[error("{path} is no index of certificates: restore it from the backup")]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The index holds a serial number that is none.
    #[error("{serial:?} in the index is no serial number: restore the index from the backup")]
    Serial {
        /// What stands there.
        serial: String,
    },
    /// A key, certificate or list could not be made.
    #[error("a key, certificate or revocation list could not be made")]
    Generate(#[source] rcgen::Error),
    /// The system gave no random numbers.
    #[error("the system gave no random numbers: try again")]
    Random,
    /// The validity does not end at a date that can be written.
    #[error("the validity does not end at a date that can be written: ask for less")]
    Validity,
    /// The certificate would be valid for longer than the authority.
    #[error("the certificate would end at {asked}, the CA ends at {limit}: ask for less")]
    OutlivesCa {
        /// The end that was asked for.
        asked: OffsetDateTime,
        /// The end of the authority.
        limit: OffsetDateTime,
    },
    /// A host's name cannot stand in a certificate.
    #[error("{name:?} cannot stand in a certificate: give a DNS name or an address")]
    Host {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: rcgen::Error,
    },
    /// Hosts were named for a peer that is no server.
    #[error("{peer} is no server: leave the host names out")]
    HostsOfClient {
        /// The peer.
        peer: PeerId,
    },
    /// The public key cannot be certified.
    #[error("the public key cannot be certified: give a SubjectPublicKeyInfo in DER")]
    PublicKey(#[source] rcgen::Error),
    /// The public key is none that a drive may have.
    #[error("the drive's public key cannot be certified")]
    DriveKey(#[source] TlsError),
    /// Nothing was issued under this name or serial number.
    #[error("nothing was issued as {selector:?}: list the certificates for their names")]
    NotIssued {
        /// What was asked for.
        selector: String,
    },
    /// Peers of several roles have this name.
    #[error("{selector:?} is the name of several peers: write <role>:<name>")]
    Ambiguous {
        /// What was asked for.
        selector: String,
    },
}

impl CaError {
    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
