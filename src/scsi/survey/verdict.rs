//! What ekm can do with a drive.

use serde::Serialize;

use super::{Encryption, State, Survey};
use crate::key::DataKeyId;

/// What ekm can do with a drive, and what to do for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// In one word.
    pub ability: Ability,
    /// In sentences, one each.
    pub told: Vec<String>,
}

/// Whether and how ekm can give a drive its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ability {
    /// Key format 02h: the data key is never in clear on this host.
    Wrapped,
    /// Key format 00h alone: the data key is in clear on its way, so an operator must permit it.
    Plain,
    /// A library or a manager has its encryption; that can be changed.
    ManagedElsewhere,
    /// Not at all.
    None,
}

/// How the sentence begins that is for a drive that is not enrolled.
const TO_ENROL: &str = "To enrol it: ";

impl Verdict {
    /// Leaves out how the drive is enrolled: it is.
    pub fn of_enrolled(&mut self) {
        self.told.retain(|one| !one.starts_with(TO_ENROL));
    }

    /// `whole`: the drive could say everything that it was asked.
    pub(super) fn of(survey: &Survey, state: &State, whole: bool) -> Self {
        let Some(encryption) = &state.encryption else {
            let told = if whole {
                "The drive does not encrypt, or its encryption is switched off: ekm can do \
                 nothing with it."
            } else {
                "What the drive can do is not known: it did not say what encryption it has. Look \
                 above for its reasons, and ask again."
            };
            return Self {
                ability: Ability::None,
                told: vec![told.to_owned()],
            };
        };
        let (ability, mut told) = by(encryption, survey);
        if matches!(ability, Ability::Wrapped | Ability::Plain) {
            told.extend(limits(encryption, survey));
        }
        Self { ability, told }
    }
}

fn by(encryption: &Encryption, survey: &Survey) -> (Ability, Vec<String>) {
    if encryption.managed_elsewhere {
        return (Ability::ManagedElsewhere, vec![managed(encryption)]);
    }
    if !encryption.aes_256_gcm {
        return (
            Ability::None,
            vec![
                "The drive has no AES-256-GCM that a host can use: ekm can do nothing with it."
                    .to_owned(),
            ],
        );
    }
    if usize::from(encryption.max_akad_len) < DataKeyId::LEN {
        return (
            Ability::None,
            vec![format!(
                "The drive keeps {} bytes of A-KAD with a block, and the DKi has {}: its \
                 cartridges could not say which key they need.",
                encryption.max_akad_len,
                DataKeyId::LEN
            )],
        );
    }
    let takes = |format: &str| encryption.key_formats.iter().any(|one| one == format);
    let serial = survey
        .drive
        .as_ref()
        .map_or_else(|| "SERIAL".to_owned(), ToString::to_string);
    let wwn = survey
        .wwn
        .map_or_else(|| "WWN".to_owned(), |wwn| wwn.to_string());
    if takes("02h") && encryption.wrapping_key.is_some() && survey.wwn.is_some() {
        if encryption.wrapping_key_changes {
            return (
                Ability::None,
                vec![
                    "The drive gave two different wrapping keys in a row. Do not enrol it: \
                     somebody may be in between, or its firmware is at fault."
                        .to_owned(),
                ],
            );
        }
        return (
            Ability::Wrapped,
            vec![
                "ekm can key this drive. It takes keys wrapped for itself (key format 02h), so a \
                 data key is never in clear on this host."
                    .to_owned(),
                format!(
                    "{TO_ENROL}ekm drive status {} --export-key drive.pem, compare the \
                     fingerprint by another way than this host, then on the key server: ekm drive \
                     add {serial} --wwn {wwn} --key drive.pem --form t10-02h",
                    survey.device
                ),
            ],
        );
    }
    if takes("00h") {
        return (
            Ability::Plain,
            vec![
                "ekm can key this drive with your permission. It takes keys in clear alone (key \
                 format 00h): who can read this host's memory or the way to the drive can read \
                 them."
                    .to_owned(),
                format!(
                    "To permit it, on the key server: ekm drive add {serial} --wwn {wwn} --form \
                     t10-00h --custody host"
                ),
            ],
        );
    }
    (
        Ability::None,
        vec![format!(
            "The drive takes keys in the formats {} alone, and ekm gives them in 00h or 02h.",
            encryption.key_formats.join(", ")
        )],
    )
}

fn managed(encryption: &Encryption) -> String {
    let by = match (&encryption.method, encryption.control) {
        (Some(method), _) => format!("its encryption method is: {method}"),
        (None, Some(control)) if control != "not said" => {
            format!("its encryption is set by: {control}")
        }
        _ => "its encryption is under a library's or a manager's control".to_owned(),
    };
    format!(
        "Not as it is: {by}. The way out: set it to application-managed at its library (IBM: \
         Modify Encryption Method), or have the maker's service do so where it has left its \
         library. Then ask again."
    )
}

/// What does not stand in the way, and should be known.
fn limits(encryption: &Encryption, survey: &Survey) -> Vec<String> {
    let mut told = Vec::new();
    if survey.drive.is_none() {
        told.push(
            "Its serial number is not one of 10 or 12 digits and capital letters, which the drive \
             table wants."
                .to_owned(),
        );
    }
    if encryption.max_eedks == 0 {
        told.push(
            "It keeps no EEDKs with the blocks: they go to the cartridge's memory where that has \
             room, else they are in the key server's catalog alone, whose backup is then needed to \
             read the tape."
                .to_owned(),
        );
    }
    if encryption.clears_on_demount == Some(false) {
        told.push(
            "It does not forget a key when the cartridge leaves (CKOD): it must be taken away \
             after every mount."
                .to_owned(),
        );
    }
    told
}
