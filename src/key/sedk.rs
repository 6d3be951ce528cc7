//! The SEDK: a data key wrapped for one drive.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::SerializeStruct,
};
use zeroize::Zeroizing;

use crate::t10::{PageError, WrappedKey};

/// The forms in which a drive takes its data key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SedkForm {
    /// T10 KEY FORMAT 02h: RSAES-OAEP with SHA-256, bound to the drive by its label.
    #[serde(rename = "t10-02h")]
    T10Wrapped,
    /// T10 KEY FORMAT 00h: the data key in clear, for drives that know nothing else.
    #[serde(rename = "t10-00h")]
    T10Plain,
    /// RSAES-OAEP with SHA-1 and an empty label, all that some tokens can wrap. It is bound to
    /// the drive by its key alone.
    #[serde(rename = "rsa-oaep-sha1")]
    RsaOaepSha1,
}

impl SedkForm {
    /// Its name in configuration and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::T10Wrapped => "t10-02h",
            Self::T10Plain => "t10-00h",
            Self::RsaOaepSha1 => "rsa-oaep-sha1",
        }
    }
}

impl FromStr for SedkForm {
    type Err = SedkError;

    fn from_str(given: &str) -> Result<Self, SedkError> {
        [Self::T10Wrapped, Self::T10Plain, Self::RsaOaepSha1]
            .into_iter()
            .find(|form| form.as_str().eq_ignore_ascii_case(given))
            .ok_or_else(|| SedkError::UnknownForm {
                got: given.to_owned(),
            })
    }
}

impl fmt::Display for SedkForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A data key as one drive takes it.
///
/// ```text
/// t10-02h        the whole KEY field (see t10::WrappedKey), 282 bytes for an 8-byte NAA
/// t10-00h        the 32 bytes of the data key
/// rsa-oaep-sha1  the ciphertext, as long as the drive's modulus
/// ```
///
/// Held as a secret in every form: `t10-00h` is the data key itself, and the wrapped forms have
/// no freshness, so that a recorded one works on its drive for ever. `Debug` shows the form only.
/// Serialising it is what hands it to the drive; nothing else does.
#[derive(Debug)]
pub struct Sedk {
    form: SedkForm,
    bytes: SecretSlice<u8>,
}

impl Sedk {
    /// An SEDK from its bytes.
    ///
    /// # Errors
    ///
    /// [`SedkError::Length`] or [`SedkError::KeyField`] where the bytes do not fit the form.
    pub fn new(form: SedkForm, bytes: SecretSlice<u8>) -> Result<Self, SedkError> {
        let got = bytes.expose_secret().len();
        let fits = match form {
            SedkForm::T10Wrapped => {
                WrappedKey::decode(bytes.expose_secret())?;
                true
            }
            SedkForm::T10Plain => got == 32,
            SedkForm::RsaOaepSha1 => matches!(got, 256 | 384 | 512),
        };
        if !fits {
            return Err(SedkError::Length { form, got });
        }
        Ok(Self { form, bytes })
    }

    /// The form that it has.
    pub fn form(&self) -> SedkForm {
        self.form
    }

    /// Its bytes, as the table above says.
    pub fn bytes(&self) -> &SecretSlice<u8> {
        &self.bytes
    }

    /// Takes its bytes.
    pub fn into_bytes(self) -> SecretSlice<u8> {
        self.bytes
    }
}

impl From<&WrappedKey> for Sedk {
    fn from(key: &WrappedKey) -> Self {
        Self {
            form: SedkForm::T10Wrapped,
            bytes: key.encode().into(),
        }
    }
}

impl Serialize for Sedk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { form, bytes } = self;
        let key = Zeroizing::new(STANDARD.encode(bytes.expose_secret()));
        let mut sedk = serializer.serialize_struct("Sedk", 2)?;
        sedk.serialize_field("form", form)?;
        sedk.serialize_field("key", key.as_str())?;
        sedk.end()
    }
}

impl<'de> Deserialize<'de> for Sedk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename = "Sedk", deny_unknown_fields)]
        struct Text {
            form: SedkForm,
            key: SecretString,
        }
        let Text { form, key } = Text::deserialize(deserializer)?;
        let bytes = decode_base64(key.expose_secret()).map_err(D::Error::custom)?;
        Self::new(form, bytes).map_err(D::Error::custom)
    }
}

