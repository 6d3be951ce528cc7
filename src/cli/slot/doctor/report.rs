//! What `ekm slot doctor` prints.

use std::path::Path;

use serde::Serialize;

use crate::bridge::doctor::findings::{
    DataKeys, Examination, KekSeen, Keks, Outcome, SeenToken, Sessions, Surface, Trusted,
    UnwrappedKey,
};
use crate::bridge::doctor::fitting::{Difference, Verdict, without_oaep};
use crate::bridge::message::PrivateHalf;
use crate::cli::output;

/// Everything, as `--json` gives it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The token's configured name, or the profile's.
    pub(super) token: String,
    /// The profile that it was held against; none where only a module was named.
    pub(super) profile: Option<String>,
    /// A server used the token meanwhile.
    pub(super) beside_a_server: bool,
    /// Whether the token does what the profile says.
    pub(super) fits: bool,
    pub(super) verdicts: Vec<Verdict>,
    pub(super) differences: Vec<Difference>,
    /// A whole profile, TOML.
    pub(super) profile_that_fits: Option<String>,
    pub(super) examination: Examination,
}

impl Report {
    pub(super) fn show(&self, written: Option<&Path>) -> anyhow::Result<()> {
        let found = &self.examination;
        if let Some(surface) = &found.surface {
            show_surface(surface)?;
        }
        show_login(found)?;
        if let Some(sessions) = &found.sessions {
            show_sessions(sessions, self.beside_a_server)?;
        }
        if let Some(token) = found.surface.as_ref().and_then(|s| s.token.as_ref()) {
            show_mechanisms(token)?;
        }
        show_pairs(found)?;
        if let Some(data_keys) = &found.data_keys {
            show_data_keys(data_keys)?;
        }
        if let Some(keks) = &found.keks {
            show_keks(keks)?;
        }
        show_attacks(found)?;
        if let Some(trusted) = &found.trusted {
            show_trusted(trusted)?;
        }
        show_latency(found)?;
        self.show_judgement(written)
    }

    fn show_judgement(&self, written: Option<&Path>) -> anyhow::Result<()> {
        for (part, why) in &self.examination.interrupted {
            output::say("")?;
            output::say(&format!("interrupted: {part}: {why}"))?;
        }
        if self.verdicts.is_empty() {
            return Ok(());
        }
        output::say("")?;
        output::table(
            &["way of working", "possible", "why"],
            self.verdicts.iter().map(|verdict| {
                vec![
                    verdict.way.to_string(),
                    output::yes(Some(verdict.able)).to_owned(),
                    verdict.why.clone(),
                ]
            }),
        )?;
        if let Some(profile) = &self.profile {
            output::say("")?;
            output::say(&if self.fits {
                format!("the token does what the profile {profile} says")
            } else {
                format!("the token does not do what the profile {profile} says")
            })?;
            self.show_differences()?;
        }
        let Some(toml) = &self.profile_that_fits else {
            let tried = self.examination.pairs.iter().any(|pair| pair.made.works());
            return output::say(if tried {
                "no profile fits: the token cannot be used"
            } else {
                "the token makes no throw-away keys, so nothing could be tried; make a KEK with the vendor's tool, and see what ekm token status says"
            });
        };
        output::say("")?;
        match written {
            Some(path) => output::say(&format!(
                "a profile that fits was written to {}",
                path.display()
            )),
            None => output::say(&format!("A profile that fits:\n\n{}", toml.trim_end())),
        }
    }

    fn show_differences(&self) -> anyhow::Result<()> {
        if self.differences.is_empty() {
            return Ok(());
        }
        output::table(
            &["line", "is", "should be", "why"],
            self.differences.iter().map(|difference| {
                vec![
                    difference.field.clone(),
                    difference.profile.clone(),
                    if difference.breaks {
                        difference.token.clone()
                    } else {
                        format!("(may be) {}", difference.token)
                    },
                    difference.why.clone(),
                ]
            }),
        )
    }
}

fn show_surface(surface: &Surface) -> anyhow::Result<()> {
    let module = &surface.module;
    let mut fields = vec![
        ("library", surface.library.clone()),
        (
            "module",
            format!(
                "{}, {} {}.{}, PKCS#11 {}.{}",
                module.manufacturer,
                module.description,
                module.version.0,
                module.version.1,
                module.cryptoki.0,
                module.cryptoki.1
            ),
        ),
        ("slots", surface.slots.len().to_string()),
    ];
    if let Some(token) = &surface.token {
        let limits = &token.limits;
        fields.push((
            "token",
            format!("{:?} in slot {}", token.info.label, token.slot),
        ));
        fields.push(("  uri", token.uri.clone()));
        fields.push((
            "  versions",
            format!(
                "hardware {}.{}, firmware {}.{}",
                limits.hardware.0, limits.hardware.1, limits.firmware.0, limits.firmware.1
            ),
        ));
        fields.push(("  flags", token.flags.join(" ")));
        fields.push(("  user PIN", token.info.pin_words().to_owned()));
        fields.push(("  sessions", told(limits.max_rw_sessions)));
        fields.push((
            "  clock",
            match (token.clock_ahead, &limits.utc_time) {
                (Some(0), _) => "as ours, to the second".to_owned(),
                (Some(ahead), _) if ahead > 0 => format!("{ahead} s ahead of ours"),
                (Some(ahead), _) => format!("{} s behind ours", ahead.unsigned_abs()),
                (None, Some(text)) => format!("it has one, and says {text:?}"),
                (None, None) => "none (no CKF_CLOCK_ON_TOKEN)".to_owned(),
            },
        ));
    }
    if let Some(why) = &surface.no_token {
        fields.push(("token", why.clone()));
    }
    output::fields(&fields)
}

