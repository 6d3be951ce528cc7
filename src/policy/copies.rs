//! Whether a cartridge would outlive the loss of one token.

use super::{Refusal, RequireCopy};
use crate::copies::{CopyKind, KekCopy};
use crate::keystore::KnownKek;

const MAKE: &str = "make a KEK with a copy (ekm kek generate LABEL --copy FILE --shares 2-of-3), restore its copy on a second token (ekm kek restore), or name a KEK of another token as the second (ekm kek default --kek2 LABEL, ekm drive mod SERIAL --kek2 LABEL)";

const MAKE_OR_STATE: &str = "if the vendor's tool has cloned the token, say so with ekm kek copy confirm LABEL; else make a KEK with a copy (ekm kek generate LABEL --copy FILE --shares 2-of-3), restore its copy on a second token (ekm kek restore), or name a KEK of another token as the second";

/// Judges the KEKs that a cartridge would have EEDKs under. One of them that
/// outlives a token is enough: either EEDK opens the cartridge.
///
/// # Errors
/// [`Refusal::NoCopy`]
pub(super) fn required(rule: RequireCopy, keks: &[&KnownKek]) -> Result<(), Refusal> {
    let counts = |copy: &KekCopy| match rule {
        RequireCopy::Off => true,
        RequireCopy::Stated => copy.proven || copy.kind == CopyKind::Stated,
        // A restored one is on a token, and counts as long as the token shows it.
        RequireCopy::Proven => copy.proven,
    };
    if rule == RequireCopy::Off
        || holders(keks) > 1
        || keks.iter().filter(|kek| !kek.tokens.is_empty()).any(|kek| {
            kek.copies
                .iter()
                .any(|copy| copy.kind != CopyKind::Restored && counts(copy))
        })
    {
        return Ok(());
    }
    let labels: Vec<String> = keks.iter().map(|kek| kek.label.to_string()).collect();
    let some = keks.iter().any(|kek| !kek.copies.is_empty());
    let token = keks
        .iter()
        .flat_map(|kek| &kek.tokens)
        .next()
        .map(String::as_str)
        .unwrap_or_default();
    Err(Refusal::NoCopy {
        labels: labels.join(" and "),
        rule,
        why: if some {
            format!(
                "beside token {token} there are copies that do not count (ekm kek show), since they were not proven"
            )
        } else {
            format!("token {token} has the only copy")
        },
        advice: match rule {
            RequireCopy::Stated => MAKE_OR_STATE,
            RequireCopy::Off | RequireCopy::Proven => MAKE,
        },
    })
}

/// Tokens that hold a private half of any of them. Names do not count: one
/// token may be configured twice.
fn holders(keks: &[&KnownKek]) -> usize {
    let mut serials: Vec<&str> = keks
        .iter()
        .flat_map(|kek| &kek.serials)
        .map(String::as_str)
        .collect();
    serials.sort_unstable();
    serials.dedup();
    serials.len()
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::key::KekHash;

    fn kek(label: &str, on: &[(&str, &str)], copies: &[(CopyKind, bool)]) -> KnownKek {
        let hash = KekHash::of_spki(label.as_bytes());
        KnownKek {
            tokens: on.iter().map(|(token, _)| (*token).to_owned()).collect(),
            registered: true,
            serials: on.iter().map(|(_, serial)| (*serial).to_owned()).collect(),
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
            ..KnownKek::bare(label.parse().unwrap(), hash, Vec::new(), 2048)
        }
    }

    #[test]
    fn what_counts_as_a_second_copy() {
        use CopyKind::{Ceremony, Restored, Stated};
        let one = [("main", "1")];
        let cases = [
            // KEKs, then whether it is enough for "stated" and for "proven".
            (vec![kek("A", &one, &[])], false, false),
            (vec![kek("A", &one, &[(Ceremony, true)])], true, true),
            (vec![kek("A", &one, &[(Ceremony, false)])], false, false),
            (vec![kek("A", &one, &[(Stated, false)])], true, false),
            // Restored to a token that is not configured any more.
            (vec![kek("A", &one, &[(Restored, true)])], false, false),
            (
                vec![kek("A", &[("main", "1"), ("second", "2")], &[])],
                true,
                true,
            ),
            // One token under two names.
            (
                vec![kek("A", &[("main", "1"), ("second", "1")], &[])],
                false,
                false,
            ),
            (
                vec![kek("A", &one, &[]), kek("B", &[("second", "2")], &[])],
                true,
                true,
            ),
            (vec![kek("A", &one, &[]), kek("B", &one, &[])], false, false),
            // A partner's key is on no token here.
            (vec![kek("A", &one, &[]), kek("P", &[], &[])], false, false),
            (
                vec![kek("A", &one, &[]), kek("P", &[], &[(Stated, false)])],
                false,
                false,
            ),
            (
                vec![kek("A", &one, &[]), kek("B", &one, &[(Ceremony, true)])],
                true,
                true,
            ),
        ];
        for (keks, stated, proven) in cases {
            let keks: Vec<&KnownKek> = keks.iter().collect();
            let enough = |rule| required(rule, &keks).is_ok();
            assert!(enough(RequireCopy::Off));
            assert_eq!(enough(RequireCopy::Stated), stated, "{keks:?}");
            assert_eq!(enough(RequireCopy::Proven), proven, "{keks:?}");
        }
    }

    #[test]
    fn the_refusal_says_what_to_do() {
        let lone = kek("TAPE", &[("main", "1")], &[]);
        let told = required(RequireCopy::Proven, &[&lone])
            .unwrap_err()
            .to_string();
        assert!(
            told.contains("TAPE: policy.require_copy = \"proven\""),
            "{told}"
        );
        assert!(told.contains("token main has the only copy"), "{told}");
        assert!(told.contains("--shares 2-of-3"), "{told}");
        assert!(!told.contains("copy confirm"), "{told}");
    }
}