/// Decodes into a buffer that is wiped, then into one of the exact size: a shrinking `Vec` would
/// leave a copy behind.
fn decode_base64(text: &str) -> Result<SecretSlice<u8>, SedkError> {
    let mut buffer = Zeroizing::new(vec![0; text.len()]);
    let len = STANDARD
        .decode_slice(text, &mut buffer)
        .map_err(|_| SedkError::Base64)?;
    let bytes = buffer.get(..len).ok_or(SedkError::Base64)?;
    Ok(bytes.to_vec().into())
}

/// Why something is no SEDK.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SedkError {
    /// A form that we do not know.
    #[error("expected SEDK form \"t10-02h\", \"t10-00h\" or \"rsa-oaep-sha1\", got {got:?}")]
    UnknownForm {
        /// What was given.
        got: String,
    },
    /// Not as long as the form demands.
    #[error("a key of {got} bytes does not fit the SEDK form {form}")]
    Length {
        /// The form.
        form: SedkForm,
        /// The length of what was given, in bytes.
        got: usize,
    },
    /// Not a KEY field of KEY FORMAT 02h.
    #[error("the SEDK is no T10 wrapped key")]
    KeyField(#[from] PageError),
    /// The key is not base64.
    #[error("expected the base64 of an SEDK")]
    Base64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::t10::WrappedKeyLabel;

    fn plain() -> Sedk {
        Sedk::new(SedkForm::T10Plain, vec![0x5a; 32].into()).unwrap()
    }

    #[test]
    fn debug_shows_no_key() {
        let shown = format!("{:?}", plain());
        assert!(shown.contains("REDACTED"), "{shown}");
        assert!(!shown.contains("90"), "{shown}");
    }

    #[test]
    fn is_an_object_of_form_and_key() {
        let json = serde_json::to_string(&plain()).unwrap();
        let key = STANDARD.encode([0x5a; 32]);
        assert_eq!(json, format!(r#"{{"form":"t10-00h","key":"{key}"}}"#));
        let read: Sedk = serde_json::from_str(&json).unwrap();
        assert_eq!(read.form(), SedkForm::T10Plain);
        assert_eq!(read.bytes().expose_secret(), &[0x5a; 32]);
    }

    #[test]
    fn key_of_another_length_is_refused() {
        for (form, len) in [
            (SedkForm::T10Plain, 31),
            (SedkForm::T10Plain, 33),
            (SedkForm::RsaOaepSha1, 255),
        ] {
            assert_eq!(
                Sedk::new(form, vec![0; len].into()).unwrap_err(),
                SedkError::Length { form, got: len }
            );
        }
    }

    #[test]
    fn wrapped_form_takes_only_a_whole_key_field() {
        let label = WrappedKeyLabel::new(crate::t10::DeviceId::try_from(&[1; 8][..]).unwrap());
        let key = WrappedKey::new(label, &[7; 256]).unwrap();
        let bytes = key.encode();
        assert!(Sedk::new(SedkForm::T10Wrapped, bytes.clone().into()).is_ok());
        let cut = bytes.split_last().unwrap().1.to_vec();
        assert!(matches!(
            Sedk::new(SedkForm::T10Wrapped, cut.into()),
            Err(SedkError::KeyField(_))
        ));
    }

    #[test]
    fn forms_are_read_by_their_names() {
        for form in [
            SedkForm::T10Wrapped,
            SedkForm::T10Plain,
            SedkForm::RsaOaepSha1,
        ] {
            assert_eq!(form.to_string().parse(), Ok(form));
            assert_eq!(serde_json::to_string(&form).unwrap(), format!("\"{form}\""));
        }
        assert!("t10-03h".parse::<SedkForm>().is_err());
    }

    #[test]
    fn other_text_than_base64_is_refused() {
        let error = serde_json::from_str::<Sedk>(r#"{"form":"t10-00h","key":"*"}"#).unwrap_err();
        assert!(error.to_string().contains("base64"), "{error}");
    }
}
