//! A command in words, for whoever is to approve it.

use crate::admin::Command;

/// The fields of a command that tell nothing to a person who is to judge it, or that are others
/// each time.
const UNTOLD: [&str; 2] = ["command", "ceremony"];

/// Fields that may say that they stay as they are.
const KEPT: [&str; 2] = ["kek1", "kek2"];

/// Texts longer than this are told by their SHA-256: certificates and public keys, whose
/// fingerprints people compare.
const LONG: usize = 120;

impl Command {
    /// The command in words, for whoever is to approve it: its name and every field that says
    /// something. The same command has the same words.
    #[must_use]
    pub fn words(&self) -> String {
        let mut words = self.acts().first().map_or("", |act| act.name()).to_owned();
        if let Ok(value) = serde_json::to_value(self) {
            tell("", &value, &mut words);
        }
        words
    }
}

fn tell(name: &str, value: &serde_json::Value, words: &mut String) {
    use serde_json::Value;
    let mut say = |text: &str| {
        words.push_str(", ");
        if !name.is_empty() {
            words.push_str(name);
            words.push(' ');
        }
        words.push_str(text);
    };
    match value {
        Value::Null | Value::Bool(false) => {}
        Value::String(text) if text == "keep" && KEPT.contains(&name) => {}
        Value::Bool(true) => say("yes"),
        Value::Number(number) => say(&number.to_string()),
        Value::String(text) if text.len() > LONG => say(&digest(text)),
        // What somebody wrote must not read as a further field, nor steer a terminal.
        Value::String(text) if text.contains(|c: char| ",\"".contains(c) || c.is_control()) => {
            say(&format!("{text:?}"));
        }
        Value::String(text) => say(text),
        Value::Array(all) => match bytes(all) {
            Some(bytes) => say(&sha256(&bytes)),
            None => all.iter().for_each(|one| tell(name, one, words)),
        },
        Value::Object(fields) => {
            for (field, value) in fields {
                if UNTOLD.contains(&field.as_str()) {
                    continue;
                }
                // What only holds others together adds nothing.
                let path = match (name, field.as_str()) {
                    (_, "change" | "offered" | "asked" | "set") => name.to_owned(),
                    ("", field) => field.to_owned(),
                    (name, field) => format!("{name}.{field}"),
                };
                tell(&path, value, words);
            }
        }
    }
}

/// A list that is a certificate or a key: nothing else here is so many small numbers.
fn bytes(list: &[serde_json::Value]) -> Option<Vec<u8>> {
    if list.len() < LONG {
        return None;
    }
    list.iter()
        .map(|one| u8::try_from(one.as_u64()?).ok())
        .collect()
}

fn digest(text: &str) -> String {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text);
    sha256(&bytes.unwrap_or_else(|_| text.as_bytes().to_vec()))
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{Act, DriveChange, Offered};
    use crate::bridge::message::Custody;
    use crate::key::KekHash;
    use crate::store::{DriveKey, KekState};

    #[test]
    fn a_certificate_is_told_by_its_fingerprint_and_not_byte_by_byte() {
        let certificate = vec![48; 800];
        let words = Command::PartnerAdd {
            label: "PARTNER".parse().unwrap(),
            offered: Box::new(Offered {
                certificate: certificate.clone(),
                between: Vec::new(),
                cas: None,
            }),
            fingerprint: "AB:CD".to_owned(),
        }
        .words();
        assert!(words.contains(&sha256(&certificate)), "{words}");
        assert!(
            words.contains("PARTNER") && words.contains("AB:CD"),
            "{words}"
        );
        assert!(words.len() < 200, "{words}");
    }

    #[test]
    fn a_reason_does_not_read_as_another_field() {
        let words = |reason: &str| {
            Command::KekTurn {
                label: "keep".parse().unwrap(),
                to: KekState::Revoked,
                reason: Some(reason.to_owned()),
            }
            .words()
        };
        let told = words("old, to active\u{1b}[2J");
        assert!(told.contains(r#""old, to active\u{1b}[2J""#), "{told}");
        assert!(told.contains("label keep"), "{told}");
        assert_ne!(words("a, reason b"), words("a"));
    }

    #[test]
    fn a_key_is_told_by_the_fingerprint_that_people_compare() {
        let spki = vec![7; 294];
        let command = Command::DriveMod {
            serial: "000000000001".parse().unwrap(),
            change: Box::new(DriveChange {
                key: Some(DriveKey::Pinned(spki.clone())),
                custody: Some(Custody::Host),
                ..DriveChange::default()
            }),
        };
        let words = command.words();
        let hash = KekHash::of_spki(&spki).to_string();
        for told in ["drive-mod", "000000000001", &hash, "custody host"] {
            assert!(words.contains(told), "no {told} in {words}");
        }
        assert!(!words.contains("keep"), "{words}");
        let acts = [Act::DriveMod, Act::DriveKey, Act::CustodyHost];
        assert_eq!(command.acts(), acts);
    }
}
