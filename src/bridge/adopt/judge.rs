//! What follows from what a key's attributes say. No token is asked here.
//!
//! It must not promise more than the catalog keeps: what is called usable is
//! what [`catalog::judge`] lets serve, under a label that the catalog finds.

mod private;

use cryptoki_sys as ck;

use super::read::{Common, Row};
use super::{AttributeSeen, Half, KeySeen, Mend, Value, Verdict};
use crate::bridge::catalog;
use crate::bridge::message::Custody;
use crate::key::KeyLabel;

/// Key types that are met on tokens besides RSA.
const KINDS: [(ck::CK_KEY_TYPE, &str); 4] = [
    (ck::CKK_EC, "CKK_EC"),
    (ck::CKK_DSA, "CKK_DSA"),
    (ck::CKK_DH, "CKK_DH"),
    (ck::CKK_EC_EDWARDS, "CKK_EC_EDWARDS"),
];

/// The verdict on a key that is among these.
pub(super) fn judge(row: &Row, all: &[Row], host_only: bool) -> KeySeen {
    let mut judged = Judged {
        row,
        host_only,
        against: Vec::new(),
        notes: Vec::new(),
        mends: Vec::new(),
        attributes: Vec::new(),
        custody: None,
    };
    judged.kind();
    let label = judged.label(all);
    if row.is_rsa() {
        judged.private(all);
    }
    judged.seen(label)
}

/// A label, and which object has it.
struct Called {
    text: String,
    half: Half,
}

struct Judged<'a> {
    row: &'a Row,
    host_only: bool,
    /// What cannot be mended.
    against: Vec<String>,
    /// What is worth knowing.
    notes: Vec<String>,
    mends: Vec<Mend>,
    attributes: Vec<AttributeSeen>,
    custody: Option<Custody>,
}

