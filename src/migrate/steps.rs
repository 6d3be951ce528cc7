//! What is left for an operator after a migration, in order, as commands.

use super::plan::{KeyRow, Plan, Sources, Step, Verdict};
use super::stores::Fate;
use crate::admin::ImportedDrive;
use crate::drive::DriveSerial;
use crate::key::{KekHash, KekRef};

/// Most commands of one step that are printed one by one.
const MOST: usize = 500;

/// What of it is done already.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The server's certificates are there.
    pub certificates: bool,
    /// The token is there.
    pub token: bool,
    /// KEKs that a token holds.
    pub keks: Vec<KekHash>,
    /// The default labels are set, and on a token.
    pub defaults: bool,
    /// Drives that are enrolled.
    pub drives: Vec<DriveSerial>,
}

pub(super) fn of(plan: &Plan, sources: &Sources, done: &Progress) -> Vec<Step> {
    let keks = keks(plan, sources, done);
    let steps = [
        Some(step(
            "Keep EKM, its keystore and its passwords: it goes on reading the cartridges that it keyed. \
             Where it stays on this host, give ekm another port in ekm.toml",
            [],
        )),
        (!done.certificates).then(|| {
            step(
                "Certificates for the doors; one for each drive or proxy that asks",
                ["ekm tls init", "ekm tls issue ekm1 --role server"].map(str::to_owned),
            )
        }),
        (!done.token).then(|| token(plan, sources)),
        keks,
        (!done.defaults).then(|| {
            step(
                "The labels that drives and requests get that name none: are they on a token now?",
                defaults(plan),
            )
        }),
        Some(step(
            "The server",
            ["ekm config check".to_owned(), "ekm serve".to_owned()],
        )),
    ];
    let mut steps: Vec<Step> = steps.into_iter().flatten().collect();
    let drives: Vec<String> = plan
        .imports()
        .filter(|drive| !done.drives.contains(&drive.serial))
        .take(MOST)
        .map(enrol)
        .collect();
    if !drives.is_empty() {
        steps.push(step(
            "Each drive, once its public key's fingerprint is compared with what the drive shows; until \
             then it gets no key. A drive that takes no wrapped key: --form t10-00h --custody host in \
             place of --key, and a KEK of custody host",
            drives,
        ));
    }
    steps.push(step(
        "Is everything as it should be?",
        ["ekm assess".to_owned()],
    ));
    if plan.history.records > 0 {
        steps.push(step(
            "Read what EKM's cartridges hold with EKM, and write it anew with ekm, in the order of your \
             retention; when the last of them has expired, EKM can go",
            [],
        ));
    }
    steps
}

fn step(what: &str, commands: impl IntoIterator<Item = String>) -> Step {
    Step {
        what: what.to_owned(),
        commands: commands.into_iter().collect(),
    }
}

fn token(plan: &Plan, sources: &Sources) -> Step {
    let stays = plan.keystore.is_some_and(|kind| kind.fate == Fate::Stays);
    if stays {
        return step(
            "The HSM that EKM used: its profile, its label and its PIN in ekm.toml, then a look at it",
            ["ekm slot list", "ekm slot doctor --token main"].map(str::to_owned),
        );
    }
    let profile = sources
        .hsm
        .as_ref()
        .map_or("embedded", |(profile, _)| profile.as_str());
    step(
        "The token that the KEKs move into: decide on it in ekm.toml, then initialise it (an HSM by its \
         vendor's means)",
        [
            "(umask 077; openssl rand -hex 8 > pin; openssl rand -hex 8 > so-pin)".to_owned(),
            format!(
                "ekm slot init --profile {profile} --label ekm --so-pin-file so-pin --pin-file pin"
            ),
        ],
    )
}

/// None where every key that moves has moved.
fn keks(plan: &Plan, sources: &Sources, done: &Progress) -> Option<Step> {
    Some(match plan.keystore.map(|kind| kind.fate) {
        Some(Fate::Stays) => step(
            "The KEKs, in place: what of each key serves, and what would have to be changed",
            ["ekm kek adopt".to_owned()],
        ),
        Some(Fate::Export) => step(
            "The KEKs: exported on the system that has them, to PKCS#12 (docs/migrating-from-ekm.md has \
             the commands), then into the token; destroy the file after",
            ["ekm kek import kek.p12 --password-file password".to_owned()],
        ),
        Some(Fate::Moves) | None => {
            let file = sources.keystore.as_deref().unwrap_or("KEYSTORE");
            let password = sources.password_file.as_deref().unwrap_or("password");
            let moving = |row: &&KeyRow| row.verdict == Verdict::Moves;
            let left = |row: &&KeyRow| {
                let moved = row.key.hash().is_some_and(|hash| done.keks.contains(&hash));
                !moved
            };
            if plan.keys.iter().any(|row| moving(&row))
                && !plan.keys.iter().filter(moving).any(|row| left(&row))
            {
                return None;
            }
            let mut commands: Vec<String> = plan
                .keys
                .iter()
                .filter(moving)
                .filter(left)
                .take(MOST)
                .map(|row| {
                    format!(
                        "ekm kek import {} --alias {} --password-file {}",
                        quoted(file),
                        quoted(&row.key.alias),
                        quoted(password)
                    )
                })
                .collect();
            if commands.is_empty() {
                commands.push(format!(
                    "ekm kek import {} --password-file {}",
                    quoted(file),
                    quoted(password)
                ));
            }
            step(
                "The KEKs, from the keystore into the token; from then on they cannot be exported. Keep \
                 the keystore for EKM",
                commands,
            )
        }
    })
}

fn defaults(plan: &Plan) -> Vec<String> {
    let mut command = "ekm kek default".to_owned();
    for (name, kek) in [("kek1", &plan.defaults.kek1), ("kek2", &plan.defaults.kek2)] {
        if let Some(kek) = kek {
            command.push_str(&format!(" --{name} {}", reference(kek)));
        }
    }
    vec!["ekm kek list".to_owned(), command]
}

fn enrol(drive: &ImportedDrive) -> String {
    let ImportedDrive {
        serial,
        wwn,
        kek1,
        kek2,
    } = drive;
    let wwn = wwn.map_or_else(|| "WWN".to_owned(), |wwn| wwn.to_string());
    let mut command = format!("ekm drive mod {serial} --wwn {wwn} --key {serial}.pem");
    for (name, kek) in [("kek1", kek1), ("kek2", kek2)] {
        if let Some(kek) = kek {
            // Given again, because only then it is looked up on the tokens.
            command.push_str(&format!(" --{name} {}", reference(kek)));
        }
    }
    command.push_str(" --accept");
    command
}

/// A label alone means the same as with `:label`, except where it ends in an encoding itself.
fn reference(kek: &KekRef) -> String {
    let bare = kek.label.to_string();
    let plain = bare.parse::<KekRef>().is_ok_and(|read| read == *kek);
    quoted(&if plain { bare } else { kek.to_string() })
}

/// A word for a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) && !word.starts_with('-') {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("keys/EKM.jck"), "keys/EKM.jck");
        assert_eq!(quoted("it's $HOME"), "'it'\\''s $HOME'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("-rf"), "'-rf'");
    }

    #[test]
    fn a_label_that_ends_in_an_encoding_is_read_back_as_itself() {
        for label in ["kek", "Tape One", "kek:hash"] {
            let kek = KekRef {
                label: label.parse().unwrap(),
                encoding: crate::key::Encoding::Label,
            };
            let read: KekRef = reference(&kek).trim_matches('\'').parse().unwrap();
            assert_eq!(read, kek);
        }
    }
}
