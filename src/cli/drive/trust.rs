//! `ekm drive trust`

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use secrecy::SecretString;

use super::super::{Context, output, runtime, site};
use crate::admin::{Command, Reply, TrustStage};
use crate::bridge::message::{self, Hello, Task};
use crate::bridge::pin::{Pin, PinSource};
use crate::bridge::supervisor::{Program, once};
use crate::bridge::trust::{Blessing, Trust, Trusted, drive_label, kek_label};
use crate::config::{Config, TokenConfig};
use crate::drive::DriveSerial;
use crate::key::{KekHash, KeyLabel, SedkForm};
use crate::keystore::KnownKek;
use crate::store::{Drive, DriveKey};

/// Which drives, on which token.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct TrustDrives {
    /// Drives to bless, by serial; they must be in the table with their key.
    serials: Vec<DriveSerial>,
    /// All drives of the table that have a key of their own.
    #[arg(long, conflicts_with = "serials")]
    all: bool,
    /// The token, where the configuration has more than one.
    #[arg(long, value_name = "NAME")]
    token: Option<String>,
    /// A file with the security officer's PIN; asked for where it is not given.
    #[arg(long, value_name = "FILE")]
    so_pin_file: Option<PathBuf>,
    /// Blesses without asking whether the fingerprints are right.
    #[arg(long)]
    yes: bool,
}

impl TrustDrives {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let config = context.own_config()?;
        let token = chosen(&config, self.token.as_deref())?;
        let profile = token.settled_profile()?;
        if !profile.data_key.blesses {
            bail!(
                "token {}: a token of profile {} takes no blessed keys (CKA_TRUSTED), so nothing was asked of its security officer; data_key.wrap_with_trusted cannot be had there",
                token.name,
                profile.name
            );
        }
        let drives = super::drives(context, Command::DriveList)?;
        let wanted = self.wanted(&drives)?;
        let keks: Vec<KnownKek> = match site::execute(context, Command::KekList)? {
            Reply::Keks(keks) => keks,
            other => return site::out_of_turn(&other),
        };
        let mut bless: Vec<Blessing> = wanted
            .iter()
            .map(|(serial, spki)| Blessing {
                label: drive_label(serial),
                spki: spki.clone(),
            })
            .collect();
        bless.extend(keks.iter().map(|kek| Blessing {
            label: kek_label(&kek.label, &kek.hash),
            spki: kek.spki.clone(),
        }));
        if !self.yes {
            confirmed(&token.name, &bless)?;
        }
        let trust = Trust {
            token: token.uri.clone(),
            serials: token.serials.clone(),
            so_pin: self.so_pin()?,
            bless,
            drives: drives
                .iter()
                .filter_map(|drive| match &drive.key {
                    DriveKey::Pinned(spki) => {
                        Some((drive_label(&drive.serial), KekHash::of_spki(spki)))
                    }
                    DriveKey::Certified | DriveKey::None => None,
                })
                .collect(),
        };
        let serials: Vec<DriveSerial> = wanted.into_iter().map(|(serial, _)| serial).collect();
        let labels: Vec<KeyLabel> = keks.into_iter().map(|kek| kek.label).collect();
        let record = |stage| {
            site::execute(
                context,
                Command::DriveTrust {
                    token: token.name.clone(),
                    drives: serials.clone(),
                    keks: labels.clone(),
                    stage,
                },
            )
        };
        record(TrustStage::Intent)?;
        let ledgers = config.state.join("pins");
        crate::files::private_dir(&ledgers)
            .with_context(|| format!("cannot keep the login ledgers in {}", ledgers.display()))?;
        let hello = Hello {
            name: token.name.clone(),
            profile,
            task: Task::Trust { trust, ledgers },
        };
        let outcome = runtime()?.block_on(once(&Program::own()?, &hello));
        let done = match outcome {
            Ok(message::Reply::Trusted(done)) => done,
            Ok(other) => bail!("the bridge gave an answer of another kind ({other:?})"),
            Err(fault) => {
                record(TrustStage::Failed(fault.to_string()))?;
                bail!(fault);
            }
        };
        record(TrustStage::Done(said(&done)))?;
        // A server that uses the token sees them at once.
        site::execute(context, Command::KekList)?;
        if context.json {
            return output::json(&done);
        }
        show(&token.name, &done)?;
        if !hello.profile.data_key.wrap_with_trusted {
            output::say(&format!(
                "the profile {} of token {} does not say data_key.wrap_with_trusted = true, so its data keys do not ask for trusted keys",
                token.profile, token.name
            ))?;
        }
        Ok(())
    }

    /// The drives to bless, with their keys.
    fn wanted(&self, drives: &[Drive]) -> anyhow::Result<Vec<(DriveSerial, Vec<u8>)>> {
        if self.all {
            let of_its_own = |drive: &Drive| match &drive.key {
                DriveKey::Pinned(spki) => Some((drive.serial.clone(), spki.clone())),
                DriveKey::Certified | DriveKey::None => None,
            };
            return Ok(drives.iter().filter_map(of_its_own).collect());
        }
        self.serials
            .iter()
            .map(|serial| {
                let drive = drives.iter().find(|drive| drive.serial == *serial);
                match drive.map(|drive| (&drive.key, drive.form)) {
                    None => bail!("drive {serial} is not in the drive table (ekm drive list)"),
                    Some((DriveKey::Pinned(spki), _)) => Ok((serial.clone(), spki.clone())),
                    Some((DriveKey::Certified, _)) => bail!(
                        "drive {serial} is enrolled with --ca: its key is another one in each session, and nobody can bless in advance what is not there yet; enrol its own key with --key, or leave data_key.wrap_with_trusted off for this token"
                    ),
                    Some((DriveKey::None, SedkForm::T10Plain)) => bail!(
                        "drive {serial} takes its data key in clear (t10-00h) and has no key to bless"
                    ),
                    Some((DriveKey::None, _)) => {
                        bail!("drive {serial} has no key in the table (ekm drive mod {serial} --key PEM)")
                    }
                }
            })
            .collect()
    }

    fn so_pin(&self) -> anyhow::Result<Pin> {
        if let Some(path) = &self.so_pin_file {
            return Ok(Pin::Source(PinSource::File(std::path::absolute(path)?)));
        }
        let typed = rpassword::prompt_password("Security officer's PIN: ")
            .context("cannot ask for the PIN; give a file with --so-pin-file")?;
        Ok(Pin::Given(SecretString::from(typed).into()))
    }
}

