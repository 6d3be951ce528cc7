//! `ekm kek adopt`: what of the key pairs that are on a token can be a KEK.
//!
//! ```text
//! read  -> objects, paired: by CKA_ID, then by modulus
//! judge -> a verdict for each key and attribute, and what would mend it
//! mend  -> C_SetAttributeValue, where the operator says so; then read again
//! ```
//!
//! Keys that are made elsewhere have their quirks. Java (`PKCS11IMPLKS`) puts
//! the alias on the certificate alone, and finds the private key by `CKA_ID`;
//! it opens with `C_Decrypt`, so nothing has `CKA_UNWRAP`.

mod judge;
mod read;

use cryptoki_sys as ck;
use serde::{Deserialize, Serialize};

use super::faults::Fault;
use super::import;
use super::message::{Custody, Errand, Hello, Provenance, Reply};
use super::pkcs11::{Attr, CK_ATTRIBUTE_TYPE, CK_OBJECT_HANDLE, CK_SESSION_HANDLE};
use super::supervisor::{Attended, Program};
use super::token::Token;
use crate::key::{KekHash, KeyLabel};

/// Longest time for a look, with many keys on a slow token.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);

/// Keys that are tried; on a token with more, the attributes of the rest must do.
const TRIED: usize = 64;

/// An object of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Half {
    /// The private key.
    Private,
    /// The public key.
    Public,
    /// The certificate.
    Certificate,
}

impl std::fmt::Display for Half {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Private => "private key",
            Self::Public => "public key",
            Self::Certificate => "certificate",
        })
    }
}

/// What can be done with a key, or is so about an attribute of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It serves as it is.
    Usable,
    /// It serves as it is, with custody `host`.
    Host,
    /// It would serve after changes that the token allows.
    Mendable,
    /// It cannot serve.
    Not,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Usable => "usable",
            Self::Host => "custody host",
            Self::Mendable => "mendable",
            Self::Not => "not usable",
        })
    }
}

/// A value that an attribute is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Value {
    /// A `CK_BBOOL`.
    Flag(bool),
    /// A `CKA_LABEL`.
    Label(KeyLabel),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(true) => f.write_str("TRUE"),
            Self::Flag(false) => f.write_str("FALSE"),
            Self::Label(label) => write!(f, "{label:?}", label = label.as_str()),
        }
    }
}

/// A change that would make a key usable, or more so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mend {
    /// Its `CKA_ID`, hexadecimal.
    pub id: String,
    /// Its public-key hash.
    pub hash: KekHash,
    /// The attribute of its private key, as the standard spells it.
    pub attribute: String,
    /// What it becomes.
    pub to: Value,
    /// Why.
    pub why: String,
    /// Only where the operator names the key: it is in use for something else, or serves already.
    pub by_name: bool,
}

/// An attribute, and what it means here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributeSeen {
    /// Which object has it.
    pub half: Half,
    /// As the standard spells it.
    pub name: String,
    /// Its value; none where the token does not say.
    pub value: Option<String>,
    /// What follows from it.
    pub verdict: Verdict,
    /// Why, where it is not simply good.
    pub reason: Option<String>,
}

/// A key of the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySeen {
    /// What it is called, by whichever of its objects says so.
    pub label: Option<String>,
    /// Which object says so.
    pub label_of: Option<Half>,
    /// Its `CKA_ID`, hexadecimal.
    pub id: String,
    /// `RSA-3072`, or the type as the standard spells it.
    pub kind: String,
    /// Its public-key hash, where a modulus can be read.
    pub hash: Option<KekHash>,
    /// What of it is there.
    pub halves: Vec<Half>,
    /// How it came to the token.
    pub provenance: Option<Provenance>,
    /// What it would serve for, as it is or after the mends that need no name.
    pub custody: Option<Custody>,
    /// What can be done with it.
    pub verdict: Verdict,
    /// Why, a sentence each.
    pub reasons: Vec<String>,
    /// What would mend it.
    pub mends: Vec<Mend>,
    /// Attribute by attribute.
    pub attributes: Vec<AttributeSeen>,
}

impl KeySeen {
    /// Whether somebody who writes `name` means this key: its label, its whole `CKA_ID`, or the
    /// beginning of its hash (8 digits or more).
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        let name = name.trim_end_matches(' ').to_lowercase();
        let digits = name.strip_prefix("sha256:").unwrap_or(&name);
        let by_hash = self
            .hash
            .is_some_and(|hash| digits.len() >= 8 && hash.to_string().starts_with(digits));
        let by_label = self
            .label
            .as_ref()
            .is_some_and(|label| label.to_lowercase() == name);
        by_label || by_hash || (!name.is_empty() && self.id == name)
    }
}

/// A change that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mended {
    /// The change.
    pub mend: Mend,
    /// Why the token did not make it.
    pub error: Option<String>,
}

