//! A small certificate authority, for sites that have none.
//!
//! ```text
//! DIR/ca.crt  ca.key  crl.pem  index.json  issued/<role>-<name>.{crt,key}
//! ```
//!
//! Keys are ECDSA P-256, signatures ECDSA with SHA-256. What was issued stands in the index before
//! the certificate exists, so that everything issued can be revoked. This authority is as safe as
//! its directory: who reads `ca.key` can be any peer.

use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, RevokedCertParams, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::{ExposeSecret as _, SecretString};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{PeerId, Role, SignatureScheme, TlsError};
use crate::files::FileLock;

mod error;
mod index;
mod replace;

pub use error::CaError;
pub use index::Entry;
use index::Index;
use replace::{Existing, write};

/// What to certify.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whom.
    pub peer: PeerId,
    /// Names and addresses under which a server is reached, beside `localhost` and `127.0.0.1`.
    /// Only for [`Role::Server`].
    pub hosts: Vec<String>,
    /// From when. [`Request::new`] sets it some minutes back, for peers whose clocks run late.
    pub not_before: OffsetDateTime,
    /// For how long from `not_before`.
    pub validity: Duration,
    /// The public key, a DER SubjectPublicKeyInfo. Without it a key pair is made.
    pub spki: Option<Vec<u8>>,
    /// Where the files go.
    pub output: Output,
}

impl Request {
    /// A certificate from now on, with a new key pair, into the authority's own directory.
    pub fn new(peer: PeerId, validity: Duration) -> Self {
        Self {
            peer,
            hosts: Vec::new(),
            not_before: backdated(),
            validity,
            spki: None,
            output: Output::Issued,
        }
    }
}

/// Where [`Ca::issue`] writes `<role>-<name>.crt` and `<role>-<name>.key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Under `issued` in the authority's directory.
    Issued,
    /// In this directory, which is made if need be.
    Directory(PathBuf),
    /// Nowhere; the caller has them in [`Issued`].
    Nowhere,
}

/// A new certificate.
#[derive(Debug)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// The private key (PKCS#8), where it was made here.
    pub key_pem: Option<SecretString>,
    /// The certificate's serial number, 32 hexadecimal digits.
    pub serial: String,
    /// The end of its validity.
    pub not_after: OffsetDateTime,
    /// The certificate's file, where one was written.
    pub cert_path: Option<PathBuf>,
    /// The key's file, where one was written.
    pub key_path: Option<PathBuf>,
}

/// The authority in a directory.
pub struct Ca {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
    not_after: OffsetDateTime,
}

