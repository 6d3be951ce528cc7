//! The side of drives, proxies and operators.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use time::OffsetDateTime;

use super::server::{Stamp, stamp};
use super::{
    ALPN, PeerError, PeerId, TlsError, VERSIONS, certificates, not_after, pem_blocks, private_key,
    provider, root_store,
};

/// The files of a client's TLS, all PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClientPaths {
    /// The CAs of the servers' certificates.
    pub ca: PathBuf,
    /// The client's certificate, intermediate ones behind it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl ClientPaths {
    /// Whom the certificate names.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn peer(&self) -> Result<Result<PeerId, PeerError>, TlsError> {
        let chain = certificates(&self.certificate)?;
        Ok(chain
            .first()
            .ok_or(PeerError::Certificate)
            .and_then(|own| PeerId::from_certificate(own)))
    }

    /// When the certificate ends.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn expiry(&self) -> Result<Option<OffsetDateTime>, TlsError> {
        let chain = certificates(&self.certificate)?;
        Ok(chain.first().and_then(|own| not_after(own)))
    }

    fn stamps(&self) -> [Stamp; 3] {
        let Self {
            ca,
            certificate,
            key,
        } = self;
        [ca, certificate, key].map(|path| stamp(path))
    }
}

/// A client's TLS, whose files may change under way.
#[derive(Debug)]
pub struct ClientTls {
    paths: ClientPaths,
    loaded: Mutex<(Arc<ClientConfig>, [Stamp; 3])>,
}

impl ClientTls {
    /// Loads the files.
    ///
    /// # Errors
    ///
    /// When one cannot be read or used.
    pub fn load(paths: ClientPaths) -> Result<Self, TlsError> {
        let seen = paths.stamps();
        let config = client_config(&paths.ca, &paths.certificate, &paths.key)?;
        Ok(Self {
            paths,
            loaded: Mutex::new((Arc::new(config), seen)),
        })
    }

    /// The configuration for the next connection. Files that are others now are taken in; where
    /// they are of no use, what was loaded before stays, and the log says so once.
    #[must_use]
    pub fn current(&self) -> Arc<ClientConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let (config, seen) = &mut *loaded;
        let now = self.paths.stamps();
        if *seen != now {
            *seen = now;
            let ClientPaths {
                ca,
                certificate,
                key,
            } = &self.paths;
            match client_config(ca, certificate, key) {
                Ok(fresh) => {
                    tracing::info!(certificate = %certificate.display(), "certificates taken in anew");
                    *config = Arc::new(fresh);
                }
                Err(error) => {
                    tracing::error!(%error, "the changed certificates were not taken in; the old ones stay");
                }
            }
        }
        Arc::clone(config)
    }
}

/// TLS for whoever sends audit records to a receiver of the CAs in `ca`, showing a certificate where
/// one is given: certificate and key, PEM.
///
/// # Errors
///
/// When a file cannot be read or used.
pub fn sender_config(
    ca: &Path,
    identity: Option<(&Path, &Path)>,
) -> Result<ClientConfig, TlsError> {
    if let Some((cert, key)) = identity {
        let mut config = client_config(ca, cert, key)?;
        config.alpn_protocols.clear();
        return Ok(config);
    }
    let failed = |source| TlsError::Certificate {
        path: ca.into(),
        source,
    };
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(failed)?
        .with_root_certificates(root_store(ca, &certificates(ca)?)?)
        .with_no_client_auth())
}

/// Looks at as many of a client's files as are named: that each holds what it should, and that the
/// key is the certificate's.
///
/// # Errors
///
/// When a file cannot be read or used.
pub fn check_client_files(
    ca: Option<&Path>,
    cert: Option<&Path>,
    key: Option<&Path>,
) -> Result<(), TlsError> {
    if let Some(ca) = ca {
        root_store(ca, &certificates(ca)?)?;
    }
    let chain = cert.map(certificates).transpose()?;
    let private = key.map(private_key).transpose()?;
    if let (Some(cert), Some(key), Some(chain), Some(private)) = (cert, key, chain, private) {
        let identity = |source| TlsError::Identity {
            cert: cert.into(),
            key: key.into(),
            source,
        };
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(identity)?
            .with_root_certificates(RootCertStore::empty())
            .with_client_auth_cert(chain, private)
            .map_err(identity)?;
    }
    Ok(())
}

/// TLS for a client that shows `cert` and trusts servers of the CAs in `ca`. All three files are
/// PEM; `cert` may hold intermediate certificates behind the client's own.
///
/// # Errors
///
/// When a file cannot be read or used.
pub fn client_config(ca: &Path, cert: &Path, key: &Path) -> Result<ClientConfig, TlsError> {
    client_config_with(ca, cert, key, None)
}

/// The same with revocation lists of the servers' CAs, PEM: each of the CAs needs one then.
///
/// # Errors
///
/// When a file cannot be read or used.
pub fn client_config_with(
    ca: &Path,
    cert: &Path,
    key: &Path,
    crl: Option<&Path>,
) -> Result<ClientConfig, TlsError> {
    let roots = Arc::new(root_store(ca, &certificates(ca)?)?);
    let lists: Vec<CertificateRevocationListDer<'static>> = match crl {
        Some(path) => pem_blocks(path, "a certificate revocation list")?,
        None => Vec::new(),
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .with_crls(lists)
        .build()
        .map_err(|source| TlsError::ClientVerifier {
            path: ca.into(),
            source,
        })?;
    let identity = |source| TlsError::Identity {
        cert: cert.into(),
        key: key.into(),
        source,
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(identity)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(certificates(cert)?, private_key(key)?)
        .map_err(identity)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Our server resumes nothing, so that there is nothing to remember.
    config.resumption = Resumption::disabled();
    Ok(config)
}