/// What the token has, after the changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// The changes, in the order they were tried.
    pub mended: Vec<Mended>,
    /// Every key.
    pub keys: Vec<KeySeen>,
}

/// Looks at every key pair of the token after these changes, with a bridge of its own.
///
/// # Errors
/// What the bridge says, or that it has gone.
pub async fn look(program: &Program, hello: &Hello, mends: Vec<Mend>) -> Result<Adopted, Fault> {
    let mut bridge = Attended::start(program, hello).await?;
    match bridge.ask(&Errand::Adopt(mends), PATIENCE).await? {
        Reply::Adopted(adopted) => Ok(*adopted),
        other => Err(Fault::Down {
            token: hello.name.clone(),
            reason: format!("the bridge gave an answer of another kind ({other:?})"),
        }),
    }
}

/// The bridge's side.
pub(super) fn adopt(token: &Token, mends: &[Mend]) -> Result<Adopted, Fault> {
    let session = token
        .session()
        .map_err(|error| Fault::call(&token.name, error, "opening a session"))?;
    let mended = if mends.is_empty() {
        Vec::new()
    } else {
        mend(token, session, mends)?
    };
    let mut keys: Vec<KeySeen> = seen(token, session)?
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    keys.sort_by(|one, other| (&one.label, &one.id).cmp(&(&other.label, &other.id)));
    let _ = token.module.close_session(session);
    Ok(Adopted { mended, keys })
}

/// Makes the changes, each only where a fresh look proposes the very same: the token may have
/// changed since.
fn mend(token: &Token, session: CK_SESSION_HANDLE, mends: &[Mend]) -> Result<Vec<Mended>, Fault> {
    let keys = seen(token, session)?;
    Ok(mends
        .iter()
        .map(|mend| {
            let object = keys
                .iter()
                .find(|(key, _)| key.mends.contains(mend))
                .and_then(|(_, object)| *object);
            let error = match (object, attr(mend)) {
                (Some(object), Some(attr)) => token
                    .module
                    .set_attributes(session, object, &[attr])
                    .err()
                    .map(|error| {
                        let what = format!("setting {} to {}", mend.attribute, mend.to);
                        Fault::call(&token.name, error, what).to_string()
                    }),
                (_, _) => Some("the key has changed since it was looked at".to_owned()),
            };
            Mended {
                mend: mend.clone(),
                error,
            }
        })
        .collect())
}

/// The attributes that mends change.
const MENDED: [(&str, CK_ATTRIBUTE_TYPE); 4] = [
    ("CKA_LABEL", ck::CKA_LABEL),
    ("CKA_SENSITIVE", ck::CKA_SENSITIVE),
    ("CKA_EXTRACTABLE", ck::CKA_EXTRACTABLE),
    ("CKA_UNWRAP", ck::CKA_UNWRAP),
];

fn attr(mend: &Mend) -> Option<Attr> {
    let (_, kind) = MENDED
        .into_iter()
        .find(|(name, _)| *name == mend.attribute)?;
    Some(match &mend.to {
        Value::Flag(on) => Attr::flag(kind, *on),
        Value::Label(label) => Attr::bytes(kind, label.as_str()),
    })
}

/// Every key with its private object. Those that should serve are tried.
fn seen(
    token: &Token,
    session: CK_SESSION_HANDLE,
) -> Result<Vec<(KeySeen, Option<CK_OBJECT_HANDLE>)>, Fault> {
    let rows = read::rows(&token.module, session)
        .map_err(|error| Fault::call(&token.name, error, "reading the keys"))?;
    let mut tried = 0;
    let mut keys = Vec::new();
    for row in &rows {
        let mut key = judge::judge(row, &rows, token.profile.host_only());
        let object = row.private.as_ref().map(|private| private.handle);
        if let (Some(object), Some(spki), Some(custody), Verdict::Usable | Verdict::Host) =
            (object, row.spki(), key.custody, key.verdict)
            && tried < TRIED
        {
            tried += 1;
            let failed = match opened(token, object, spki, custody) {
                Ok(true) => None,
                Ok(false) => Some(
                    "a data key that was wrapped under its public half came out as another"
                        .to_owned(),
                ),
                Err(fault) => Some(fault.to_string()),
            };
            if let Some(reason) = failed {
                key.verdict = Verdict::Not;
                key.reasons.push(reason);
            }
        }
        keys.push((key, object));
    }
    Ok(keys)
}

/// On a session of its own: on some modules one that failed stays stuck.
fn opened(
    token: &Token,
    object: CK_OBJECT_HANDLE,
    spki: &[u8],
    custody: Custody,
) -> Result<bool, Fault> {
    let session = token
        .session()
        .map_err(|error| Fault::call(&token.name, error, "opening a session"))?;
    let opens = import::opens(token, session, object, spki, custody);
    let _ = token.module.close_session(session);
    opens
}
