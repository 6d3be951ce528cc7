//! Who a software drive is: a directory with its names and its private keys.
//!
//! ```text
//! drive.toml       serial number, world wide name, kind
//! wrapping.key     RSA-2048, PKCS#8 PEM, mode 0600: data keys are wrapped under it
//! certificate.key  ECDSA P-256, PKCS#8 PEM, mode 0600: signs session keys
//! drive.crt        its certificate, PEM, once a drive CA has issued one
//! ```

mod kind;
mod wrapping_key;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use der::pem::{self, LineEnding};
use secrecy::{ExposeSecret, SecretBox};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

use crate::{
    drive::{ChallengeError, DriveSerial, Wwn, session_key_message},
    files,
    key::{Sedk, SedkForm},
    t10::{DeviceId, DevicePublicKey, PublicKeyError, WrappedKey},
};

pub use kind::DriveKind;
use wrapping_key::{WrappingKey, data_key};

/// A drive in software, with its private keys in memory.
pub struct SoftDrive {
    directory: PathBuf,
    names: Init,
    wrapping: WrappingKey,
    certificate_key: EcdsaKeyPair,
    certificate: Option<Vec<u8>>,
    session: Option<WrappingKey>,
}

impl SoftDrive {
    /// Makes a new drive: generates its keys and writes its directory, which must not hold a
    /// drive yet.
    ///
    /// # Errors
    ///
    /// [`SoftDriveError`]; [`SoftDriveError::Exists`] where there is a drive already.
    pub fn init(directory: &Path, names: &Init) -> Result<Self, SoftDriveError> {
        let config_path = directory.join(CONFIG);
        if config_path.exists() {
            return Err(SoftDriveError::Exists {
                path: config_path.clone(),
            });
        }
        files::private_dir(directory).map_err(|error| SoftDriveError::io(directory, error))?;

        let wrapping = WrappingKey::generate()?;
        write_key(&directory.join(WRAPPING_KEY), wrapping.pkcs8())?;
        let certificate_key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|_| SoftDriveError::Crypto)?;
        let pkcs8 = certificate_key
            .to_pkcs8v1()
            .map_err(|_| SoftDriveError::Crypto)?;
        write_key(&directory.join(CERTIFICATE_KEY), pkcs8.as_ref())?;