fn told(max: Option<u64>) -> String {
    match max {
        None => "told: nothing of a limit".to_owned(),
        Some(0) => "told: no limit".to_owned(),
        // Some modules write -1 or -2 for what they cannot say.
        Some(max) if max > u64::from(u32::MAX) => "told: no limit that means anything".to_owned(),
        Some(max) => format!("told: at most {max} read-write ones"),
    }
}

fn show_login(found: &Examination) -> anyhow::Result<()> {
    if let Some(login) = &found.login {
        output::say(&format!(
            "login       {}",
            match login {
                Outcome::Works => "yes".to_owned(),
                other => format!("no: {}", other.why()),
            }
        ))?;
        if *login != Outcome::Works {
            output::say(
                "not looked at, for that needs a login: sessions, key pairs, templates, OAEP, KEKs, attacks, latency",
            )?;
        }
    }
    if found.leftovers > 0 {
        output::say(&format!(
            "removed     {} objects that an interrupted ekm slot doctor had left",
            found.leftovers
        ))?;
    }
    Ok(())
}

fn show_sessions(sessions: &Sessions, beside_a_server: bool) -> anyhow::Result<()> {
    let end = match &sessions.ended {
        Some(ended) => format!("then {}", ended.why()),
        None if beside_a_server => "more were not tried beside a server".to_owned(),
        None => "more were not tried".to_owned(),
    };
    output::say(&format!("sessions    {} opened, {end}", sessions.opened))
}

fn show_mechanisms(token: &SeenToken) -> anyhow::Result<()> {
    output::say("")?;
    output::table(
        &["mechanism", "listed", "key sizes", "flags", "for"],
        token.mechanisms.iter().map(|mechanism| {
            let sizes = mechanism
                .info
                .map(|info| format!("{}-{}", info.min_key, info.max_key));
            vec![
                mechanism.name.clone(),
                output::yes(Some(mechanism.listed)).to_owned(),
                sizes.unwrap_or_else(|| "-".to_owned()),
                mechanism.flags.join(" "),
                mechanism.purpose.clone(),
            ]
        }),
    )
}

fn show_pairs(found: &Examination) -> anyhow::Result<()> {
    if found.pairs.is_empty() {
        return Ok(());
    }
    output::say("")?;
    output::table(
        &[
            "throw-away RSA-2048",
            "C_GenerateKeyPair",
            "kept as",
            "ms",
            "reads back",
        ],
        found.pairs.iter().map(|pair| {
            vec![
                pair.kind.to_string(),
                pair.made.short().to_owned(),
                match (pair.made.works(), pair.on_token) {
                    (false, _) => "-",
                    (true, true) => "token object",
                    (true, false) => "session object",
                }
                .to_owned(),
                pair.milliseconds.to_string(),
                output::yes(pair.reads_back).to_owned(),
            ]
        }),
    )
}

fn show_data_keys(data_keys: &DataKeys) -> anyhow::Result<()> {
    output::say("")?;
    output::fields(&[
        (
            "a drive's public key is imported",
            data_keys.import.to_string(),
        ),
        ("a data key is generated", data_keys.generate.to_string()),
        ("random numbers", data_keys.random.to_string()),
        (
            "a KEK with CKA_UNWRAP_TEMPLATE opens",
            data_keys.under_unwrap_template.to_string(),
        ),
    ])?;
    output::say("")?;
    output::table(
        &[
            "sent with it",
            "C_UnwrapKey",
            "the key is",
            "set after",
            "C_WrapKey",
        ],
        data_keys.ladder.iter().map(|rung| {
            let mut row = vec![rung.sent.to_string(), rung.unwrap.short().to_owned()];
            match &rung.key {
                None => row.extend(std::iter::repeat_n("-".to_owned(), 3)),
                Some(key) => row.extend([
                    described(key),
                    key.set_after.short().to_owned(),
                    key.wrap.short().to_owned(),
                ]),
            }
            row
        }),
    )?;
    output::say("")?;
    output::table(
        &["OAEP", "label", "C_UnwrapKey", "C_WrapKey", "C_Decrypt"],
        data_keys
            .oaep
            .iter()
            .map(|oaep| {
                vec![
                    oaep.hash.to_string(),
                    output::yes(Some(oaep.labelled)).to_owned(),
                    oaep.unwrap.short().to_owned(),
                    oaep.wrap.short().to_owned(),
                    oaep.decrypt.short().to_owned(),
                ]
            })
            .chain([vec![
                "none: v1.5".to_owned(),
                "-".to_owned(),
                data_keys.v15.unwrap.short().to_owned(),
                "-".to_owned(),
                data_keys.v15.decrypt.short().to_owned(),
            ]]),
    )?;
    match without_oaep(data_keys) {
        Some(words) => output::say(&format!("\n{words}")),
        None => Ok(()),
    }
}

