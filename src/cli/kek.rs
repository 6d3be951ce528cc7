//! `ekm kek`

mod adopt;
mod ceremony;
mod cert;
mod file;
mod holders;
mod import;
mod life;
mod own_bridge;
mod partner;
pub(super) mod passwords;
mod restore;
mod rotate;
mod stage;

use anyhow::bail;
use der::pem::LineEnding;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::tell;
use super::{Context, output, site};
use crate::admin::{Command, Reply};
use crate::bridge::message::Custody;
use crate::copies::{CopyKind, KekCopy};
use crate::key::{KekRef, KeyLabel};
use crate::keystore::KnownKek;
use crate::store::{Defaults, KekState};

/// The columns of the list.
pub(super) const HEAD: [&str; 9] = [
    "label",
    "state",
    "bits",
    "custody",
    "provenance",
    "copies",
    "token",
    "valid until",
    "hash",
];

/// Which of them `ekm kek show` has to show on a narrow terminal.
pub(super) const NARROW: output::Narrow<'static> = output::Narrow {
    whole: &["hash", "valid until"],
    drops: &["provenance", "custody", "bits"],
    below: &["copies", "token"],
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Kek {
    /// Makes an RSA key pair on a token; the private half never leaves it.
    ///
    /// RSA-3072 by default: tapes live for thirty years. Make the backup of
    /// the token part of your plan before the first cartridge is written: a
    /// lost KEK is a lost tape.
    ///
    /// With --copy the KEK is wrapped once, at its birth, under a transport
    /// key that is split into shares, and is frozen then: see docs/kek-copies.md.
    /// Where the vendor clones its tokens (Luna, nShield, CloudHSM …), do that
    /// instead, and tell ekm with ekm kek copy confirm.
    Generate {
        /// Its label, at most 64 characters; case and trailing blanks make no difference.
        label: KeyLabel,
        /// Modulus length: 2048, 3072 or 4096 bits.
        #[arg(long, default_value_t = 3072)]
        bits: u32,
        /// The token, where the configuration has more than one.
        #[arg(long, value_name = "NAME")]
        token: Option<String>,
        /// token: opens EEDKs inside the token only. host: for drives that
        /// the token cannot wrap for; the data key is in ekm's memory for an
        /// instant.
        #[arg(long, default_value = "token")]
        custody: Custody,
        /// Lets it sign the request for its own certificate (CKA_SIGN), which
        /// ekm kek csr needs. One key for two uses is frowned upon: whoever
        /// has the token's PIN could then also sign by it. Without this it
        /// opens data keys and does nothing else.
        #[arg(long, conflicts_with = "copy")]
        sign: bool,
        #[command(flatten)]
        copies: ceremony::Copies,
    },
    /// Moves an RSA key pair from a key file into a token.
    ///
    /// From then on it is SENSITIVE and not EXTRACTABLE, and its provenance is "imported". The
    /// key goes straight to a bridge of this command's own, wrapped on its way into the token
    /// where the token can unwrap it; a running server never has it, and records the import.
    /// What fails on the way is undone. Passwords come from files of mode 0600 or are asked for,
    /// never from the command line.
    Import(import::Import),
    /// Says which key pairs of a token can be KEKs, and mends those that nearly can.
    ///
    /// For keys that other programs made: an HSM behind Java's PKCS11IMPLKS, for one. Looks at
    /// every RSA pair, paired by CKA_ID and by modulus, and says of each whether it is usable
    /// as it is, with custody host, after changes of its attributes, or not, and why. Exit code
    /// 3 where a change was not made.
    Adopt(adopt::Adopt),
    /// Restores a KEK from its copy and its holders' shares, on another token.
    ///
    /// The private half is unwrapped inside the token, not extractable from
    /// then on, and opens an EEDK that is made under its public half. The
    /// transport key is in the memory of this command and of its bridge
    /// meanwhile.
    Restore(restore::FromCopy),
    /// Copies of KEKs: a vendor's clone is stated, a ceremony's copy proved again.
    #[command(subcommand)]
    Copy(restore::Copy),
    /// Lists the KEKs on all tokens, or with --file the keys in a key file.
    ///
    /// With --file no configuration and no server is needed. The format (JKS, JCEKS, PKCS#12,
    /// PEM) is seen from the file's content. Shown are the key pairs, certificates and secret
    /// keys in it, and which of them can be KEKs: RSA of 2048, 3072 or 4096 bits under an alias
    /// that is a key label. Nothing is changed or kept.
    List(file::List),
    /// Shows one KEK.
    Show {
        /// Its label.
        label: KeyLabel,
    },
    /// Prints a KEK's public half: SubjectPublicKeyInfo PEM, or its certificate.
    Export {
        /// Its label.
        label: KeyLabel,
        /// Confirms that the public half is what you want; the private half cannot be had.
        #[arg(long, required = true)]
        public: bool,
        /// The bare key also where there is a certificate.
        #[arg(long)]
        bare: bool,
    },
    /// Prints a request for a certificate (PKCS#10), signed by the KEK on its
    /// token.
    ///
    /// Only a KEK that was made with --sign can. For others there is: ekm kek
    /// cert issue.
    Csr(cert::Csr),
    /// Certificates of your KEKs: import, issue.
    #[command(subcommand)]
    Cert(cert::Cert),
    /// KEKs of business partners: public keys that you have confirmed.
    #[command(subcommand)]
    Partner(partner::Partner),
    /// Retires a KEK for writing: nothing new is written under it, and its volumes are still read.
    Retire(life::Turn),
    /// Takes a retirement or a revocation back.
    Activate(life::Turn),
    /// Revokes a retired KEK: nothing is read or written under it any more.
    ///
    /// Refused while a volume has an EEDK under it, on the cartridge or in the catalog, until it is
    /// rekeyed and mounted (ekm volume rekey) or given up by name (ekm volume write-off).
    Revoke(life::Turn),
    /// Destroys a retired or revoked KEK on its tokens, for good.
    ///
    /// Refused as a revocation is. Its label stays taken. A token may not let a key go; then the
    /// vendor's tool destroys it, and this command, run again, notes that.
    Delete(life::Delete),
    /// Says which volumes die with a KEK: those with an EEDK under it, and those that nothing else opens.
    Impact(life::ImpactOf),
    /// Puts a new KEK in the place of one: in the global labels and the drive table.
    ///
    /// The new one is made at once, as long as the old one and on the same token. At the time that
    /// is set (--at; else at once) defaults and drives that name the old one name the new one, and
    /// the old one is retired for writing. A server does that; it also does it after a restart.
    Rotate(rotate::Rotate),
    /// KEKs that are rotated by the calendar.
    #[command(subcommand)]
    Schedule(rotate::Schedule),
    /// Shows or sets the labels for drives and requests that name none.
    Default {
        /// First KEK: LABEL, LABEL:label or LABEL:hash.
        #[arg(long, value_name = "LABEL[:label|:hash]")]
        kek1: Option<KekRef>,
        /// Second KEK. Both are set together: without it there is none.
        #[arg(long, value_name = "LABEL[:label|:hash]", requires = "kek1")]
        kek2: Option<KekRef>,
        /// Takes both away.
        #[arg(long, conflicts_with_all = ["kek1", "kek2"])]
        none: bool,
        /// Sets partners' KEKs alone, although no key here could then read a cartridge.
        #[arg(long, requires = "kek1")]
        anyway: bool,
    },
}

