//! What a KEK is called: its label, the hash of its public key, and which of the two an EEDK
//! carries.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The name of a KEK in its token: 1 to 64 characters, no control characters, not all blank.
///
/// Stored as given, without trailing blanks. Compared, ordered and hashed without regard to case,
/// because Java keystores lower-case their aliases and the same key is named by both.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyLabel(String);

impl KeyLabel {
    /// The longest label, in characters: the field that tape control units store it in.
    pub const MAX_CHARS: usize = 64;

    /// The label as given, without trailing blanks.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form that labels are compared by: lower case, without trailing blanks.
    pub fn folded(&self) -> String {
        self.0.to_lowercase()
    }

    /// Whether both name the same KEK.
    pub fn same_as(&self, other: &Self) -> bool {
        self.folded() == other.folded()
    }
}

impl FromStr for KeyLabel {
    type Err = KeyLabelError;

    fn from_str(given: &str) -> Result<Self, KeyLabelError> {
        let label = given.trim_end_matches(' ');
        if label.chars().all(char::is_whitespace) {
            return Err(KeyLabelError::Blank);
        }
        if let Some(position) = label.chars().position(char::is_control) {
            return Err(KeyLabelError::ControlCharacter {
                position: position + 1,
            });
        }
        let got = label.chars().count();
        if got > Self::MAX_CHARS {
            return Err(KeyLabelError::TooLong {
                limit: Self::MAX_CHARS,
                got,
            });
        }
        Ok(Self(label.to_owned()))
    }
}

impl TryFrom<String> for KeyLabel {
    type Error = KeyLabelError;

    fn try_from(given: String) -> Result<Self, KeyLabelError> {
        given.parse()
    }
}

impl From<KeyLabel> for String {
    fn from(label: KeyLabel) -> Self {
        label.0
    }
}

impl fmt::Display for KeyLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl PartialEq for KeyLabel {
    fn eq(&self, other: &Self) -> bool {
        self.same_as(other)
    }
}

impl Eq for KeyLabel {}

impl PartialOrd for KeyLabel {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyLabel {
    fn cmp(&self, other: &Self) -> Ordering {
        self.folded().cmp(&other.folded())
    }
}

impl Hash for KeyLabel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.folded().hash(state);
    }
}

/// Why a text is no key label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyLabelError {
    /// Nothing but blanks.
    #[error("a key label must not be empty or blank")]
    Blank,
    /// Longer than [`KeyLabel::MAX_CHARS`].
    #[error("a key label has at most {limit} characters, got {got}")]
    TooLong {
        /// The limit, in characters.
        limit: usize,
        /// The length of what was given, in characters.
        got: usize,
    },
    /// A control character, which would not survive a listing.
    #[error("a key label must not contain control characters, got one at position {position}")]
    ControlCharacter {
        /// Its position, counted from 1.
        position: usize,
    },
}

/// How an EEDK names its KEK.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// By the label that this site calls it (`L`).
    #[default]
    Label,
    /// By the hash of its public key, for partners who call it otherwise (`H`).
    Hash,
}

impl Encoding {
    /// The word that names it: `label` or `hash`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Hash => "hash",
        }
    }
}

impl FromStr for Encoding {
    type Err = EncodingError;

