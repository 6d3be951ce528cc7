//! The messages of the door for drives and proxies: JSON over HTTPS.
//!
//! Bytes are base64 (RFC 4648, section 4). Unknown fields are refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::drive::DriveSerial;
use crate::job::JobName;
use crate::key::{DataKeyId, Eedk, Encoding, KekRef, KeyLabel, Sedk};
use crate::store::EedkState;
use crate::volser::Volser;

/// Most EEDKs of one cartridge.
pub const MAX_EEDKS: usize = 2;

/// Bytes as base64.
#[derive(Clone, Debug, PartialEq, Eq, utoipa::ToSchema)]
#[schema(value_type = String, format = Byte)]
pub struct Base64(pub Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        STANDARD.encode(&self.0).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD
            .decode(&text)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

/// Bytes that hold a key, as base64. Serialising them is what hands them to the drive.
#[derive(Debug, utoipa::ToSchema)]
#[schema(value_type = String, format = Byte)]
pub struct SecretBytes(pub SecretSlice<u8>);

impl Serialize for SecretBytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Zeroizing::new(STANDARD.encode(self.0.expose_secret())).serialize(to)
    }
}

impl<'de> Deserialize<'de> for SecretBytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(from)?);
        STANDARD
            .decode(text.as_bytes())
            .map(|bytes| Self(bytes.into()))
            .map_err(serde::de::Error::custom)
    }
}

/// The drive that a request is about.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveInRequest {
    /// Its serial, 12 characters.
    #[schema(value_type = String)]
    pub serial: DriveSerial,
    /// The wrapping key that it shows (page 0031h), SubjectPublicKeyInfo DER;
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<Base64>,
    /// Whether it stores EEDKs on the cartridge itself (page 0010h, MAXIMUM
    /// EEDK COUNT); then the SPOUT page of a create carries them.
    #[serde(default)]
    pub stores_eedks: bool,
    /// or a session key that it signed with the server's challenge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_key: Option<SessionKeyInRequest>,
}

/// A session key, signed by the drive.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionKeyInRequest {
    /// SubjectPublicKeyInfo DER.
    pub public_key: Base64,
    /// Over the domain, the challenge, the serial and the key.
    pub signature: Base64,
    /// The drive's certificate, DER.
    pub certificate: Base64,
    /// From `POST /v1/challenge` of this same server.
    pub challenge: Base64,
}

/// `POST /v1/keys/create`
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// The same in every retry: a retry gets the same data key. One in order of time (version 7, RFC 9562,
    /// 5.7) keeps the busy end of the history's indexes in memory.
    pub request_id: Uuid,
    /// Who writes.
    pub drive: DriveInRequest,
    /// The cartridge.
    #[schema(value_type = String)]
    pub volser: Volser,
    /// First KEK; where neither is given the drive table or the defaults decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<KekNamed>)]
    pub kek1: Option<KekRef>,
    /// Second KEK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<KekNamed>)]
    pub kek2: Option<KekRef>,
    /// The host's name of the job that writes, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub job: Option<JobName>,
}

/// `POST /v1/keys/resolve`
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// Names the request in records.
    pub request_id: Uuid,
    /// Who reads.
    pub drive: DriveInRequest,
    /// The cartridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub volser: Option<Volser>,
    /// The cartridge's EEDKs, DER; there may be none where `dki` is given.
    #[serde(default)]
    pub eedks: Vec<Base64>,
    /// The data key that the cartridge's blocks name (A-KAD). Then EEDKs of another one are left aside,
    /// and those that the server has in its history for it are tried too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub dki: Option<DataKeyId>,
    /// Whether the drive wants to append under the key.
    #[serde(default)]
    pub append: bool,
}

/// `POST /v1/keys/rekey`
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RekeyRequest {
    /// The same in every retry: a retry gets the same EEDKs.
    pub request_id: Uuid,
    /// The drive that holds the cartridge.
    #[schema(value_type = String)]
    pub serial: DriveSerial,
    /// The cartridge.
    #[schema(value_type = String)]
    pub volser: Volser,
    /// The cartridge's EEDKs, DER.
    pub eedks: Vec<Base64>,
    /// First new KEK.
    #[schema(value_type = KekNamed)]
    pub kek1: KekRef,
    /// Second new KEK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<KekNamed>)]
    pub kek2: Option<KekRef>,
}

/// `POST /v1/keys/confirm`
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmRequest {
    /// That of the create or rekey whose EEDKs this is about.
    pub request_id: Uuid,
    /// The drive that tells.
    #[schema(value_type = String)]
    pub serial: DriveSerial,
    /// The data key.
    #[schema(value_type = String)]
    pub dki: DataKeyId,
    /// Whether the EEDKs are on the cartridge now.
    pub stored: bool,
}