impl Kek {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Generate {
                label,
                bits,
                token,
                custody,
                sign,
                copies,
            } => {
                if let Some(ceremony) = copies.asked(&label, bits, token.as_deref(), custody) {
                    return ceremony?.hold(context);
                }
                let spinner = spinner(&format!("generating KEK {label}, RSA-{bits}"));
                let reply = site::execute(
                    context,
                    Command::KekGenerate {
                        label,
                        bits,
                        token,
                        custody,
                        sign,
                    },
                );
                spinner.finish_and_clear();
                let keks = keks(reply?)?;
                if context.json {
                    return output::json(&keks);
                }
                keks.iter().try_for_each(show)
            }
            Self::Import(import) => import.run(context),
            Self::Adopt(adopt) => adopt.run(context),
            Self::Restore(from) => from.restore(context),
            Self::Copy(copy) => copy.run(context),
            Self::List(list) if list.of_file() => list.run(context),
            Self::List(_) => {
                let keks = keks(site::execute(context, Command::KekList)?)?;
                if context.json {
                    return output::json(&keks);
                }
                output::table_narrow(
                    NARROW,
                    &HEAD,
                    keks.iter().map(|kek| {
                        vec![
                            kek.label.to_string(),
                            state(kek).to_string(),
                            kek.bits.to_string(),
                            custody(kek),
                            provenance(kek),
                            copies(kek),
                            kek.place(),
                            kek.validity
                                .map_or_else(|| "-".to_owned(), |validity| validity.last_day()),
                            kek.hash.to_string().chars().take(16).collect(),
                        ]
                    }),
                )?;
                for kek in &keks {
                    for (token, reason) in &kek.refused {
                        output::say(&format!("{} is refused on {token}: {reason}", kek.label))?;
                    }
                    if kek.is_away() {
                        output::say(&format!(
                            "{} is out of reach: token {} has not been up since the start (ekm token status)",
                            kek.label,
                            kek.away.join(", ")
                        ))?;
                    }
                    if let Some(warning) = warning(kek) {
                        output::say(&format!("{}: {warning}", kek.label))?;
                    }
                    if let Some(standing) = &kek.standing {
                        output::say(&format!("{} was {}", kek.label, standing.words()))?;
                    }
                }
                Ok(())
            }
            Self::Show { label } => {
                let found = named(context, &label)?;
                if context.json {
                    return output::json(&found);
                }
                found.iter().try_for_each(show)
            }
            Self::Export {
                label,
                public: _,
                bare,
            } => {
                let found = named(context, &label)?;
                let [kek] = found.as_slice() else {
                    bail!(
                        "the label {label} is on {} different keys; ekm kek show {label} tells them apart",
                        found.len()
                    );
                };
                let (kind, der) = match &kek.certificate {
                    Some(certificate) if !bare => ("CERTIFICATE", certificate),
                    Some(_) | None => ("PUBLIC KEY", &kek.spki),
                };
                let pem = der::pem::encode_string(kind, LineEnding::LF, der)
                    .map_err(|error| anyhow::anyhow!("cannot write PEM: {error}"))?;
                if context.json {
                    return output::json(&serde_json::json!({
                        "label": kek.label,
                        "hash": kek.hash,
                        "kind": kind,
                        "pem": pem,
                    }));
                }
                output::say(pem.trim_end())
            }
            Self::Csr(csr) => csr.run(context),
            Self::Cert(cert) => cert.run(context),
            Self::Partner(partner) => partner.run(context),
            Self::Retire(turn) => turn.run(context, KekState::Retired),
            Self::Activate(turn) => turn.run(context, KekState::Active),
            Self::Revoke(turn) => turn.run(context, KekState::Revoked),
            Self::Delete(delete) => delete.run(context),
            Self::Impact(impact) => impact.run(context),
            Self::Rotate(rotate) => rotate.run(context),
            Self::Schedule(schedule) => schedule.run(context),
            Self::Default {
                kek1,
                kek2,
                none,
                anyway,
            } => {
                let set =
                    (kek1.is_some() || kek2.is_some() || none).then_some(Defaults { kek1, kek2 });
                let command = Command::KekDefault { set, anyway };
                let (defaults, before, warnings) = match site::execute(context, command)? {
                    Reply::Defaults(defaults) => (defaults, Defaults::default(), Vec::new()),
                    Reply::DefaultsSet {
                        defaults,
                        before,
                        warnings,
                    } => (defaults, before.unwrap_or_default(), warnings),
                    other => return site::out_of_turn(&other),
                };
                for warning in &warnings {
                    tell(&format!("warning: {warning}"));
                }
                if context.json {
                    return output::json(&defaults);
                }
                let text = |kek: Option<KekRef>, before: Option<KekRef>| match (kek, before) {
                    (Some(kek), _) => kek.to_string(),
                    (None, Some(before)) => format!("(none; it was {before})"),
                    (None, None) => "(none)".to_owned(),
                };
                output::fields(&[
                    ("kek1", text(defaults.kek1, before.kek1)),
                    ("kek2", text(defaults.kek2, before.kek2)),
                ])
            }
        }
    }
}

