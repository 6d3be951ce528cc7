//! The lines of a profile, one section after the other: kept where the token
//! does what they say, changed as little as can be where not.

use serde::Serialize;

use super::{
    Difference, algorithm, cell, form_why, keeps, made, pair, refusal, rung_why, stops, usable,
};
use crate::bridge::doctor::findings::{AttackName, DataKeys, Examination, PairKind, Rung, Sent};
use crate::bridge::profile::{
    DataKeyProfile, Generate, HsmProfile, Send as SendAttr, Sensitive, UnwrapTemplate,
};
use crate::key::{OaepHash, SedkForm, WrapAlgorithm};

/// A profile on its way to the token.
pub(super) struct Fit<'a> {
    pub(super) found: &'a Examination,
    pub(super) data_keys: &'a DataKeys,
    pub(super) given: &'a HsmProfile,
    pub(super) best: bool,
    pub(super) profile: HsmProfile,
    pub(super) differences: Vec<Difference>,
}

impl Fit<'_> {
    pub(super) fn differ<T: Serialize + PartialEq>(
        &mut self,
        field: &str,
        given: &T,
        token: &T,
        breaks: bool,
        why: impl Into<String>,
    ) {
        if given == token {
            return;
        }
        self.differences.push(Difference {
            field: field.to_owned(),
            profile: toml_value(given),
            token: toml_value(token),
            breaks,
            why: why.into(),
        });
    }

    pub(super) fn unable(&mut self) {
        let forms: &[SedkForm] = &[];
        let given = self.given;
        self.differences.push(Difference {
            field: "drive.forms".to_owned(),
            profile: toml_value(&given.drive.forms),
            token: toml_value(&forms),
            breaks: true,
            why:
                "the token neither wraps and unwraps data keys nor decrypts them: it cannot be used"
                    .to_owned(),
        });
    }

    pub(super) fn eedk(&mut self, on_token: bool) {
        let given = self.given.eedk;
        let Some(best) = algorithm(self.data_keys, on_token).cloned() else {
            let v15 = WrapAlgorithm::Pkcs1V15;
            if !on_token && self.data_keys.v15.decrypt.works() {
                let why = "the token has no OAEP; policy.pkcs1_v15_eedks must allow the other way";
                self.differ("eedk.padding", &given.padding(), &v15.padding(), true, why);
                self.profile.eedk = v15;
            }
            return;
        };
        let WrapAlgorithm::Oaep { hash, labelled } = given else {
            let to = WrapAlgorithm::oaep(best.hash, best.labelled);
            let why = "the token has OAEP, which gives nothing away by a wrong padding";
            self.differ("eedk.padding", &given.padding(), &to.padding(), false, why);
            self.profile.eedk = to;
            return;
        };
        let works = |hash, labelled| {
            cell(self.data_keys, hash, labelled).filter(|oaep| usable(oaep, on_token))
        };
        let kept = works(hash, labelled);
        let nearest = kept
            .filter(|_| !self.best)
            .or_else(|| works(hash, best.labelled).filter(|_| !self.best))
            .unwrap_or(&best);
        let why = cell(self.data_keys, hash, labelled).map_or_else(String::new, |oaep| {
            match (on_token, oaep.unwrap.works()) {
                (true, false) => oaep.unwrap.why(),
                (true, true) => oaep.wrap.why(),
                (false, _) => oaep.decrypt.why(),
            }
        });
        let (to, could) = (nearest.clone(), best);
        if kept.is_none() {
            self.differ("eedk.hash", &hash, &to.hash, true, &why);
            self.differ("eedk.labelled", &labelled, &to.labelled, true, &why);
        } else {
            let why = "the token can";
            if hash == OaepHash::Sha1 {
                self.differ("eedk.hash", &hash, &could.hash, false, why);
            }
            if !labelled {
                self.differ("eedk.labelled", &labelled, &could.labelled, false, why);
            }
        }
        self.profile.eedk = WrapAlgorithm::oaep(to.hash, to.labelled);
    }

    pub(super) fn drive(&mut self, forms: &[SedkForm]) {
        let given = self.given.drive.forms.clone();
        let missing: Vec<String> = given
            .iter()
            .filter(|form| !forms.contains(form))
            .map(|form| format!("{form}: {}", form_why(self.found, self.data_keys, *form)))
            .collect();
        let kept: Vec<SedkForm> = given
            .iter()
            .copied()
            .filter(|form| forms.contains(form))
            .collect();
        if !missing.is_empty() {
            self.differ("drive.forms", &given, &kept, true, missing.join("; "));
        } else if forms.iter().any(|form| !given.contains(form)) {
            self.differ(
                "drive.forms",
                &given,
                &forms.to_vec(),
                false,
                "the token can",
            );
        }
        self.profile.drive.forms = if self.best { forms.to_vec() } else { kept };
    }

    pub(super) fn data_key(&mut self) {
        let given = self.given.data_key.clone();
        let sent = |profile: &DataKeyProfile| Sent {
            sensitive: profile.sensitive == Sensitive::Send,
            extractable: profile.extractable == SendAttr::Send,
            value_len: profile.value_len == SendAttr::Send,
        };
        let asked = sent(&given);
        let changes = |rung: &&Rung| {
            [
                rung.sent.sensitive != asked.sensitive,
                rung.sent.extractable != asked.extractable,
                rung.sent.value_len != asked.value_len,
            ]
            .into_iter()
            .filter(|changed| *changed)
            .count()
        };
        let good = |rung: &&Rung| keeps(rung, !rung.sent.sensitive);
        let ladder = &self.data_keys.ladder;
        let to = if self.best {
            self.data_keys.fits
        } else {
            let nearest = ladder.iter().filter(good).min_by_key(changes);
            nearest.map(|rung| rung.sent)
        };
        let Some(to) = to else {
            return;
        };
        let why = ladder
            .iter()
            .find(|rung| rung.sent == asked)
            .map(rung_why)
            .unwrap_or_default();
        let send = |on| if on { SendAttr::Send } else { SendAttr::Omit };
        let profile = DataKeyProfile {
            sensitive: if to.sensitive {
                Sensitive::Send
            } else {
                Sensitive::SetAfter
            },
            extractable: send(to.extractable),
            value_len: send(to.value_len),
            wrap_with_trusted: given.wrap_with_trusted,
            blesses: given.blesses,
        };
        self.differ(
            "data_key.sensitive",
            &given.sensitive,
            &profile.sensitive,
            true,
            &why,
        );
        self.differ(
            "data_key.extractable",
            &given.extractable,
            &profile.extractable,
            true,
            &why,
        );
        self.differ(
            "data_key.value_len",
            &given.value_len,
            &profile.value_len,
            true,
            &why,
        );
        self.profile.data_key = profile;
    }

    /// Whether data keys can be for trusted keys only, where the profile says so.
    pub(super) fn trusted(&mut self) {
        let verdict = super::verdict::trusted_verdict(self.found);
        let given = self.given.data_key.wrap_with_trusted;
        let none = self.profile.drive.forms.is_empty();
        if given && (none || !verdict.able) {
            let field = "data_key.wrap_with_trusted";
            let why = if none {
                "the token wraps for no drive".to_owned()
            } else {
                verdict.why
            };
            self.differ(field, &true, &false, true, why);
            self.profile.data_key.wrap_with_trusted = false;
        }
    }

    /// What becomes of `kek.unwrap_template`, and why. KEKs with it open
    /// nothing where `CKA_SENSITIVE` is set afterwards.
    fn unwrap_template(&mut self, to: &mut UnwrapTemplate) {
        let given = *to;
        let works = |kind| made(self.found, kind);
        let after = self.profile.data_key.sensitive == Sensitive::SetAfter;
        let opens = &self.data_keys.under_unwrap_template;
        let stopped = stops(
            self.found,
            AttackName::WeakTemplate,
            PairKind::UnwrapTemplate,
        );
        let tried = self.found.attacks.iter().any(|attack| {
            attack.name == AttackName::WeakTemplate
                && attack.against == Some(PairKind::UnwrapTemplate)
        });
        let refused = !works(PairKind::UnwrapTemplate);
        let (able, why) = if after {
            let why = "data_key.sensitive is set after the unwrap, which such a KEK refuses";
            (false, why.to_owned())
        } else if refused {
            (false, refusal(self.found, PairKind::UnwrapTemplate))
        } else if !opens.works() {
            (false, format!("such a KEK opens no EEDK: {}", opens.why()))
        } else if !(works(PairKind::Protected) && self.data_keys.under_protected.works()) {
            let why = refusal(self.found, PairKind::Protected);
            (false, format!("not together with the others: {why}"))
        } else if tried && !stopped {
            (
                false,
                "the token takes it and does not keep to it".to_owned(),
            )
        } else {
            (true, "the token can, and is safer with it".to_owned())
        };
        // Where it is only tried, a token that refuses it has KEKs without it.
        let breaks = !able
            && match given {
                UnwrapTemplate::Never => false,
                UnwrapTemplate::Try => !refused || after,
                UnwrapTemplate::Require => true,
            };
        let could = given == UnwrapTemplate::Never && able && stopped;
        let should = if able {
            UnwrapTemplate::Try
        } else {
            UnwrapTemplate::Never
        };
        if breaks || (could && self.best) || (!able && self.best) {
            *to = should;
        }
        if breaks || could {
            self.differ("kek.unwrap_template", &given, &should, breaks, why);
        }
    }

    /// How KEKs come into the token.
    pub(super) fn generate(&mut self, able: bool) {
        let given = self.given.kek.generate;
        if able {
            self.differ(
                "kek.generate",
                &given,
                &Generate::Pkcs11,
                false,
                "the token can",
            );
        } else {
            let why = refusal(self.found, PairKind::Plain);
            self.differ("kek.generate", &given, &Generate::VendorTool, true, why);
        }
    }

    pub(super) fn kek(&mut self) {
        self.generate(true);
        // Custody token is what the template protects.
        let template_counts = !self.profile.drive.forms.is_empty();
        let mut template = self.given.kek.unwrap_template;
        if template_counts {
            self.unwrap_template(&mut template);
        }
        let works = |kind| made(self.found, kind);
        let refusal = |kind| refusal(self.found, kind);
        let frozen = works(PairKind::Frozen);
        let uncopyable = works(PairKind::Uncopyable);
        let frozen_why = refusal(PairKind::Frozen);
        let uncopyable_why = refusal(PairKind::Uncopyable);
        // What no KEK lets happen needs no protection.
        let stops =
            |name, kind| stops(self.found, name, kind) && !stops(self.found, name, PairKind::Plain);
        let given = self.given.kek.clone();
        let mut profile = given.clone();
        // What the profile is for decides; custody host on the side is judged with its verdict.
        let kind = if template_counts {
            PairKind::Plain
        } else {
            PairKind::Host
        };
        let denied = pair(self.found, kind).is_none_or(|pair| pair.denied_uses);
        let denied_why = "KEKs are made only without it".to_owned();
        profile.unwrap_template = template;
        for (field, given, to, able, why, helps) in [
            (
                "kek.denied_uses",
                given.denied_uses,
                &mut profile.denied_uses,
                denied,
                denied_why,
                true,
            ),
            (
                "kek.frozen",
                given.frozen,
                &mut profile.frozen,
                frozen,
                frozen_why,
                stops(AttackName::FlipDecrypt, PairKind::Frozen),
            ),
            (
                "kek.uncopyable",
                given.uncopyable,
                &mut profile.uncopyable,
                uncopyable,
                uncopyable_why,
                stops(AttackName::CopyDecrypt, PairKind::Uncopyable),
            ),
        ] {
            let breaks = given == SendAttr::Send && !able;
            let could = given == SendAttr::Omit && able && helps;
            if breaks {
                *to = SendAttr::Omit;
            } else if could && self.best {
                *to = SendAttr::Send;
            }
            let (should, why) = if breaks {
                (SendAttr::Omit, why)
            } else {
                (
                    SendAttr::Send,
                    "the token can, and is safer with it".to_owned(),
                )
            };
            if breaks || could {
                self.differences.push(Difference {
                    field: field.to_owned(),
                    profile: toml_value(&given),
                    token: toml_value(&should),
                    breaks,
                    why,
                });
            }
        }
        self.profile.kek = profile;
    }

    pub(super) fn session(&mut self) {
        let Some(sessions) = &self.found.sessions else {
            return;
        };
        let Some(ended) = &sessions.ended else {
            return;
        };
        let (workers, processes) = (self.given.session.workers, self.given.session.processes);
        // In each process one more keeps the login.
        let fits = |workers, processes| (workers + 1) * processes <= sessions.opened;
        if fits(workers, processes) {
            return;
        }
        let why = format!("{} sessions opened, then {}", sessions.opened, ended.why());
        let fewer = (1..=processes).rev().find(|processes| fits(1, *processes));
        let to_processes = fewer.unwrap_or(1);
        let most = (sessions.opened / to_processes).saturating_sub(1).max(1);
        let to_workers = workers.min(most);
        self.differ("session.workers", &workers, &to_workers, true, &why);
        self.differ("session.processes", &processes, &to_processes, true, &why);
        // The limit, so that the profile cannot ask for more again.
        let limit = Some(sessions.opened);
        self.differ(
            "session.limit",
            &self.given.session.limit,
            &limit,
            true,
            &why,
        );
        self.profile.session.limit = limit;
        self.profile.session.workers = to_workers;
        self.profile.session.processes = to_processes;
    }
}

/// A value as TOML writes it; for strings, numbers, and lists of them that is as JSON does.
fn toml_value<T: Serialize>(value: &T) -> String {
    match serde_json::to_string(value) {
        Ok(text) if text == "null" => "(left out)".to_owned(),
        Ok(text) => text,
        Err(_) => String::new(),
    }
}