fn chosen<'a>(config: &'a Config, name: Option<&str>) -> anyhow::Result<&'a TokenConfig> {
    let names = || {
        let names: Vec<&str> = config.tokens.iter().map(|token| &*token.name).collect();
        names.join(", ")
    };
    match (name, config.tokens.as_slice()) {
        (None, [only]) => Ok(only),
        (None, _) => bail!("say which token with --token: {}", names()),
        (Some(name), tokens) => tokens
            .iter()
            .find(|token| token.name == name)
            .with_context(|| format!("the configuration has no token {name}; it has {}", names())),
    }
}

/// Shows what is to be blessed, and asks.
fn confirmed(token: &str, bless: &[Blessing]) -> anyhow::Result<()> {
    output::table(
        &["to be blessed", "public key"],
        bless.iter().map(|Blessing { label, spki }| {
            vec![label.clone(), format!("sha256:{}", KekHash::of_spki(spki))]
        }),
    )?;
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to compare the fingerprints; give --yes once they are compared");
    }
    output::say(&format!(
        "Whoever has one of these private keys can be given data keys by token {token}. Compare each with the drive's own (ekm softdrive key, page 0031h) and each KEK's with your papers. Bless them? Type yes:"
    ))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() != "yes" {
        bail!("nothing was blessed");
    }
    Ok(())
}

fn said(done: &Trusted) -> String {
    let Trusted {
        blessed,
        already,
        removed,
    } = done;
    format!(
        "blessed: {}; blessed before: {}; taken away: {}",
        names(blessed),
        names(already),
        names(removed)
    )
}

fn names(labels: &[String]) -> String {
    if labels.is_empty() {
        "none".to_owned()
    } else {
        labels.join(" ")
    }
}

fn show(token: &str, done: &Trusted) -> anyhow::Result<()> {
    output::fields(&[
        ("token", token.to_owned()),
        ("  blessed", names(&done.blessed)),
        ("  blessed before", names(&done.already)),
        ("  taken away", names(&done.removed)),
    ])
}