fn keks(reply: Reply) -> anyhow::Result<Vec<KnownKek>> {
    match reply {
        Reply::Keks(keks) => Ok(keks),
        other => site::out_of_turn(&other),
    }
}

fn named(context: &Context, label: &KeyLabel) -> anyhow::Result<Vec<KnownKek>> {
    let found: Vec<KnownKek> = keks(site::execute(context, Command::KekList)?)?
        .into_iter()
        .filter(|kek| kek.label.same_as(label))
        .collect();
    if found.is_empty() {
        bail!("no token has a KEK labelled {label} (ekm kek list)");
    }
    Ok(found)
}

fn show(kek: &KnownKek) -> anyhow::Result<()> {
    let mut fields = vec![
        ("label", kek.label.to_string()),
        ("state", state(kek).to_string()),
        ("public-key hash", format!("sha256:{}", kek.hash)),
        ("modulus", format!("{} bits", kek.bits)),
        ("custody", custody(kek)),
        ("provenance", provenance(kek)),
        ("tokens", kek.place()),
        ("registered", output::yes(Some(kek.registered)).to_owned()),
        (
            "certificate",
            output::yes(Some(kek.certificate.is_some())).to_owned(),
        ),
    ];
    if let Some(validity) = &kek.validity {
        fields.push(("valid until", validity.last_day()));
    }
    fields.extend(warning(kek).map(|warning| ("warning", warning)));
    let standing = kek.standing.as_ref();
    fields.extend(standing.map(|standing| ("it was", standing.words())));
    if let Some(partner) = &kek.partner {
        fields.push(("a partner's", format!("confirmed by {}", partner.operator)));
    }
    for copy in &kek.copies {
        fields.push(("copy", copy.words()));
    }
    if !kek.tokens.is_empty() && kek.backed().is_none() {
        let never = if kek.is_kept() {
            "in none, but there is a copy"
        } else {
            "in none, and there is no copy that counts: ekm backup FILE"
        };
        fields.push(("backup", never.to_owned()));
    }
    if kek.copies.is_empty() && kek.serials.len() < 2 {
        fields.push(("copy", "none known".to_owned()));
    }
    for (token, reason) in &kek.refused {
        fields.push(("refused", format!("on {token}: {reason}")));
    }
    for (token, attributes) in &kek.attributes {
        let text = attributes
            .named()
            .map(|(name, value)| format!("{name}={}", output::yes(value)))
            .join(" ");
        fields.push(("attributes", format!("on {token}: {text}")));
        let demanded = attributes
            .demanded()
            .map(|(name, value)| format!("{name}={}", output::yes(value)))
            .join(" ");
        fields.push(("unwrap template", format!("on {token}: {demanded}")));
    }
    output::fields(&fields)
}

