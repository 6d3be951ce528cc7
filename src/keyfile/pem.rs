//! PEM (RFC 7468), and the `Bag Attributes` that OpenSSL writes between.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::pairing::{LooseCertificate, LooseKey, pair};
use super::pkcs12;
use super::private_key::{KeyFault, PrivateKey, Unused};
use super::unlock::{Locked, Unlocker};
use super::{Format, KeyFile, KeyFileError, Passwords};

const BEGIN: &[u8] = b"-----BEGIN ";

/// Whether a block begins in its first megabyte; what stands before is text about it.
pub(super) fn is_pem(bytes: &[u8]) -> bool {
    let mut places = bytes.windows(BEGIN.len()).take(1024 * 1024);
    places.any(|at| at == BEGIN)
}

/// Whether something in it is sealed under a password.
pub(super) fn is_sealed(bytes: &[u8]) -> bool {
    Blocks::new(bytes).any(|block| {
        block.is_ok_and(|block| {
            block.label == "ENCRYPTED PRIVATE KEY" || pkcs12::is_pfx(&block.content)
        })
    })
}

/// Reads PEM.
pub(super) fn read(bytes: &[u8], passwords: &Passwords) -> Result<KeyFile, KeyFileError> {
    let mut unlocker = Unlocker::new(Format::Pem, passwords);
    let mut keys = Vec::new();
    let mut certificates = Vec::new();
    let mut shut = None;
    let mut blocks = 0;
    for block in Blocks::new(bytes) {
        let block = block?;
        blocks += 1;
        // RACF writes PKCS#12 in base64, and calls it a certificate.
        if pkcs12::is_pfx(&block.content) {
            return pkcs12::read(&block.content, passwords);
        }
        let fault = |fault: KeyFault| Locked::Fault(fault.into());
        let key = match block.label.as_str() {
            "CERTIFICATE" | "X509 CERTIFICATE" => {
                unlocker.count()?;
                certificates.push(LooseCertificate {
                    alias: block.alias,
                    id: None,
                    trusted: false,
                    der: block.content.to_vec(),
                });
                continue;
            }
            "PRIVATE KEY" => PrivateKey::from_pkcs8(&block.content).map_err(fault),
            "ENCRYPTED PRIVATE KEY" => unlocker.key(&block.content),
            "RSA PRIVATE KEY" if block.legacy => Err(Locked::Fault(LEGACY.into())),
            "RSA PRIVATE KEY" => PrivateKey::from_pkcs1(&block.content).map_err(fault),
            other if other.ends_with("PRIVATE KEY") => Err(Locked::Fault(Unused {
                what: other.strip_suffix(" PRIVATE KEY").map(str::to_owned),
                reason: format!("it is no RSA key but {other}, and KEKs are RSA"),
            })),
            _ => {
                unlocker.count()?;
                continue;
            }
        };
        unlocker.count_key()?;
        let key = key.map_err(|locked| {
            let reason = locked.reason();
            if matches!(locked, Locked::Shut { .. }) {
                shut.get_or_insert_with(|| reason.reason.clone());
            }
            reason
        });
        keys.push(LooseKey {
            alias: block.alias,
            id: None,
            created: None,
            key,
        });
    }
    // No hash over the file tells of a wrong password, so the keys do.
    if let Some(reason) = shut
        && keys.iter().all(|key| key.key.is_err())
    {
        return Err(KeyFileError::Password {
            format: Format::Pem,
            problem: format!(
                "wrong password, or the file was changed after it was written: {reason}"
            ),
        });
    }
    if keys.is_empty() && certificates.is_empty() {
        return Err(KeyFileError::Damaged {
            format: Format::Pem,
            problem: format!(
                "among its {blocks} blocks there is neither a private key nor a certificate"
            ),
        });
    }
    Ok(KeyFile {
        format: Format::Pem,
        entries: pair(keys, certificates),
    })
}

const LEGACY: &str = "it is encrypted in OpenSSL's old way (DEK-Info), which is not read; convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW";

/// One block, decoded.
struct Block {
    label: String,
    content: Zeroizing<Vec<u8>>,
    /// Whether it has the head lines of RFC 1421's encryption.
    legacy: bool,
    /// The friendlyName that stands before it.
    alias: Option<String>,
}

/// The blocks of a text.
struct Blocks<'a> {
    lines: std::slice::Split<'a, u8, fn(&u8) -> bool>,
    number: usize,
}

impl<'a> Blocks<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let newline: fn(&u8) -> bool = |byte| *byte == b'\n';
        Self {
            lines: bytes.split(newline),
            number: 0,
        }
    }
}

impl Iterator for Blocks<'_> {
    type Item = Result<Block, KeyFileError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut alias = None;
        let label = loop {
            let line = self.lines.next()?.trim_ascii();
            if let Some(label) = boundary(line, BEGIN) {
                break label;
            }
            if let Some(name) = line.strip_prefix(b"friendlyName:") {
                let name = String::from_utf8_lossy(name.trim_ascii()).into_owned();
                alias = (!name.is_empty()).then_some(name);
            }
        };
        self.number += 1;
        let (number, name) = (self.number, label.clone());
        let damaged = |problem: &str| {
            Some(Err(KeyFileError::Damaged {
                format: Format::Pem,
                problem: format!("block {number} ({name}) {problem}"),
            }))
        };
        let mut text = Zeroizing::new(Vec::new());
        let mut legacy = false;
        loop {
            let Some(line) = self.lines.next() else {
                return damaged("has no end line");
            };
            let line = line.trim_ascii();
            if let Some(end) = boundary(line, b"-----END ") {
                if end != label {
                    return damaged("has an end line of another name");
                }
                break;
            }
            if line.starts_with(b"-----") {
                return damaged("has no end line");
            }
            if line.contains(&b':') {
                legacy |= line.starts_with(b"DEK-Info:");
                continue;
            }
            grow(&mut text, line);
        }
        // What is encrypted in the old way is not looked at.
        let mut content = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
        let Ok(length) = STANDARD.decode_slice(&*text, &mut content) else {
            return damaged("is not base64");
        };
        content.truncate(length);
        Some(Ok(Block {
            label,
            content,
            legacy,
            alias,
        }))
    }
}

/// Appends, without leaving a copy behind where there is no room.
fn grow(text: &mut Zeroizing<Vec<u8>>, line: &[u8]) {
    if text.capacity() - text.len() < line.len() {
        let room = 2 * (text.len() + line.len()).max(4096);
        let mut roomier = Zeroizing::new(Vec::with_capacity(room));
        roomier.extend_from_slice(text);
        *text = roomier;
    }
    text.extend_from_slice(line);
}

/// The label in a boundary line.
fn boundary(line: &[u8], kind: &[u8]) -> Option<String> {
    let label = line.strip_prefix(kind)?.strip_suffix(b"-----")?;
    let label = std::str::from_utf8(label).ok()?;
    (label.len() <= 64).then(|| label.to_owned())
}
