//! Drives: what each can be given, by its model, its KEKs and the tokens.

use serde::Serialize;

use super::models::{May, Model};
use super::{Row, Site, Word, row, serving};
use crate::admin::TokenStatus;
use crate::bridge::message::Custody;
use crate::key::SedkForm;
use crate::keystore::KnownKek;
use crate::store::{Drive, DriveKey, DriveState};

/// The ways to a data key that a drive may have.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ways {
    /// T10 key format 02h.
    pub t10_02h: May,
    /// T10 key format 00h, in custody `host`.
    pub t10_00h: May,
    /// Through a library that manages keys.
    pub library: May,
    /// Through IBM's own transparent path.
    pub transparent: May,
}

impl Ways {
    pub(super) fn of(model: Option<&Model>) -> Self {
        Self {
            t10_02h: model.map_or(May::Unknown, |model| model.wrapped),
            t10_00h: model.map_or(May::Unknown, |model| model.plain),
            library: May::No,
            transparent: May::No,
        }
    }
}

/// A verdict on a drive.
#[derive(Clone, Debug, Serialize)]
pub struct DriveRow {
    /// Serial, word and sentence.
    #[serde(flatten)]
    pub row: Row,
    /// Its model, where it was told.
    pub model: Option<&'static str>,
    /// What is documented of that model.
    pub ways: Ways,
}

pub(super) fn drive_row(site: &Site, drive: &Drive, model: Option<&'static Model>) -> DriveRow {
    let (verdict, why) = drive_verdict(site, drive, model);
    DriveRow {
        row: row(drive.serial.to_string(), verdict, why),
        model: model.map(|model| model.name),
        ways: Ways::of(model),
    }
}

fn drive_verdict(site: &Site, drive: &Drive, model: Option<&Model>) -> (Word, String) {
    let serial = &drive.serial;
    if drive.state == DriveState::Pending {
        return (
            Word::Waits,
            format!("enrol it: ekm drive mod {serial} --wwn WWN --key PEM --accept"),
        );
    }
    if let Some(why) = misfit(drive, model) {
        return (Word::No, why);
    }
    let keks = match keks_of(site, drive) {
        Ok(keks) => keks,
        Err(why) => return (Word::No, why),
    };
    let serves = |(token, _): &(TokenStatus, bool)| serving(token);
    if !site.tokens.iter().any(serves) {
        return (
            Word::Unknown,
            "no token is ready, so what they can wrap is not known (ekm token status)".to_owned(),
        );
    }
    let mut forms = site.tokens.iter().flat_map(|(token, _)| &token.forms);
    let made = forms.any(|made| *made == drive.form);
    if let Some(kek) = keks.iter().find(|kek| kek.is_away()) {
        return (
            Word::Unknown,
            format!("its KEK {} is out of reach: {}", kek.label, kek.place()),
        );
    }
    let of = |custody| keks.iter().find(move |kek| kek.custody == Some(custody));
    match (drive.custody, made) {
        (Custody::Token, true) => match of(Custody::Host) {
            None => (
                Word::Works,
                format!("form {}, wrapped by the token", drive.form),
            ),
            Some(kek) => (
                Word::No,
                format!(
                    "its KEK {} was made for custody host, and it is not enrolled for that",
                    kek.label
                ),
            ),
        },
        (Custody::Token, false) => (
            Word::No,
            format!(
                "no token makes the form {}: enrol it for another form, or with --custody host",
                drive.form
            ),
        ),
        (Custody::Host, true) => match of(Custody::Host) {
            None => (
                Word::Works,
                format!("form {}, wrapped by the token", drive.form),
            ),
            Some(_) => in_host(drive),
        },
        (Custody::Host, false) => match of(Custody::Token) {
            None => in_host(drive),
            Some(kek) => (
                Word::No,
                format!(
                    "its KEK {} opens only inside the token: make one with ekm kek generate LABEL --custody host",
                    kek.label
                ),
            ),
        },
    }
}

fn in_host(drive: &Drive) -> (Word, String) {
    let why = if drive.form == SedkForm::T10Plain {
        "format 00h: the data key is in clear in ekm's memory for an instant, and on the way to the drive".to_owned()
    } else {
        format!(
            "form {}, wrapped by ekm: the data key is in its memory for an instant",
            drive.form
        )
    };
    (Word::Host, why)
}

/// Why a row cannot work, by itself or for a drive of that model.
fn misfit(drive: &Drive, model: Option<&Model>) -> Option<String> {
    let serial = &drive.serial;
    let takes = |model: &Model| match drive.form {
        SedkForm::T10Wrapped => model.wrapped,
        SedkForm::T10Plain => model.plain,
        SedkForm::RsaOaepSha1 => May::Unknown,
    };
    match (model, drive.form) {
        (Some(model), SedkForm::T10Wrapped) if takes(model) == May::No => Some(format!(
            "it is enrolled for format 02h, which a drive of this model ({}) does not take: ekm drive mod {serial} --form t10-00h --custody host",
            model.what
        )),
        (Some(model), _) if takes(model) == May::No => Some(format!(
            "a drive of this model ({}) does not take the form {}",
            model.what, drive.form
        )),
        (_, SedkForm::T10Wrapped | SedkForm::RsaOaepSha1) if drive.key == DriveKey::None => Some(
            format!("it has no public key: ekm drive mod {serial} --key PEM"),
        ),
        _ => None,
    }
}

/// The KEKs that a drive writes under, or why it cannot. None where the tokens could not be asked.
fn keks_of<'a>(site: &'a Site, drive: &Drive) -> Result<Vec<&'a KnownKek>, String> {
    let own = [&drive.kek1, &drive.kek2];
    let named = if own.iter().any(|kek| kek.is_some()) {
        own
    } else {
        [&site.defaults.kek1, &site.defaults.kek2]
    };
    let labels: Vec<_> = named.into_iter().flatten().map(|kek| &kek.label).collect();
    if labels.is_empty() {
        return Err("it has no key label, and there is no default: ekm kek default".to_owned());
    }
    let Some(keks) = &site.keks else {
        return Ok(Vec::new());
    };
    labels
        .into_iter()
        .map(|label| {
            keks.iter()
                .find(|kek| kek.missing.is_none() && kek.label.same_as(label))
                .ok_or_else(|| format!("its KEK {label} is on no token: writing gets EE31"))
        })
        .collect()
}