impl Judged<'_> {
    fn seen(self, label: Option<Called>) -> KeySeen {
        let Self {
            row,
            host_only: _,
            against,
            notes,
            mends,
            attributes,
            custody,
        } = self;
        let needed = mends.iter().any(|mend| {
            attributes.iter().any(|seen| {
                seen.half == Half::Private
                    && seen.name == mend.attribute
                    && seen.verdict == Verdict::Mendable
            })
        });
        let verdict = if !against.is_empty() {
            Verdict::Not
        } else if needed {
            Verdict::Mendable
        } else if custody == Some(Custody::Host) {
            Verdict::Host
        } else {
            Verdict::Usable
        };
        // A key that cannot serve in any case is left as it is.
        let mends = if verdict == Verdict::Not {
            Vec::new()
        } else {
            mends
        };
        let mut reasons = against;
        reasons.extend(mends.iter().map(|mend| {
            let by_name = if mend.by_name {
                "; only where --only names the key"
            } else {
                ""
            };
            format!(
                "{} can become {}: {}{by_name}",
                mend.attribute, mend.to, mend.why
            )
        }));
        reasons.extend(notes);
        let mut halves: Vec<Half> = row.private.iter().map(|_| Half::Private).collect();
        halves.extend(row.public.first().map(|_| Half::Public));
        halves.extend(row.certificates.first().map(|_| Half::Certificate));
        KeySeen {
            label_of: label.as_ref().map(|label| label.half),
            label: label.map(|label| label.text),
            id: row
                .objects()
                .map(|object| hex::encode(&object.id))
                .find(|id| !id.is_empty())
                .unwrap_or_default(),
            kind: kind(row),
            hash: row.hash(),
            halves,
            provenance: row
                .private
                .as_ref()
                .map(|private| catalog::provenance(&private.attributes)),
            custody,
            verdict,
            reasons,
            mends,
            attributes,
        }
    }

    fn note_attribute(
        &mut self,
        half: Half,
        name: &str,
        value: Option<String>,
        verdict: Verdict,
        reason: Option<String>,
    ) {
        self.attributes.push(AttributeSeen {
            half,
            name: name.to_owned(),
            value,
            verdict,
            reason,
        });
    }

    /// Type, size, and which halves there are.
    fn kind(&mut self) {
        let row = self.row;
        if !row.is_rsa() {
            let reason = format!("its CKA_KEY_TYPE is {}: KEKs are RSA key pairs", kind(row));
            self.against.push(reason.clone());
            self.note_attribute(
                half_of(row),
                "CKA_KEY_TYPE",
                Some(kind(row)),
                Verdict::Not,
                Some(reason),
            );
            return;
        }
        match row.numbers() {
            None => {
                let reason = if row.public.is_empty() && row.certificates.is_empty() {
                    "the token does not give the CKA_MODULUS of its private key, and there is no public half: which key it is cannot be told"
                } else {
                    "the token does not give the CKA_MODULUS of its private key, and an equal CKA_ID proves no pair: which key it is cannot be told"
                };
                self.against.push(reason.to_owned());
                self.note_attribute(
                    half_of(row),
                    "CKA_MODULUS",
                    None,
                    Verdict::Not,
                    Some(reason.to_owned()),
                );
            }
            Some(numbers) => {
                let fits =
                    u32::try_from(numbers.bits).is_ok_and(|bits| catalog::BITS.contains(&bits));
                let reason = match (fits, &numbers.spki) {
                    (true, Some(_)) => None,
                    (true, None) => {
                        Some("its public exponent is not one that ekm wraps under".to_owned())
                    }
                    (false, _) => Some(format!(
                        "its modulus has {} bits: a KEK has 2048, 3072 or 4096, for which an EEDK has room",
                        numbers.bits
                    )),
                };
                self.against.extend(reason.clone());
                let verdict = if reason.is_none() {
                    Verdict::Usable
                } else {
                    Verdict::Not
                };
                self.note_attribute(
                    half_of(row),
                    "CKA_MODULUS",
                    Some(format!("{} bits", numbers.bits)),
                    verdict,
                    reason,
                );
            }
        }
        if row.private.is_none() {
            self.against.push(
                "its private half is not on this token: EEDKs can be made under it where policy allows an unproved KEK, and none is opened here".to_owned(),
            );
        }
        if row.strangers > 0 {
            self.notes.push(
                "another key's object has the same CKA_ID; ekm goes by the modulus, other programs may not".to_owned(),
            );
        }
    }

    /// What it is called, and whether ekm finds it by that.
    fn label(&mut self, all: &[Row]) -> Option<Called> {
        let row = self.row;
        let own = row
            .private
            .as_ref()
            .or(None)
            .map(|private| &private.common)
            .or(row.public.first());
        let own_half = half_of(row);
        let text = |object: &Common| {
            (!object.label.is_empty()).then(|| String::from_utf8_lossy(&object.label).into_owned())
        };
        let own_label = own.and_then(text);
        if let Some(label) = own_label {
            let problem = match label.parse::<KeyLabel>() {
                Err(error) => Some(format!("its label cannot be used: {error}")),
                Ok(parsed) => taken(row, &parsed, all),
            };
            self.against.extend(problem.clone());
            let verdict = if problem.is_none() {
                Verdict::Usable
            } else {
                Verdict::Not
            };
            self.note_attribute(own_half, "CKA_LABEL", Some(label.clone()), verdict, problem);
            return Some(Called {
                text: label,
                half: own_half,
            });
        }
        let private = row.private.as_ref()?;
        // What the catalog takes by itself comes first.
        let by_id = row
            .certificates
            .iter()
            .filter(|object| object.id == private.id && !private.id.is_empty());
        let found = by_id
            .map(|object| (object, Half::Certificate, true))
            .chain(
                row.certificates
                    .iter()
                    .map(|object| (object, Half::Certificate, false)),
            )
            .chain(
                row.public
                    .iter()
                    .map(|object| (object, Half::Public, false)),
            )
            .find_map(|(object, half, as_it_is)| text(object).map(|text| (text, half, as_it_is)));
        let Some((text, half, as_it_is)) = found else {
            let reason = "neither its private key nor its public key or certificate has a CKA_LABEL: give it one with the vendor's tool".to_owned();
            self.against.push(reason.clone());
            self.note_attribute(Half::Private, "CKA_LABEL", None, Verdict::Not, Some(reason));
            return None;
        };
        let label = match text.parse::<KeyLabel>() {
            Err(error) => {
                let reason = format!("the label of its {half} cannot be used: {error}");
                self.against.push(reason.clone());
                self.note_attribute(
                    half,
                    "CKA_LABEL",
                    Some(text.clone()),
                    Verdict::Not,
                    Some(reason),
                );
                return Some(Called { text, half });
            }
            Ok(label) => label,
        };
        let problem = taken(row, &label, all);
        if let Some(reason) = problem {
            self.against.push(reason.clone());
            self.note_attribute(
                half,
                "CKA_LABEL",
                Some(text.clone()),
                Verdict::Not,
                Some(reason),
            );
        } else if as_it_is {
            let reason = "its private key has no label; that of its certificate, which has the same CKA_ID, counts".to_owned();
            self.notes.push(reason.clone());
            self.note_attribute(
                half,
                "CKA_LABEL",
                Some(text.clone()),
                Verdict::Usable,
                Some(reason),
            );
        } else {
            let why = format!(
                "its private key has no label, and ekm would not find it by that of its {half}"
            );
            self.mend(
                private,
                None,
                "CKA_LABEL",
                Value::Label(label),
                why,
                false,
                true,
            );
        }
        Some(Called { text, half })
    }
}

fn half_of(row: &Row) -> Half {
    if row.private.is_some() {
        Half::Private
    } else {
        Half::Public
    }
}

/// `RSA-3072`, or the type as the standard spells it.
fn kind(row: &Row) -> String {
    let Some(kind) = row.objects().next().and_then(|object| object.kind) else {
        return "unknown".to_owned();
    };
    if kind == ck::CKK_RSA {
        return row.numbers().map_or_else(
            || "RSA".to_owned(),
            |numbers| format!("RSA-{}", numbers.bits),
        );
    }
    KINDS
        .iter()
        .find(|(number, _)| *number == kind)
        .map_or_else(|| format!("CKK_{kind:#x}"), |(_, name)| (*name).to_owned())
}

/// That another key has the label too.
fn taken(row: &Row, label: &KeyLabel, all: &[Row]) -> Option<String> {
    let also = all
        .iter()
        .filter(|other| !std::ptr::eq(*other, row) && !other.same_key(row))
        .find(|other| {
            other.objects().any(|object| {
                std::str::from_utf8(&object.label)
                    .ok()
                    .and_then(|text| text.parse::<KeyLabel>().ok())
                    .is_some_and(|its| its.same_as(label))
            })
        })?;
    let which = also.hash().map_or_else(
        || kind(also),
        |hash| hash.to_string().chars().take(16).collect(),
    );
    Some(format!(
        "another key ({which}) has the label {label} too, and ekm never guesses: rename or delete one with the vendor's tool"
    ))
}

#[cfg(test)]
mod tests;