fn warning(kek: &KnownKek) -> Option<String> {
    kek.validity?.warning(time::OffsetDateTime::now_utc())
}

fn state(kek: &KnownKek) -> KekState {
    kek.standing
        .as_ref()
        .map_or(KekState::Active, |standing| standing.state)
}

fn custody(kek: &KnownKek) -> String {
    match (kek.custody, &kek.partner) {
        (Some(custody), _) => custody.to_string(),
        (None, _) if kek.is_away() => "out of reach".to_owned(),
        (None, _) if kek.missing.is_some() => "missing".to_owned(),
        (None, Some(_)) => "partner".to_owned(),
        (None, None) => "no private half".to_owned(),
    }
}

fn provenance(kek: &KnownKek) -> String {
    kek.provenance
        .map_or_else(|| "-".to_owned(), |provenance| provenance.to_string())
}

/// Second copies in a few letters: more tokens, proven and stated ones.
fn copies(kek: &KnownKek) -> String {
    let count = |wanted: fn(&&KekCopy) -> bool| kek.copies.iter().filter(wanted).count();
    let mut told = Vec::new();
    if kek.serials.len() > 1 {
        told.push(format!("{} tokens", kek.serials.len()));
    }
    if count(|copy| copy.kind == CopyKind::Ceremony && copy.proven) > 0 {
        told.push("proven".to_owned());
    } else if count(|copy| copy.kind == CopyKind::Ceremony) > 0 {
        told.push("not proven".to_owned());
    }
    if count(|copy| copy.kind == CopyKind::Stated) > 0 {
        told.push("stated".to_owned());
    }
    if count(|copy| copy.kind == CopyKind::Backup) > 0 {
        told.push("backup".to_owned());
    }
    if told.is_empty() {
        return "-".to_owned();
    }
    told.join(", ")
}

/// A sign of life on a terminal; a key pair takes a token seconds to minutes.
fn spinner(message: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(message.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}