        // The configuration is written last: with it the drive exists, and its keys are there.
        let config = Config {
            version: CONFIG_VERSION,
            serial: names.serial.clone(),
            wwn: names.wwn,
            kind: names.kind,
        };
        let text = toml::to_string(&config).map_err(|error| SoftDriveError::WriteConfig {
            path: config_path.clone(),
            source: Box::new(error),
        })?;
        files::write_private(&config_path, text.as_bytes())
            .map_err(|error| SoftDriveError::io(&config_path, error))?;
        Self::open(directory)
    }

    /// Opens the drive in a directory.
    ///
    /// # Errors
    ///
    /// [`SoftDriveError`] that names the file.
    pub fn open(directory: &Path) -> Result<Self, SoftDriveError> {
        let path = directory.join(CONFIG);
        let text = read(&path)?;
        let Config {
            version,
            serial,
            wwn,
            kind,
        } = toml::from_slice(&text).map_err(|error| SoftDriveError::Config {
            path: path.clone(),
            source: Box::new(error),
        })?;
        if version != CONFIG_VERSION {
            return Err(SoftDriveError::Version { path, got: version });
        }
        let wrapping = WrappingKey::from_pkcs8(read_key(&directory.join(WRAPPING_KEY))?)?;
        let certificate_key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            &read_key(&directory.join(CERTIFICATE_KEY))?,
        )
        .map_err(|_| SoftDriveError::KeyFile {
            path: directory.join(CERTIFICATE_KEY),
        })?;
        let mut drive = Self {
            directory: directory.to_owned(),
            names: Init { serial, wwn, kind },
            wrapping,
            certificate_key,
            certificate: None,
            session: None,
        };
        let path = directory.join(CERTIFICATE);
        if path.exists() {
            drive.certificate = Some(drive.checked_certificate(&path, &read(&path)?)?);
        }
        Ok(drive)
    }

    /// The directory that it is kept in.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its serial number.
    pub fn serial(&self) -> &DriveSerial {
        &self.names.serial
    }

    /// Its world wide name.
    pub fn wwn(&self) -> Wwn {
        self.names.wwn
    }

    /// What it is like.
    pub fn kind(&self) -> DriveKind {
        self.names.kind
    }

    /// The public key that data keys are wrapped under, as DER SubjectPublicKeyInfo.
    pub fn public_key_spki(&self) -> &[u8] {
        self.wrapping.spki()
    }

    /// The same key, as its page 0031h says it.
    ///
    /// # Errors
    ///
    /// [`PublicKeyError`], which no key that [`Self::init`] has made meets.
    pub fn public_key(&self) -> Result<DevicePublicKey, PublicKeyError> {
        DevicePublicKey::from_spki(self.wrapping.spki())
    }

    /// SHA-256 of [`Self::public_key_spki`], 64 hexadecimal digits, for an operator to compare.
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(self.wrapping.spki()))
    }

    /// The public key that a drive CA certifies, as DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    ///
    /// [`SoftDriveError::Crypto`] where the library fails.
    pub fn certificate_spki(&self) -> Result<Vec<u8>, SoftDriveError> {
        let spki: PublicKeyX509Der<'_> = self
            .certificate_key
            .public_key()
            .as_der()
            .map_err(|_| SoftDriveError::Crypto)?;
        Ok(spki.as_ref().to_vec())
    }

    /// Its certificate, in DER, where it has one.
    pub fn certificate(&self) -> Option<&[u8]> {
        self.certificate.as_deref()
    }

    /// Takes the certificate that a drive CA has issued, in PEM, and keeps it.
    ///
    /// # Errors
    ///
    /// [`SoftDriveError::Certificate`] where it is not for this drive's key.
    pub fn install_certificate(&mut self, pem: &[u8]) -> Result<(), SoftDriveError> {
        let path = self.directory.join(CERTIFICATE);
        let der = self.checked_certificate(&path, pem)?;
        files::write_private(&path, pem).map_err(|error| SoftDriveError::io(&path, error))?;
        self.certificate = Some(der);
        Ok(())
    }

    /// Makes a fresh session key, which data keys are wrapped under from now on, and signs it
    /// together with the server's challenge.
    ///
    /// # Errors
    ///
    /// [`SoftDriveError::NoCertificate`] where nobody could check the signature, and
    /// [`SoftDriveError::Challenge`] for a challenge of a length that is not signed.
    pub fn session_key(&mut self, challenge: &[u8]) -> Result<SessionKey, SoftDriveError> {
        let certificate = self
            .certificate
            .clone()
            .ok_or(SoftDriveError::NoCertificate)?;
        let session = WrappingKey::generate()?;
        let message = session_key_message(challenge, &self.names.serial, session.spki())?;
        let signature = self
            .certificate_key
            .sign(&SystemRandom::new(), &message)
            .map_err(|_| SoftDriveError::Crypto)?;
        let spki = session.spki().to_vec();
        self.session = Some(session);
        Ok(SessionKey {
            spki,
            signature: signature.as_ref().to_vec(),
            certificate,
        })
    }

    /// Forgets the session key.
    pub fn end_session(&mut self) {
        self.session = None;
    }

    /// The data key of an SEDK, with the session key where there is one.
    ///
    /// # Errors
    ///
    /// [`UnwrapError`]; what is wrong with a ciphertext is never said.
    pub fn unwrap_sedk(&self, sedk: &Sedk) -> Result<SecretBox<[u8; 32]>, UnwrapError> {
        let form = sedk.form();
        if !self.names.kind.takes(form) {
            return Err(UnwrapError::Form { form });
        }
        let bytes = sedk.bytes().expose_secret();
        let key = self.session.as_ref().unwrap_or(&self.wrapping);
        match form {
            SedkForm::T10Wrapped => {
                let wrapped = WrappedKey::decode(bytes).map_err(|_| UnwrapError::Refused)?;
                self.unwrap_t10(key, &wrapped)
            }
            SedkForm::RsaOaepSha1 => key.unwrap(&OAEP_SHA1_MGF1SHA1, None, bytes),
            SedkForm::T10Plain => data_key(bytes),
        }
    }

    /// The data key of a KEY field that came over SCSI. It is wrapped under the key of page
    /// 0031h; session keys are not part of that dialogue.
    pub(super) fn unwrap_key_field(
        &self,
        wrapped: &WrappedKey,
    ) -> Result<SecretBox<[u8; 32]>, UnwrapError> {
        self.unwrap_t10(&self.wrapping, wrapped)
    }

    fn unwrap_t10(
        &self,
        key: &WrappingKey,
        wrapped: &WrappedKey,
    ) -> Result<SecretBox<[u8; 32]>, UnwrapError> {
        let label = wrapped.label();
        let expected = DeviceId::from(self.names.wwn);
        if *label.device() != expected {
            return Err(UnwrapError::OtherDrive {
                expected,
                got: label.device().clone(),
            });
        }
        key.unwrap(
            &OAEP_SHA256_MGF1SHA256,
            Some(&label.bytes()),
            wrapped.wrapped(),
        )
    }

    fn checked_certificate(&self, path: &Path, pem: &[u8]) -> Result<Vec<u8>, SoftDriveError> {
        let refused = || SoftDriveError::Certificate {
            path: path.to_owned(),
        };
        let (tag, der) = pem::decode_vec(pem).map_err(|_| refused())?;
        let (rest, certificate) = parse_x509_certificate(&der).map_err(|_| refused())?;
        let ours = certificate.public_key().raw == self.certificate_spki()?;
        if tag != "CERTIFICATE" || !rest.is_empty() || !ours {
            return Err(refused());
        }
        Ok(der)
    }
}