impl Ca {
    /// Makes a new authority called `name` in `dir`, valid from now on, with an empty revocation
    /// list.
    ///
    /// # Errors
    ///
    /// [`CaError::Exists`] when there is one already; otherwise when a file cannot be written.
    pub fn init(dir: &Path, name: &str, validity: Duration) -> Result<Self, CaError> {
        create_dir(dir)?;
        let _lock = lock(dir)?;
        let (cert_path, key_path) = (dir.join(CERT), dir.join(KEY));
        for path in [&cert_path, &key_path] {
            if path.exists() {
                return Err(CaError::Exists { path: path.clone() });
            }
        }
        let key = KeyPair::generate().map_err(CaError::Generate)?;
        let not_before = backdated();
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.serial_number = Some(random_serial()?);
        params.not_before = not_before;
        params.not_after = end(not_before, validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(CaError::Generate)?;
        let key_pem = Zeroizing::new(key.serialize_pem());
        write(&key_path, key_pem.as_bytes(), PRIVATE, Existing::Keep)?;
        write(
            &cert_path,
            certificate.pem().as_bytes(),
            PUBLIC,
            Existing::Keep,
        )?;
        let ca = Self::open(dir)?;
        let index = Index::default();
        index.save(dir)?;
        ca.sign_crl(&index)?;
        Ok(ca)
    }

    /// Opens the authority in `dir`.
    ///
    /// # Errors
    ///
    /// When its certificate or key cannot be read, or the two do not fit.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        let (cert_path, key_path) = (dir.join(CERT), dir.join(KEY));
        let none = |path: &Path| matches!(path.try_exists(), Ok(false));
        if none(&cert_path) && none(&key_path) {
            return Err(CaError::Absent { path: dir.into() });
        }
        let cert_pem = fs::read_to_string(&cert_path).map_err(CaError::file("read", &cert_path))?;
        let key_pem = fs::read_to_string(&key_path)
            .map(Zeroizing::new)
            .map_err(CaError::file("read", &key_path))?;
        let unreadable = || CaError::Certificate {
            path: cert_path.clone(),
        };
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|_| unreadable())?;
        let (_, certificate) =
            x509_parser::parse_x509_certificate(&der).map_err(|_| unreadable())?;
        let not_after = super::not_after(&der).ok_or_else(unreadable)?;
        let key = KeyPair::from_pem(&key_pem).map_err(|source| CaError::Key {
            path: key_path.clone(),
            source,
        })?;
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(CaError::KeyMismatch {
                cert: cert_path,
                key: key_path,
            });
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|_| unreadable())?;
        Ok(Self {
            dir: dir.into(),
            issuer,
            cert_pem,
            not_after,
        })
    }

    /// The authority's certificate in PEM, which peers take as their root.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The file of [`Ca::cert_pem`].
    pub fn cert_path(&self) -> PathBuf {
        self.dir.join(CERT)
    }

    /// The file of the revocation list.
    pub fn crl_path(&self) -> PathBuf {
        self.dir.join(CRL)
    }

    /// The end of the authority's own validity.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Certifies a peer. Certificates that it has already stay valid until they are revoked.
    ///
    /// # Errors
    ///
    /// When the request asks for what cannot be certified, or a file cannot be written.
    pub fn issue(&self, request: &Request) -> Result<Issued, CaError> {
        let Request {
            peer,
            hosts,
            not_before,
            validity,
            spki,
            output,
        } = request;
        let not_after = end(*not_before, *validity)?;
        if not_after > self.not_after {
            return Err(CaError::OutlivesCa {
                asked: not_after,
                limit: self.not_after,
            });
        }
        let serial = random_serial()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(peer.name());
        params.serial_number = Some(serial.clone());
        params.not_before = *not_before;
        params.not_after = not_after;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match peer.role() {
            // One that reads another server's tables is its client.
            Role::Server => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            Role::Drive | Role::Proxy | Role::Operator => {
                vec![ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        params.subject_alt_names = alternative_names(peer, hosts)?;
        params.use_authority_key_identifier_extension = true;
        let (certificate, key_pem) = match spki {
            Some(spki) => {
                if peer.role() == Role::Drive {
                    SignatureScheme::of_key(spki).map_err(CaError::DriveKey)?;
                }
                let key = SubjectPublicKeyInfo::from_der(spki).map_err(CaError::PublicKey)?;
                (params.signed_by(&key, &self.issuer), None)
            }
            None => {
                let key = KeyPair::generate().map_err(CaError::Generate)?;
                let pem = SecretString::from(key.serialize_pem());
                (params.signed_by(&key, &self.issuer), Some(pem))
            }
        };
        let cert_pem = certificate.map_err(CaError::Generate)?.pem();
        let serial = hex::encode(serial.to_bytes());
        self.change_index(|index| {
            index.add(Entry::new(&serial, peer, *not_before, not_after));
        })?;
        let (cert_path, key_path) = self.deliver(peer, output, &cert_pem, key_pem.as_ref())?;
        Ok(Issued {
            cert_pem,
            key_pem,
            serial,
            not_after,
            cert_path,
            key_path,
        })
    }

    /// Certifies the public key of a KEK, for wrapping keys and nothing else. It names no peer, so
    /// it opens no door, and is not in the index. Whether its owner has the private half the
    /// caller has found out. DER.
    ///
    /// # Errors
    ///
    /// When it would outlive the authority, or the key is none.
    pub fn certify_kek(
        &self,
        spki: &[u8],
        subject: &crate::certificates::Subject,
        validity: Duration,
    ) -> Result<Vec<u8>, CaError> {
        let not_before = backdated();
        let not_after = end(not_before, validity)?;
        if not_after > self.not_after {
            return Err(CaError::OutlivesCa {
                asked: not_after,
                limit: self.not_after,
            });
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = subject.distinguished_name();
        params.serial_number = Some(random_serial()?);
        params.not_before = not_before;
        params.not_after = not_after;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
        params.use_authority_key_identifier_extension = true;
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(CaError::PublicKey)?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(CaError::Generate)?;
        Ok(certificate.der().to_vec())
    }

    /// Everything that was issued, oldest first.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, CaError> {
        Ok(Index::load(&self.dir)?.into_entries())
    }

    /// Revokes the certificate with this serial number, or all of the peer `<role>:<name>` or
    /// `<name>`, and signs the revocation list anew. Returns what is now revoked; to repeat it is
    /// no error.
    ///
    /// # Errors
    ///
    /// [`CaError::NotIssued`] or [`CaError::Ambiguous`] when `selector` does not name one peer or
    /// certificate; otherwise when a file cannot be written.
    pub fn revoke(&self, selector: &str) -> Result<Vec<Entry>, CaError> {
        let now = OffsetDateTime::now_utc();
        let _lock = lock(&self.dir)?;
        let mut index = Index::load(&self.dir)?;
        let revoked = index.revoke(selector, now)?;
        // The index first: from it the next list is made, and a crash in between is mended by
        // revoking again.
        index.save(&self.dir)?;
        self.sign_crl(&index)?;
        Ok(revoked)
    }

    fn change_index(&self, change: impl FnOnce(&mut Index)) -> Result<(), CaError> {
        let _lock = lock(&self.dir)?;
        let mut index = Index::load(&self.dir)?;
        change(&mut index);
        index.save(&self.dir)
    }

    /// The list is good for as long as the authority is, because nobody signs it anew in between.
    fn sign_crl(&self, index: &Index) -> Result<(), CaError> {
        let revoked_certs = index
            .revoked()?
            .into_iter()
            .map(|(serial, revocation_time)| RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial),
                revocation_time,
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let list = CertificateRevocationListParams {
            this_update: backdated(),
            next_update: self.not_after,
            crl_number: SerialNumber::from(index.crl_number()),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = list
            .signed_by(&self.issuer)
            .and_then(|list| list.pem())
            .map_err(CaError::Generate)?;
        write(&self.crl_path(), pem.as_bytes(), PUBLIC, Existing::Replace)
    }

    fn deliver(
        &self,
        peer: &PeerId,
        output: &Output,
        cert_pem: &str,
        key_pem: Option<&SecretString>,
    ) -> Result<(Option<PathBuf>, Option<PathBuf>), CaError> {
        let dir = match output {
            Output::Issued => &self.dir.join("issued"),
            Output::Directory(dir) => dir,
            Output::Nowhere => return Ok((None, None)),
        };
        create_dir(dir)?;
        let stem = format!("{}-{}", peer.role(), peer.name());
        let cert_path = dir.join(format!("{stem}.crt"));
        let key_path = dir.join(format!("{stem}.key"));
        let written_key = match key_pem {
            Some(pem) => {
                let pem = pem.expose_secret().as_bytes();
                write(&key_path, pem, PRIVATE, Existing::Replace)?;
                Some(key_path)
            }
            None => None,
        };
        write(&cert_path, cert_pem.as_bytes(), PUBLIC, Existing::Replace)?;
        Ok((Some(cert_path), written_key))
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

fn alternative_names(peer: &PeerId, hosts: &[String]) -> Result<Vec<SanType>, CaError> {
    let bad_name = |name: &str, source| CaError::Host {
        name: name.into(),
        source,
    };
    let urn = peer.urn();
    let uri = urn
        .as_str()
        .try_into()
        .map_err(|source| bad_name(&urn, source))?;
    let mut names = vec![SanType::URI(uri)];
    if peer.role() != Role::Server {
        return match hosts.first() {
            Some(_) => Err(CaError::HostsOfClient { peer: peer.clone() }),
            None => Ok(names),
        };
    }
    let local = ["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()];
    for host in local.iter().chain(hosts) {
        let name = match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(
                host.as_str()
                    .try_into()
                    .map_err(|source| bad_name(host, source))?,
            ),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// 16 bytes, the first of which is neither negative nor zero in DER, so that the number's bytes
/// are the same everywhere (RFC 5280, section 4.1.2.2).
fn random_serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CaError::Random)?;
    let [first, ..] = &mut bytes;
    *first = (*first & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn end(not_before: OffsetDateTime, validity: Duration) -> Result<OffsetDateTime, CaError> {
    time::Duration::try_from(validity)
        .ok()
        .and_then(|validity| not_before.checked_add(validity))
        .ok_or(CaError::Validity)
}

/// A little before now, in whole seconds, as certificates know no others.
fn backdated() -> OffsetDateTime {
    let then = OffsetDateTime::now_utc() - CLOCK_SKEW;
    then.replace_nanosecond(0).unwrap_or(then)
}

fn create_dir(dir: &Path) -> Result<(), CaError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(CaError::file("create directory", dir))
}

/// Keeps two processes from writing the index at the same time.
fn lock(dir: &Path) -> Result<FileLock, CaError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        .open(&path)
        .map_err(CaError::file("open", &path))?;
    FileLock::wait(file).map_err(CaError::file("lock", &path))
}

const CERT: &str = "ca.crt";
const KEY: &str = "ca.key";
const CRL: &str = "crl.pem";
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;
/// How far back validity begins.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests;
