//! What follows from the attributes of a private key.

use super::super::read::{Private, Row};
use super::super::{Half, Mend, Value, Verdict};
use super::Judged;
use crate::bridge::catalog;
use crate::bridge::message::{Custody, KekAttributes, Provenance};

impl Judged<'_> {
    /// The attributes of the private half.
    pub(super) fn private(&mut self, all: &[Row]) {
        let row = self.row;
        let Some(private) = &row.private else {
            return;
        };
        let KekAttributes {
            sensitive,
            extractable,
            always_sensitive: _,
            never_extractable: _,
            local: _,
            unwrap,
            decrypt,
            modifiable,
            sign: _,
            unwraps_sensitive: _,
            unwraps_trusted: _,
        } = private.attributes;
        match sensitive {
            Some(true) => self.note_attribute(Half::Private, "CKA_SENSITIVE", shown(sensitive), Verdict::Usable, None),
            Some(false) => self.mend(
                private,
                sensitive,
                "CKA_SENSITIVE",
                Value::Flag(true),
                "its value can be read from the token until then, so copies may exist, and CKA_ALWAYS_SENSITIVE stays FALSE".to_owned(),
                false,
                true,
            ),
            None => self.untold("CKA_SENSITIVE"),
        }
        match extractable {
            Some(false) => self.note_attribute(Half::Private, "CKA_EXTRACTABLE", shown(extractable), Verdict::Usable, None),
            Some(true) => self.mend(
                private,
                extractable,
                "CKA_EXTRACTABLE",
                Value::Flag(false),
                "it can be wrapped out of the token until then, so copies may exist, and CKA_NEVER_EXTRACTABLE stays FALSE; what backs it up by wrapping cannot any more".to_owned(),
                false,
                true,
            ),
            None => self.untold("CKA_EXTRACTABLE"),
        }
        self.uses(private, unwrap, decrypt);
        self.note_attribute(
            Half::Private,
            "CKA_MODIFIABLE",
            shown(modifiable),
            Verdict::Usable,
            None,
        );
        if private.always_authenticate == Some(true) {
            let reason = "CKA_ALWAYS_AUTHENTICATE is TRUE: it wants the PIN again before each use, which a key server cannot give".to_owned();
            self.against.push(reason.clone());
            self.note_attribute(
                Half::Private,
                "CKA_ALWAYS_AUTHENTICATE",
                shown(private.always_authenticate),
                Verdict::Not,
                Some(reason),
            );
        }
        if private.private == Some(false) {
            let note = "CKA_PRIVATE is FALSE: it can be used without a login".to_owned();
            self.notes.push(note.clone());
            self.note_attribute(
                Half::Private,
                "CKA_PRIVATE",
                shown(private.private),
                Verdict::Usable,
                Some(note),
            );
        }
        let twin = all
            .iter()
            .filter(|other| !std::ptr::eq(*other, row) && other.same_key(row));
        for other in twin.filter_map(|other| other.private.as_ref()) {
            let open = other.attributes.sensitive != Some(true)
                || other.attributes.extractable != Some(false);
            if open {
                self.against.push(format!(
                    "it is stored twice, and the other private key (CKA_ID {}) can be read or wrapped out: mend or delete that one first",
                    hex::encode(&other.id)
                ));
            } else {
                self.notes.push("it is stored twice".to_owned());
            }
        }
        self.provenance(private);
    }

    fn uses(&mut self, private: &Private, unwrap: Option<bool>, decrypt: Option<bool>) {
        let (unwraps, decrypts) = (unwrap == Some(true), decrypt == Some(true));
        if unwraps && !self.host_only {
            self.custody = Some(Custody::Token);
            self.note_attribute(
                Half::Private,
                "CKA_UNWRAP",
                shown(unwrap),
                Verdict::Usable,
                None,
            );
            let note = decrypts.then(|| {
                "CKA_DECRYPT is TRUE besides: whoever has the PIN can open its EEDKs in memory"
                    .to_owned()
            });
            self.notes.extend(note.clone());
            self.note_attribute(
                Half::Private,
                "CKA_DECRYPT",
                shown(decrypt),
                Verdict::Usable,
                note,
            );
            return;
        }
        if decrypts {
            self.custody = Some(Custody::Host);
            let note = if self.host_only {
                "this product opens EEDKs by C_Decrypt alone, so its KEKs are for custody host"
            } else {
                "CKA_DECRYPT is TRUE and CKA_UNWRAP is not: it serves drives of custody host, whose data keys are in ekm's memory for an instant"
            };
            self.notes.push(note.to_owned());
            self.note_attribute(
                Half::Private,
                "CKA_DECRYPT",
                shown(decrypt),
                Verdict::Host,
                Some(note.to_owned()),
            );
            if self.host_only || private.attributes.modifiable == Some(false) {
                self.note_attribute(
                    Half::Private,
                    "CKA_UNWRAP",
                    shown(unwrap),
                    Verdict::Host,
                    None,
                );
            } else {
                let why =
                    "then it serves with custody token, and for drives of custody host no more"
                        .to_owned();
                self.mend(
                    private,
                    unwrap,
                    "CKA_UNWRAP",
                    Value::Flag(true),
                    why,
                    true,
                    false,
                );
            }
            return;
        }
        if self.host_only {
            let reason = "CKA_DECRYPT is not TRUE, and this product opens EEDKs by C_Decrypt alone"
                .to_owned();
            self.against.push(reason.clone());
            self.note_attribute(
                Half::Private,
                "CKA_DECRYPT",
                shown(decrypt),
                Verdict::Not,
                Some(reason),
            );
            return;
        }
        let signs = private.sign == Some(true);
        let why = if signs {
            "neither CKA_UNWRAP nor CKA_DECRYPT is TRUE, but CKA_SIGN is: it may be in use to sign, and a key should do one thing"
        } else {
            "neither CKA_UNWRAP nor CKA_DECRYPT is TRUE, so it cannot open an EEDK"
        };
        self.custody = Some(Custody::Token);
        self.mend(
            private,
            unwrap,
            "CKA_UNWRAP",
            Value::Flag(true),
            why.to_owned(),
            signs,
            true,
        );
        self.note_attribute(
            Half::Private,
            "CKA_DECRYPT",
            shown(decrypt),
            Verdict::Usable,
            None,
        );
    }

    fn provenance(&mut self, private: &Private) {
        let KekAttributes {
            always_sensitive,
            never_extractable,
            local,
            ..
        } = private.attributes;
        for (name, value) in [
            ("CKA_ALWAYS_SENSITIVE", always_sensitive),
            ("CKA_NEVER_EXTRACTABLE", never_extractable),
            ("CKA_LOCAL", local),
        ] {
            self.note_attribute(Half::Private, name, shown(value), Verdict::Usable, None);
        }
        match catalog::provenance(&private.attributes) {
            // Nothing in a token is of software.
            Provenance::Born | Provenance::Software => {}
            Provenance::Copied => self.notes.push(
                "it was made on the token and could be read or wrapped out once: a copy may exist"
                    .to_owned(),
            ),
            // Which of the two, no attribute tells.
            Provenance::Imported | Provenance::Restored => self
                .notes
                .push("it was not made on this token: a copy existed outside".to_owned()),
        }
    }

    /// Something that `C_SetAttributeValue` would change, unless `CKA_MODIFIABLE` forbids it;
    /// `needed` where the key cannot serve without.
    #[expect(clippy::too_many_arguments, reason = "one line of a report")]
    pub(super) fn mend(
        &mut self,
        private: &Private,
        now: Option<bool>,
        attribute: &str,
        to: Value,
        why: String,
        by_name: bool,
        needed: bool,
    ) {
        let frozen = private.attributes.modifiable == Some(false);
        let reason = if frozen {
            let is = shown(now).map_or_else(String::new, |value| format!(" is {value}"));
            format!("{attribute}{is}, and CKA_MODIFIABLE is FALSE, so nobody can change it: {why}")
        } else {
            why.clone()
        };
        let verdict = match (frozen, needed) {
            (true, _) => Verdict::Not,
            (false, true) => Verdict::Mendable,
            (false, false) => Verdict::Host,
        };
        self.note_attribute(
            Half::Private,
            attribute,
            shown(now),
            verdict,
            Some(reason.clone()),
        );
        if frozen {
            self.against.push(reason);
        } else if let Some(hash) = self.row.hash() {
            self.mends.push(Mend {
                id: hex::encode(&private.id),
                hash,
                attribute: attribute.to_owned(),
                to,
                why,
                by_name,
            });
        }
    }

    fn untold(&mut self, name: &str) {
        let reason = format!("the token does not tell its {name}");
        self.against.push(reason.clone());
        self.note_attribute(Half::Private, name, None, Verdict::Not, Some(reason));
    }
}

fn shown(flag: Option<bool>) -> Option<String> {
    flag.map(|on| if on { "TRUE" } else { "FALSE" }.to_owned())
}