/// A KEK as requests name it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KekNamed {
    /// Its label.
    pub label: String,
    /// `label` (default) or `hash`.
    pub encoding: Option<String>,
}

/// An EEDK in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EedkInAnswer {
    /// Its KEK's label here; none where the KEK is not known here.
    #[schema(value_type = Option<String>)]
    pub label: Option<KeyLabel>,
    /// How it names its KEK.
    #[schema(value_type = String)]
    pub encoding: Encoding,
    /// DER, to be stored on the cartridge.
    pub eedk: Base64,
}

/// Answer to a create.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreateAnswer {
    /// The request's.
    pub request_id: Uuid,
    /// The data key's identifier.
    #[schema(value_type = String)]
    pub dki: DataKeyId,
    /// For the cartridge.
    pub eedks: Vec<EedkInAnswer>,
    /// For the drive.
    #[schema(value_type = Object)]
    pub sedk: Sedk,
    /// The whole SPOUT 0010h parameter list, for the forms that T10 knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spout: Option<SecretBytes>,
}

/// Answer to a resolve.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ResolveAnswer {
    /// The request's.
    pub request_id: Uuid,
    /// The data key's identifier.
    #[schema(value_type = String)]
    pub dki: DataKeyId,
    /// The EEDKs that were tried, of the cartridge and of the history, with their labels here where they are known.
    pub eedks: Vec<EedkInAnswer>,
    /// Those that the server's history has for the data key that the request named: what the
    /// cartridge should carry. Empty where none was named or nothing is known of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub catalog: Vec<EedkInAnswer>,
    /// EEDKs of a rekey that the cartridge has not got yet: to be stored in place of its own when it
    /// may be written, read back, and confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer: Option<NewerEedks>,
    /// Which EEDK opened, from 0: those of the request, without any of another data key than the one
    /// that it names, then those of the history.
    pub opened: usize,
    /// Whether the one that opened was issued here.
    pub issued_here: bool,
    /// For the drive.
    #[schema(value_type = Object)]
    pub sedk: Sedk,
    /// The whole SPOUT 0010h parameter list, for the forms that T10 knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spout: Option<SecretBytes>,
}

/// EEDKs that are to be stored on a cartridge in place of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NewerEedks {
    /// The request to confirm, once they are read back from the cartridge.
    pub request_id: Uuid,
    /// All that the cartridge is to carry.
    pub eedks: Vec<EedkInAnswer>,
}

/// Answer to a rekey.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RekeyAnswer {
    /// The request's.
    pub request_id: Uuid,
    /// The data key's identifier, unchanged.
    #[schema(value_type = String)]
    pub dki: DataKeyId,
    /// To be stored in place of the old ones.
    pub eedks: Vec<EedkInAnswer>,
}

/// Answer to a confirm.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfirmAnswer {
    /// The request's.
    pub request_id: Uuid,
    /// How far those EEDKs got.
    pub state: EedkState,
}

/// Answer to `POST /v1/challenge`
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ChallengeAnswer {
    /// To be signed with the session key; good once, for 60 s.
    pub challenge: Base64,
}

/// SHA-256 of what a request means, so that a retry is known from another
/// request under the same id. The drive's session key is new in each retry.
fn digest(parts: &[&dyn erased::Text]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        let text = part.text();
        hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(text);
    }
    hash.finalize().into()
}

mod erased {
    pub(super) trait Text {
        fn text(&self) -> Vec<u8>;
    }
    impl<T: serde::Serialize> Text for T {
        fn text(&self) -> Vec<u8> {
            serde_json::to_vec(self).unwrap_or_default()
        }
    }
}

impl CreateRequest {
    /// SHA-256 of what it means.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let Self {
            request_id: _,
            drive,
            volser,
            kek1,
            kek2,
            job: _,
        } = self;
        digest(&[&"create", &drive.serial, volser, kek1, kek2])
    }
}

impl RekeyRequest {
    /// SHA-256 of what it means.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let Self {
            request_id: _,
            serial,
            volser,
            eedks,
            kek1,
            kek2,
        } = self;
        digest(&[&"rekey", serial, volser, eedks, kek1, kek2])
    }
}

/// Reads the EEDKs of a request, each for itself.
///
/// # Errors
/// There are fewer than the least, or too many.
pub fn eedks(from: &[Base64], least: usize) -> Result<Vec<Result<Eedk, String>>, String> {
    if from.len() < least || from.len() > MAX_EEDKS {
        return Err(format!(
            "expected {least} to {MAX_EEDKS} EEDKs of the cartridge, got {}",
            from.len()
        ));
    }
    Ok(from
        .iter()
        .enumerate()
        .map(|(index, bytes)| {
            Eedk::decode(&bytes.0).map_err(|error| format!("EEDK {}: {error}", index + 1))
        })
        .collect())
}
