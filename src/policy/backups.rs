//! Whether a KEK would outlive the loss of what it is on, before it is served.

use super::{BackupBeforeServing, Refusal};
use crate::keystore::KnownKek;

/// Judges each KEK whose private half is here. Unlike `require_copy`, which asks for
/// the cartridge, this asks for each key: none is served that was never backed up.
///
/// # Errors
/// [`Refusal::NoBackup`]
pub(super) fn required(rule: BackupBeforeServing, keks: &[&KnownKek]) -> Result<(), Refusal> {
    if rule != BackupBeforeServing::Require {
        return Ok(());
    }
    let labels: Vec<String> = keks
        .iter()
        .filter(|kek| !kek.tokens.is_empty() && !kek.is_kept())
        .map(|kek| kek.label.to_string())
        .collect();
    if labels.is_empty() {
        return Ok(());
    }
    Err(Refusal::NoBackup {
        labels: labels.join(" and "),
    })
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::copies::{CopyKind, KekCopy};
    use crate::key::KekHash;

    fn kek(serials: &[&str], copies: &[(CopyKind, bool)]) -> KnownKek {
        let hash = KekHash::of_spki(b"kek");
        KnownKek {
            tokens: serials.iter().map(|serial| (*serial).to_owned()).collect(),
            serials: serials.iter().map(|serial| (*serial).to_owned()).collect(),
            copies: copies
                .iter()
                .map(|(kind, proven)| KekCopy {
                    kek: hash,
                    kind: *kind,
                    ceremony: None,
                    token: None,
                    serial: None,
                    proven: *proven,
                    note: None,
                    at: OffsetDateTime::UNIX_EPOCH,
                })
                .collect(),
            ..KnownKek::bare("TAPE".parse().unwrap(), hash, Vec::new(), 2048)
        }
    }

    #[test]
    fn what_counts_as_kept() {
        use CopyKind::{Backup, Ceremony, Restored, Stated};
        let cases = [
            (kek(&["1"], &[]), false),
            (kek(&["1"], &[(Backup, false)]), true),
            (kek(&["1"], &[(Ceremony, false)]), false),
            (kek(&["1"], &[(Ceremony, true)]), true),
            (kek(&["1"], &[(Stated, false)]), true),
            // On a token that is not here any more, for all that is known.
            (kek(&["1"], &[(Restored, true)]), false),
            (kek(&["1", "2"], &[]), true),
            // One token under two names.
            (kek(&["1", "1"], &[]), false),
            // A partner's is on no token here.
            (kek(&[], &[]), true),
        ];
        for (n, (kek, enough)) in cases.iter().enumerate() {
            let judged = required(BackupBeforeServing::Require, &[kek]);
            assert_eq!(judged.is_ok(), *enough, "case {n}");
            for rule in [BackupBeforeServing::Off, BackupBeforeServing::Warn] {
                assert!(required(rule, &[kek]).is_ok());
            }
        }
        let (kept, bare) = (kek(&["1"], &[(Backup, false)]), kek(&["1"], &[]));
        let refused = required(BackupBeforeServing::Require, &[&kept, &bare]).unwrap_err();
        assert!(refused.to_string().contains("ekm backup"), "{refused}");
    }
}