    fn from_str(given: &str) -> Result<Self, EncodingError> {
        match given.to_ascii_lowercase().as_str() {
            "label" | "l" => Ok(Self::Label),
            "hash" | "h" => Ok(Self::Hash),
            _ => Err(EncodingError {
                got: given.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is no encoding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected encoding \"label\" (L) or \"hash\" (H), got {got:?}")]
pub struct EncodingError {
    /// What was given.
    pub got: String,
}

/// A KEK as a request or a default names it: its label, and how the EEDK shall name it.
///
/// Written `LABEL`, `LABEL:label` or `LABEL:hash`. Only a final `:label` or `:hash` is an
/// encoding; any other colon belongs to the label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KekRef {
    /// The label of the KEK.
    pub label: KeyLabel,
    /// How the EEDK shall name it; by its label where nothing is said.
    #[serde(default)]
    pub encoding: Encoding,
}

impl FromStr for KekRef {
    type Err = KeyLabelError;

    fn from_str(given: &str) -> Result<Self, KeyLabelError> {
        let (label, encoding) = match given.rsplit_once(':') {
            Some((label, word)) if word.eq_ignore_ascii_case("label") => (label, Encoding::Label),
            Some((label, word)) if word.eq_ignore_ascii_case("hash") => (label, Encoding::Hash),
            Some(_) | None => (given, Encoding::default()),
        };
        Ok(Self {
            label: label.parse()?,
            encoding,
        })
    }
}

impl fmt::Display for KekRef {
    /// Always with the encoding, so that a label that ends in `:hash` is read back as itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.label, self.encoding)
    }
}

/// SHA-256 over the DER SubjectPublicKeyInfo (RFC 5280, section 4.1) of a KEK.
///
/// Written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KekHash([u8; 32]);

impl KekHash {
    /// The hash of a public key, given as DER SubjectPublicKeyInfo.
    pub fn of_spki(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for KekHash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for KekHash {
    type Err = KekHashError;

    fn from_str(given: &str) -> Result<Self, KekHashError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(given, &mut bytes).map_err(|_| KekHashError {
            got: given.to_owned(),
        })?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for KekHash {
    type Error = KekHashError;

    fn try_from(given: String) -> Result<Self, KekHashError> {
        given.parse()
    }
}

impl From<KekHash> for String {
    fn from(hash: KekHash) -> Self {
        hash.to_string()
    }
}

impl fmt::Display for KekHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

/// A text that is no SHA-256 value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the SHA-256 of a public key, 64 hexadecimal digits, got {got:?}")]
pub struct KekHashError {
    /// What was given.
    pub got: String,
}

/// A KEK as an EEDK names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KekId {
    /// By its label.
    Label(KeyLabel),
    /// By the hash of its public key.
    Hash(KekHash),
}

impl KekId {
    /// Which of the two it is.
    pub fn encoding(&self) -> Encoding {
        match self {
            Self::Label(_) => Encoding::Label,
            Self::Hash(_) => Encoding::Hash,
        }
    }
}

impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(label) => write!(f, "{label}"),
            Self::Hash(hash) => write!(f, "sha256:{hash}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(given: &str) -> KeyLabel {
        given.parse().unwrap()
    }

    #[test]
    fn labels_are_compared_without_case_and_trailing_blanks() {
        assert_eq!(label("Tape-2026   "), label("TAPE-2026"));
        assert_eq!(label("Tape-2026   ").to_string(), "Tape-2026");
        assert_ne!(label(" tape"), label("tape"));
        assert_eq!(label("b").cmp(&label("A")), Ordering::Greater);
    }

    #[test]
    fn blank_label_is_refused() {
        for blank in ["", "   ", "\u{3000}", "\t"] {
            assert_eq!(blank.parse::<KeyLabel>(), Err(KeyLabelError::Blank));
        }
    }

    #[test]
    fn long_label_is_refused_and_never_cut() {
        assert_eq!(label(&"x".repeat(64)).as_str().len(), 64);
        assert_eq!(label(&format!("{}  ", "é".repeat(64))).as_str().len(), 128);
        let error = "x".repeat(65).parse::<KeyLabel>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "a key label has at most 64 characters, got 65"
        );
    }

    #[test]
    fn control_character_in_label_is_refused() {
        let refused = Err(KeyLabelError::ControlCharacter { position: 2 });
        assert_eq!("a\nb".parse::<KeyLabel>(), refused);
        assert_eq!("a\u{7f}".parse::<KeyLabel>(), refused);
    }

    #[test]
    fn a_deserialised_label_is_checked() {
        assert!(serde_json::from_str::<KeyLabel>("\"  \"").is_err());
        let read: KeyLabel = serde_json::from_str("\"Kek 1 \"").unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), "\"Kek 1\"");
    }

    #[test]
    fn kek_ref_takes_only_a_final_word_for_the_encoding() {
        for (given, name, encoding) in [
            ("kek", "kek", Encoding::Label),
            ("kek:hash", "kek", Encoding::Hash),
            ("kek:LABEL", "kek", Encoding::Label),
            ("site:kek", "site:kek", Encoding::Label),
            ("site:kek:Hash", "site:kek", Encoding::Hash),
            ("kek:hash:label", "kek:hash", Encoding::Label),
        ] {
            let read: KekRef = given.parse().unwrap();
            assert_eq!((read.label.as_str(), read.encoding), (name, encoding));
            assert_eq!(read.to_string().parse::<KekRef>().unwrap(), read);
        }
        assert_eq!(":hash".parse::<KekRef>(), Err(KeyLabelError::Blank));
    }

    #[test]
    fn kek_ref_without_an_encoding_means_label() {
        let read: KekRef = serde_json::from_str(r#"{"label":"k"}"#).unwrap();
        assert_eq!(read.encoding, Encoding::Label);
        assert!(serde_json::from_str::<KekRef>(r#"{"label":"k","enc":"hash"}"#).is_err());
    }

    #[test]
    fn encodings_are_read_from_the_old_letters() {
        for given in ["label", "l", "L", "LABEL"] {
            assert_eq!(given.parse(), Ok(Encoding::Label));
        }
        for given in ["hash", "h", "H", "Hash"] {
            assert_eq!(given.parse(), Ok(Encoding::Hash));
        }
        assert!("x".parse::<Encoding>().is_err());
    }

    #[test]
    fn kek_hash_is_sha256_in_hexadecimal() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(KekHash::of_spki(b"").to_string(), empty);
        assert_eq!(empty.parse(), Ok(KekHash::of_spki(b"")));
        assert!("e3b0".parse::<KekHash>().is_err());
    }
}