impl fmt::Debug for SoftDrive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftDrive")
            .field("directory", &self.directory)
            .field("names", &self.names)
            .field("certified", &self.certificate.is_some())
            .field("in_session", &self.session.is_some())
            .finish_non_exhaustive()
    }
}

/// What a new drive is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Init {
    /// Its serial number.
    pub serial: DriveSerial,
    /// Its world wide name.
    pub wwn: Wwn,
    /// What it is like.
    pub kind: DriveKind,
}

/// A session key with what vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionKey {
    /// The public key, as DER SubjectPublicKeyInfo (RSA-2048).
    pub spki: Vec<u8>,
    /// ECDSA P-256 with SHA-256, as DER, over [`session_key_message`].
    pub signature: Vec<u8>,
    /// The certificate of the key that signed, in DER.
    pub certificate: Vec<u8>,
}

fn read(path: &Path) -> Result<Vec<u8>, SoftDriveError> {
    files::read_limited(path, MAX_FILE_LEN).map_err(|error| SoftDriveError::io(path, error))
}

fn read_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, SoftDriveError> {
    let text = Zeroizing::new(read(path)?);
    match pem::decode_vec(&text) {
        Ok((PRIVATE_KEY, der)) => Ok(Zeroizing::new(der)),
        Ok(_) | Err(_) => Err(SoftDriveError::KeyFile {
            path: path.to_owned(),
        }),
    }
}

fn write_key(path: &Path, pkcs8: &[u8]) -> Result<(), SoftDriveError> {
    let text = pem::encode_string(PRIVATE_KEY, LineEnding::LF, pkcs8)
        .map(Zeroizing::new)
        .map_err(|_| SoftDriveError::Crypto)?;
    files::write_private(path, text.as_bytes()).map_err(|error| SoftDriveError::io(path, error))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    version: u32,
    serial: DriveSerial,
    wwn: Wwn,
    kind: DriveKind,
}

/// Why a software drive cannot be made, opened or asked for a session key.
#[derive(Debug, thiserror::Error)]
pub enum SoftDriveError {
    /// There is a drive in the directory already.
    #[error("{path} exists already: a drive's keys are never overwritten")]
    Exists {
        /// Its configuration.
        path: PathBuf,
    },
    /// A kind that we do not know.
    #[error("expected a drive kind \"3592\", \"lto\" or \"lto-plain\", got {got:?}")]
    Kind {
        /// What was given.
        got: String,
    },
    /// A file cannot be read or written.
    #[error("cannot read or write {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration is not one.
    #[error("{path} is no configuration of a software drive")]
    Config {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// The configuration cannot be put in words.
    #[error("{path} cannot be written")]
    WriteConfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<toml::ser::Error>,
    },
    /// The configuration is of another version.
    #[error("{path} has version {got}, expected 1")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        got: u32,
    },
    /// A private key file is not one.
    #[error("{path} holds no private key of the expected kind in PKCS#8 PEM")]
    KeyFile {
        /// The file.
        path: PathBuf,
    },
    /// The wrapping key is not RSA-2048.
    #[error("expected an RSA-2048 private key in wrapping.key")]
    WrappingKey,
    /// The certificate is none, or certifies another key.
    #[error("{path} holds no PEM certificate for this drive's certificate key")]
    Certificate {
        /// The file.
        path: PathBuf,
    },
    /// A session key that nobody could check.
    #[error("the drive has no certificate, so nobody could check its session key")]
    NoCertificate,
    /// A challenge that is not signed.
    #[error(transparent)]
    Challenge(#[from] ChallengeError),
    /// The cryptographic library fails.
    #[error("the cryptographic library failed")]
    Crypto,
}

impl SoftDriveError {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// Why an SEDK gives no data key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnwrapError {
    /// A form that this kind of drive does not take.
    #[error("the drive takes no data key in the form {form}")]
    Form {
        /// The form.
        form: SedkForm,
    },
    /// Wrapped for another drive.
    #[error("expected a data key for the drive {expected}, got one for {got}")]
    OtherDrive {
        /// This drive.
        expected: DeviceId,
        /// The drive in the label.
        got: DeviceId,
    },
    /// Wrapped under another key, or damaged. Which of them is not said, as the answer would help
    /// to find out the data key.
    #[error("the drive cannot unwrap the data key")]
    Refused,
}

const CONFIG: &str = "drive.toml";
const CONFIG_VERSION: u32 = 1;
const WRAPPING_KEY: &str = "wrapping.key";
const CERTIFICATE_KEY: &str = "certificate.key";
const CERTIFICATE: &str = "drive.crt";
const PRIVATE_KEY: &str = "PRIVATE KEY";

/// None of the files has more than 4 KiB.
const MAX_FILE_LEN: u64 = 64 * 1024;

#[cfg(test)]
pub(super) mod tests;
