//! Why no key can be had of a token that answers: no KEK of it serves, so it has no canary either.

use crate::bridge::message::{KekOnToken, PrivateHalf, Ready};

/// KEKs whose reason is told one by one.
const TOLD: usize = 3;

/// Whether a KEK of it serves; only then is there a canary.
pub(super) fn serves(found: &Ready) -> bool {
    let mut keks = found.keks.iter();
    keks.any(|kek| matches!(kek.private, PrivateHalf::Serves { .. }))
}

/// Why none does; `held` where one did since the server started. None where one does.
pub(super) fn why(found: &Ready, held: bool) -> Option<String> {
    if serves(found) {
        return None;
    }
    let keks = &found.keks;
    if keks.is_empty() && held {
        return Some("its KEKs are gone: it shows none any more (ekm kek list)".to_owned());
    }
    if keks.is_empty() {
        return Some("there is no KEK on it yet to give keys under: ekm kek generate".to_owned());
    }
    let mut told: Vec<String> = keks.iter().take(TOLD).map(reason).collect();
    if keks.len() > TOLD {
        told.push("… (ekm kek list)".to_owned());
    }
    let told = told.join("; ");
    Some(format!("none of its {} KEKs serves: {told}", keks.len()))
}

fn reason(kek: &KekOnToken) -> String {
    let reason = match &kek.private {
        PrivateHalf::Refused { reason, .. } => reason.as_str(),
        PrivateHalf::Absent => "its private half is not there",
        // Where one serves, nothing is told.
        PrivateHalf::Serves { .. } => "it serves",
    };
    format!("{}: {reason}", kek.label)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bridge::message::{Custody, KekAttributes, Provenance};
    use crate::bridge::pkcs11::TokenInfo;
    use crate::key::KekHash;

    /// What a bridge finds on a token with these KEKs and so many sessions.
    pub(in crate::bridge::supervisor) fn found(keks: Vec<KekOnToken>, sessions: usize) -> Ready {
        Ready {
            token: TokenInfo::default(),
            keks,
            probe: None,
            trusted: Vec::new(),
            sessions,
            trouble: None,
        }
    }

    fn kek(label: &str, private: PrivateHalf) -> KekOnToken {
        KekOnToken {
            label: label.parse().unwrap(),
            hash: KekHash::of_spki(label.as_bytes()),
            spki: Vec::new(),
            bits: 2048,
            private,
            certificate: None,
        }
    }

    pub(in crate::bridge::supervisor) fn serving(label: &str) -> KekOnToken {
        let serves = PrivateHalf::Serves {
            custody: Custody::Token,
            provenance: Provenance::Born,
            attributes: KekAttributes::default(),
        };
        kek(label, serves)
    }

    pub(in crate::bridge::supervisor) fn refused(label: &str) -> KekOnToken {
        let refused = PrivateHalf::Refused {
            reason: "CKA_EXTRACTABLE is true".to_owned(),
            attributes: KekAttributes::default(),
        };
        kek(label, refused)
    }

    #[test]
    fn a_token_whose_keks_are_refused_or_gone_says_so() {
        let one = found(vec![refused("A"), serving("B")], 1);
        assert_eq!(why(&one, true), None);
        let none = found(vec![refused("A"), kek("B", PrivateHalf::Absent)], 1);
        let told = why(&none, false).unwrap();
        assert!(told.contains("A: CKA_EXTRACTABLE is true"), "{told}");
        assert!(told.contains("B: its private half"), "{told}");
        let empty = found(Vec::new(), 1);
        assert!(why(&empty, false).unwrap().contains("ekm kek generate"));
        assert!(why(&empty, true).unwrap().contains("gone"));
    }

    #[test]
    fn a_token_with_many_refused_keks_is_told_in_few_words() {
        let many = (0..40).map(|n| refused(&format!("KEK{n}"))).collect();
        let told = why(&found(many, 1), false).unwrap();
        assert!(told.contains("none of its 40 KEKs"), "{told}");
        assert!(told.len() < 300, "{told}");
    }
}
