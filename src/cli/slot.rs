//! `ekm slot`

mod bench;
mod doctor;
pub(in crate::cli) mod subject;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret, SecretString};

use super::{Context, output, runtime};
use crate::bridge::message::{Hello, Reply, SlotOnModule, Task};
use crate::bridge::pin::{Pin, PinSource};
use crate::bridge::profile::HsmProfile;
use crate::bridge::supervisor::{Program, once};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Slot {
    /// Lists slots, tokens, their URIs, and the mechanisms that matter.
    List(List),
    /// Initialises a token: its label, the security officer's PIN, the user PIN.
    ///
    /// A token that is initialised already is never touched. PINs come from
    /// files of mode 0600, or are asked for on the terminal; never from the
    /// command line, where every user of the machine can see them.
    Init(Init),
    /// Holds a token against its profile, with throw-away keys.
    ///
    /// Says what the token can be used for, tries the attacks of someone who
    /// has the PIN, and prints a profile that fits. A server that uses the
    /// token goes on: the doctor has a bridge process of its own. Exit code 3
    /// where the token does not do what its profile says.
    Doctor(doctor::Doctor),
    /// Measures how fast a token is, with how many sessions and processes.
    ///
    /// With throw-away keys. Says which session.workers and session.processes
    /// pay. It takes what the token has: not beside a server with drives.
    Bench(bench::Bench),
}

/// Which module.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// A shipped profile, such as softhsm2 (a wrong name lists all), or the path of a .toml file.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// A PKCS#11 library, loaded as it is.
    #[arg(long, value_name = "SO", conflicts_with = "profile")]
    module: Option<PathBuf>,

    /// What {directory} of the profile stands for; slot init makes it.
    ///
    /// Where it is not given: token for the embedded token, and for others
    /// the profile's name.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Which {
    /// Whether it says anything of a module.
    const fn given(&self) -> bool {
        self.profile.is_some() || self.module.is_some()
    }

    /// What messages call a token of it.
    fn name(&self, profile: &HsmProfile) -> String {
        self.module.as_ref().map_or_else(
            || profile.name.clone(),
            |library| format!("of {}", library.display()),
        )
    }

    /// The token's directory, whether or not the profile wants one.
    fn directory(&self, profile: &HsmProfile) -> anyhow::Result<PathBuf> {
        let directory = self.directory.clone().unwrap_or_else(|| {
            if profile.module.library == "embedded" {
                "token".into()
            } else {
                profile.name.clone().into()
            }
        });
        Ok(std::path::absolute(directory)?)
    }

    /// For a token that is there already: its directory is not made.
    fn found(&self, profile: HsmProfile) -> anyhow::Result<HsmProfile> {
        let directory = self.directory(&profile)?;
        if profile.wants_directory() && !directory.is_dir() {
            bail!(
                "profile {}: there is no directory {}; name the token's with --directory, or make one with ekm slot init",
                profile.name,
                directory.display()
            );
        }
        let mut profile = profile;
        profile.settle(&directory);
        if let Err(reason) = profile.there() {
            bail!("profile {}: {reason}", profile.name);
        }
        self.made(profile)
    }

    /// For a new token: its directory is made.
    fn made(&self, mut profile: HsmProfile) -> anyhow::Result<HsmProfile> {
        let directory = self.directory(&profile)?;
        profile.settle(&directory);
        profile
            .make(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(profile)
    }

    /// The profile as its file has it.
    fn unsettled(&self) -> anyhow::Result<HsmProfile> {
        Ok(match (&self.profile, &self.module) {
            (Some(name), _) => HsmProfile::load(name)?,
            (None, Some(library)) => {
                // Nothing but the library counts for looking at slots.
                let mut profile = HsmProfile::load("softhsm2")?;
                profile.module.library = library.display().to_string();
                profile.module.environment.clear();
                for (name, value) in std::env::vars() {
                    profile.module.environment.insert(name, value);
                }
                profile.module.keeps = None;
                profile.module.files.clear();
                profile.module.folders.clear();
                profile
            }
            (None, None) => bail!(
                "say which module: --profile NAME ({}) or --module LIBRARY.so",
                HsmProfile::shipped().collect::<Vec<_>>().join(", ")
            ),
        })
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
pub(super) struct Init {
    #[command(flatten)]
    which: Which,

    /// The new token's label, at most 32 bytes.
    #[arg(long, value_name = "TOKEN")]
    label: String,

    /// The slot, where more than one is free.
    #[arg(long, value_name = "N")]
    slot: Option<u64>,

    /// A file with the security officer's PIN; asked for where it is not given.
    #[arg(long, value_name = "FILE")]
    so_pin_file: Option<PathBuf>,

    /// A file with the user PIN; asked for where it is not given.
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
}

impl Slot {
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::List(list) => {
                let Reply::Slots(slots) = ask(
                    &list.which,
                    list.which.found(list.which.unsettled()?)?,
                    Task::List,
                )?
                else {
                    bail!("the bridge gave an answer of another kind");
                };
                if context.json {
                    return output::json(&slots);
                }
                show(&slots)
            }
            Self::Init(init) => {
                let task = Task::Init {
                    label: init.label.clone(),
                    slot: init.slot,
                    so_pin: pin(init.so_pin_file.as_ref(), "Security officer's PIN")?,
                    user_pin: pin(init.pin_file.as_ref(), "User PIN")?,
                };
                let Reply::Initialized(slot) =
                    ask(&init.which, init.which.made(init.which.unsettled()?)?, task)?
                else {
                    bail!("the bridge gave an answer of another kind");
                };
                if context.json {
                    return output::json(&slot);
                }
                let uri = slot.uri.unwrap_or_default();
                output::say(&format!(
                    "initialised token {:?} in slot {}",
                    init.label, slot.id
                ))?;
                output::say(&format!("  uri = \"{uri}\""))
            }
            Self::Doctor(doctor) => doctor.run(context),
            Self::Bench(bench) => bench.run(context),
        }
    }
}