/// What the attributes say of an unwrapped key, and whether it can be read.
fn described(key: &UnwrappedKey) -> String {
    let words = [
        (key.readable, "READABLE"),
        (key.sensitive == Some(true), "sensitive"),
        (key.extractable == Some(true), "extractable"),
    ];
    let said: Vec<&str> = words
        .iter()
        .filter(|(is, _)| *is)
        .map(|(_, word)| *word)
        .collect();
    said.join(" ")
}

fn show_keks(keks: &Keks) -> anyhow::Result<()> {
    output::say("")?;
    if keks.keks.is_empty() {
        return output::say("there is no KEK on the token");
    }
    output::table(
        &["KEK", "bits", "provenance", "attributes", "opens"],
        keks.keks.iter().map(|KekSeen { kek, opens }| {
            let (provenance, attributes) = match &kek.private {
                PrivateHalf::Absent => ("public half only".to_owned(), None),
                PrivateHalf::Refused { reason, attributes } => {
                    (format!("refused: {reason}"), Some(attributes))
                }
                PrivateHalf::Serves {
                    provenance,
                    attributes,
                    custody,
                } => (format!("{provenance}, custody {custody}"), Some(attributes)),
            };
            let attributes = attributes.map(|attributes| {
                let on = attributes
                    .named()
                    .into_iter()
                    .filter(|(_, on)| *on == Some(true))
                    .map(|(name, _)| name.trim_start_matches("CKA_").to_owned());
                let demanded = attributes
                    .demanded()
                    .into_iter()
                    .filter(|(_, on)| *on == Some(true))
                    .map(|(name, _)| {
                        format!("UNWRAP_TEMPLATE:{}", name.trim_start_matches("CKA_"))
                    });
                on.chain(demanded).collect::<Vec<_>>().join(" ")
            });
            vec![
                kek.label.to_string(),
                kek.bits.to_string(),
                provenance,
                attributes.unwrap_or_default(),
                opens.to_string(),
            ]
        }),
    )?;
    output::say(&format!("what opens is an EEDK by {}", keks.way))?;
    for KekSeen { kek, .. } in &keks.keks {
        if let PrivateHalf::Refused { attributes, .. } = &kek.private
            && attributes.extractable == Some(true)
        {
            output::say(&format!(
                "{} is extractable, as a key that an interrupted ceremony (ekm kek generate --copy) leaves: ekm kek list says whether it is one, and how to remove it",
                kek.label
            ))?;
        }
    }
    for label in &keks.ambiguous {
        output::say(&format!(
            "the label {label} is on two different keys: requests for it are refused; rename one with the vendor's tool"
        ))?;
    }
    Ok(())
}

fn show_attacks(found: &Examination) -> anyhow::Result<()> {
    if found.attacks.is_empty() {
        return Ok(());
    }
    output::say("")?;
    output::table(
        &["by someone with the PIN and the process", "on", "outcome"],
        found.attacks.iter().map(|attack| {
            let against = attack.against.map(|kind| kind.to_string());
            vec![
                attack.name.to_string(),
                against.unwrap_or_else(|| "any".to_owned()),
                attack.defence.to_string(),
            ]
        }),
    )
}

fn show_trusted(trusted: &Trusted) -> anyhow::Result<()> {
    output::say("")?;
    output::fields(&[
        (
            "the user makes a CKA_TRUSTED key",
            trusted.user_creates.to_string(),
        ),
        ("the user sets CKA_TRUSTED", trusted.user_sets.to_string()),
        (
            "the user copies a key with CKA_TRUSTED",
            trusted.user_copies.to_string(),
        ),
        (
            "CKA_WRAP_WITH_TRUSTED, generated key",
            trusted.generated.to_string(),
        ),
        (
            "CKA_WRAP_WITH_TRUSTED, unwrapped key",
            trusted.unwrapped.to_string(),
        ),
    ])
}

fn show_latency(found: &Examination) -> anyhow::Result<()> {
    if found.latency.is_empty() {
        return Ok(());
    }
    output::say("")?;
    let milliseconds = |ns: u64| format!("{}.{:04}", ns / 1_000_000, ns % 1_000_000 / 100);
    output::table(
        &["call", "times", "median ms", "longest ms"],
        found.latency.iter().map(|latency| {
            vec![
                latency.call.clone(),
                latency.times.to_string(),
                milliseconds(latency.p50_ns),
                milliseconds(latency.max_ns),
            ]
        }),
    )
}
