//! The server's side: a certificate from every client, and files that may change under way.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::{
    ALPN, TlsError, VERSIONS, certificates, not_after, pem_blocks, private_key, provider,
    root_store,
};

/// The files of a server's TLS, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The server's certificate, intermediate ones behind it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CAs whose clients may connect.
    pub client_ca: PathBuf,
    /// Revocation lists. Once there is this file, each of the CAs needs a list in it: a client
    /// whose revocation cannot be looked up is refused.
    pub crl: Option<PathBuf>,
}

/// What [`ServerTls::reload`] put in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// SHA-256 of the server's certificate, in hexadecimal.
    pub certificate: String,
    /// When the first of the certificates ends, as [`ServerTls::expiry`].
    pub expiry: OffsetDateTime,
}

/// A server's TLS, which can be loaded again while connections are served.
///
/// Nothing is resumed, neither by tickets nor by sessions: a resumed session would skip the
/// client's certificate, and with it a revocation since. A connection that is open already stays
/// so; the server must end those of revoked peers itself.
#[derive(Debug)]
pub struct ServerTls {
    paths: Paths,
    loaded: RwLock<Arc<Loaded>>,
    /// The files as they were before the last attempt to load them, good or bad, so that a broken
    /// file is reported once and a repaired one is found.
    seen: Mutex<Vec<Stamp>>,
}

impl ServerTls {
    /// Loads the files.
    ///
    /// # Errors
    ///
    /// When one cannot be read or used.
    pub fn load(paths: &Paths) -> Result<Self, TlsError> {
        let seen = stamps(paths);
        let loaded = Loaded::load(paths)?;
        Ok(Self {
            paths: paths.clone(),
            loaded: RwLock::new(Arc::new(loaded)),
            seen: Mutex::new(seen),
        })
    }

    /// Loads the files again, for the connections that come from now on. On an error what was
    /// loaded before stays.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or used.
    pub fn reload(&self) -> Result<Reloaded, TlsError> {
        // Held to the end, so that of two reloads the one that read later also stores later.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = stamps(&self.paths);
        let loaded = Arc::new(Loaded::load(&self.paths)?);
        let reloaded = Reloaded {
            certificate: loaded.certificate.clone(),
            expiry: loaded.expiry,
        };
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(reloaded)
    }

    /// Whether a file is another than at the last [`ServerTls::load`] or [`ServerTls::reload`], by
    /// its modification time, length and inode. Cheap enough to ask every few seconds.
    pub fn changed_on_disk(&self) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen != stamps(&self.paths)
    }

    /// The configuration for the next connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.loaded().config)
    }

    /// Whether a client that showed this chain when it connected would be let in now: not
    /// revoked since, not expired, not of a CA that is gone. What was found is good until the
    /// files are loaded again or a certificate of the chain ends, and for a minute at most.
    pub fn admits(&self, client: &ShownChain) -> bool {
        self.admits_at(client, UnixTime::now())
    }

    pub(super) fn admits_at(&self, client: &ShownChain, now: UnixTime) -> bool {
        let ShownChain { chain, found } = client;
        let loaded = self.loaded();
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = &*found
            && Arc::ptr_eq(&found.by, &loaded)
            && (found.since..found.until).contains(&now.as_secs())
        {
            return true;
        }
        let admitted = chain.split_first().is_some_and(|(end, intermediates)| {
            loaded
                .verifier
                .verify_client_cert(end, intermediates, now)
                .is_ok()
        });
        *found = admitted.then(|| Found {
            since: now.as_secs(),
            until: chain
                .iter()
                .filter_map(|certificate| not_after(certificate)?.unix_timestamp().try_into().ok())
                .fold(now.as_secs().saturating_add(GOOD), u64::min),
            by: loaded,
        });
        admitted
    }

    /// When the first of the server's own and the clients' CA certificates ends. TLS does not hold
    /// an ended CA certificate against a client; the operator should.
    pub fn expiry(&self) -> OffsetDateTime {
        self.loaded().expiry
    }

    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How long a verified chain is not verified again, seconds.
const GOOD: u64 = 60;

/// The chain that a client showed when it connected, and what was last found of it.
#[derive(Debug)]
pub struct ShownChain {
    chain: Vec<CertificateDer<'static>>,
    found: Mutex<Option<Found>>,
}

/// A chain was good in this time, by these certificates and lists. Times are in seconds since 1970.
#[derive(Debug)]
struct Found {
    by: Arc<Loaded>,
    since: u64,
    until: u64,
}

impl ShownChain {
    /// A chain of which nothing is known yet, the client's own certificate first.
    #[must_use]
    pub const fn new(chain: Vec<CertificateDer<'static>>) -> Self {
        Self {
            chain,
            found: Mutex::new(None),
        }
    }
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    certificate: String,
    expiry: OffsetDateTime,
}

impl Loaded {
    fn load(paths: &Paths) -> Result<Self, TlsError> {
        let Paths {
            cert,
            key,
            client_ca,
            crl,
        } = paths;
        let chain = certificates(cert)?;
        let roots = certificates(client_ca)?;
        let expiry = soonest_end(cert, &chain)?.min(soonest_end(client_ca, &roots)?);
        let certificate = chain
            .first()
            .map(|own| hex::encode(Sha256::digest(own)))
            .unwrap_or_default();
        let lists: Vec<CertificateRevocationListDer<'static>> = match crl {
            Some(path) => pem_blocks(path, "a certificate revocation list")?,
            None => Vec::new(),
        };
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(root_store(client_ca, &roots)?),
            provider(),
        )
        .with_crls(lists)
        .build()
        .map_err(|source| TlsError::ClientVerifier {
            path: client_ca.clone(),
            source,
        })?;
        let identity = |source| TlsError::Identity {
            cert: cert.clone(),
            key: key.clone(),
            source,
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(identity)?
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_single_cert(chain, private_key(key)?)
            .map_err(identity)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            verifier,
            certificate,
            expiry,
        })
    }
}

fn soonest_end(
    path: &Path,
    certificates: &[CertificateDer<'_>],
) -> Result<OffsetDateTime, TlsError> {
    certificates
        .iter()
        .map(|der| not_after(der))
        .collect::<Option<Vec<_>>>()
        .and_then(|ends| ends.into_iter().min())
        .ok_or_else(|| TlsError::Certificate {
            path: path.into(),
            source: rustls::CertificateError::BadEncoding.into(),
        })
}

/// Modification time, length and inode of a file that is there.
pub(super) type Stamp = Option<(Option<SystemTime>, u64, u64)>;

fn stamps(paths: &Paths) -> Vec<Stamp> {
    let Paths {
        cert,
        key,
        client_ca,
        crl,
    } = paths;
    [Some(cert), Some(key), Some(client_ca), crl.as_ref()]
        .into_iter()
        .flatten()
        .map(|path| stamp(path))
        .collect()
}

pub(super) fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok(), metadata.len(), metadata.ino()))
}