fn ask(which: &Which, profile: HsmProfile, task: Task) -> anyhow::Result<Reply> {
    let hello = Hello {
        name: which.name(&profile),
        profile,
        task,
    };
    Ok(runtime()?.block_on(once(&Program::own()?, &hello))?)
}

fn show(slots: &[SlotOnModule]) -> anyhow::Result<()> {
    for slot in slots {
        output::say(&format!("slot {}", slot.id))?;
        match (&slot.token, &slot.uri) {
            (Some(token), Some(uri)) => {
                output::say(&format!("  token         {}", token.label))?;
                output::say(&format!("  uri           {uri}"))?;
                let pin = token.pin_words();
                output::say(&format!("  user PIN      {pin}"))?;
            }
            (Some(_), None) => output::say("  token         not initialised (ekm slot init)")?,
            (None, _) => output::say("  token         none")?,
        }
        for (name, listed) in &slot.mechanisms {
            let word = if *listed { "listed" } else { "not listed" };
            output::say(&format!("  {name:26} {word}"))?;
        }
    }
    if slots.is_empty() {
        output::say("the module shows no slot; is its client configured, and the HSM reachable?")?;
    }
    Ok(())
}

/// A PIN from its file, or typed twice on the terminal.
fn pin(file: Option<&PathBuf>, what: &str) -> anyhow::Result<Pin> {
    if let Some(path) = file {
        return Ok(Pin::Source(PinSource::File(std::path::absolute(path)?)));
    }
    let no_terminal = "cannot ask for the PIN; give a file with --so-pin-file and --pin-file";
    let first =
        SecretString::from(rpassword::prompt_password(format!("{what}: ")).context(no_terminal)?);
    let again = SecretString::from(
        rpassword::prompt_password(format!("{what}, again: ")).context(no_terminal)?,
    );
    if first.expose_secret() != again.expose_secret() {
        bail!("the two PINs differ; nothing was done");
    }
    Ok(Pin::Given(first.into()))
}
