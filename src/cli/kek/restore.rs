//! `ekm kek restore` and `ekm kek copy`

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::own_bridge::{self, OwnBridge};
use super::stage::Stage;
use super::{holders, keks, show, tell};
use crate::admin::{Command, CopyAct, CopyAsked, CopyMade, Reply};
use crate::bridge::ceremony::{Opened, Restored, Step, Stepped};
use crate::bridge::process::harden_server;
use crate::cli::{Context, output, runtime, site};
use crate::copies::{KekCopyFile, TransportKey};
use crate::key::KeyLabel;

/// A copy, its shares, and a token to unwrap it in.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct FromCopy {
    /// The copy: the .kekcopy file of the ceremony.
    copy: PathBuf,

    /// A share, once for each; as many as the ceremony asked for.
    #[arg(long = "share", value_name = "FILE", required = true)]
    shares: Vec<PathBuf>,

    /// The token, where the configuration has more than one.
    #[arg(long, value_name = "NAME")]
    token: Option<String>,

    /// A file with a holder's passphrase, mode 0600, once for each share in
    /// their order; asked for on a terminal where none is given.
    #[arg(long = "passphrase-file", value_name = "FILE")]
    passphrases: Vec<PathBuf>,

    /// A file with the token's user PIN, where that comes from an operator; asked for likewise.
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
}

/// Copies of KEKs.
#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Copy {
    /// States that the vendor's tool has cloned a KEK's token or key.
    ///
    /// No PKCS#11 call shows a vendor's clone, so this is an operator's word:
    /// it is recorded as stated, not as proven. It counts where the policy
    /// says require_copy = "stated".
    Confirm {
        /// The KEK's label.
        label: KeyLabel,
        /// Where the clone is and how it was made, for the record: "Luna
        /// backup HSM 532018, lunacm partition archive, 3 March".
        #[arg(long, value_name = "TEXT")]
        note: String,
    },
    /// Shows that a copy and its shares are still good, and records it.
    ///
    /// The copy is unwrapped in a token as a session object, opens an EEDK
    /// that was made under its public key, and is gone. Do it once a year,
    /// with the holders.
    Prove {
        #[command(flatten)]
        from: FromCopy,
    },
}

impl Copy {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Confirm { label, note } => {
                if note.trim().is_empty() {
                    bail!("say with --note where the clone is and how it was made");
                }
                let made = keks(site::execute(
                    context,
                    Command::KekCopyStated { label, note },
                )?)?;
                if context.json {
                    return output::json(&made);
                }
                made.iter().try_for_each(show)
            }
            Self::Prove { from } => from.prove(context),
        }
    }
}

impl FromCopy {
    /// Restores the KEK on a token.
    pub(super) fn restore(self, context: &Context) -> anyhow::Result<()> {
        let ready = self.ready(context, CopyAct::Restore)?;
        let Ready {
            file,
            key,
            own,
            asked,
        } = &ready;
        let copied = file.copied()?;
        tell(&format!(
            "Unwrapping KEK {} in token {}",
            copied.label, asked.token
        ));
        let outcome = runtime()?.block_on(async {
            let mut stage = Stage::set(own).await?;
            let id = copied.id.clone();
            let opened = open(&mut stage, key, Some((copied.label.clone(), id.clone()))).await?;
            match stage.step(Step::Restore(copied)).await {
                Ok(Stepped::Restored(restored)) => Ok((opened, *restored)),
                Ok(other) => bail!(stage.out_of_turn(&format!("{other:?}"))),
                // A bridge that has gone could not clean up itself. What has the CKA_ID is of
                // this restore: nothing had it when the key was brought in.
                Err(fault @ crate::bridge::faults::Fault::Down { .. }) => {
                    let undone = stage.undo(&id).await;
                    bail!("{fault}; {undone}")
                }
                Err(fault) => bail!(fault),
            }
        });
        let (opened, restored) = match outcome {
            Ok(done) => done,
            Err(error) => return ready.failed(context, error),
        };
        let Restored {
            kek,
            mechanism,
            notes,
        } = &restored;
        let made = CopyMade {
            kek: kek.hash,
            serial: opened.token.serial.clone(),
            proven: true,
            detail: format!(
                "unwrapped by {mechanism}; {}",
                [vec![opened.brought.clone()], notes.clone()]
                    .concat()
                    .join("; ")
            ),
        };
        let shown = keks(ready.succeeded(context, made).with_context(|| {
            format!(
                "KEK {} is on token {} now, and opened an EEDK; that it was restored could not be recorded",
                kek.label, asked.token
            )
        })?)?;
        if context.json {
            return output::json(&shown);
        }
        shown.iter().try_for_each(show)?;
        for note in notes {
            output::say(&format!("note: {note}"))?;
        }
        output::say(&format!(
            "Restored: it opened an EEDK that was made under its public key (by {mechanism}; transport key by {}).",
            opened.brought
        ))
    }

    fn prove(self, context: &Context) -> anyhow::Result<()> {
        let ready = self.ready(context, CopyAct::Proof)?;
        let copied = ready.file.copied()?;
        let label = copied.label.clone();
        let outcome = runtime()?.block_on(async {
            let mut stage = Stage::set(&ready.own).await?;
            let opened = open(&mut stage, &ready.key, None).await?;
            match stage.step(Step::Prove(copied)).await? {
                Stepped::Proved => anyhow::Ok(opened),
                other => bail!(stage.out_of_turn(&format!("{other:?}"))),
            }
        });
        let opened = match outcome {
            Ok(opened) => opened,
            Err(error) => return ready.failed(context, error),
        };
        let made = CopyMade {
            kek: ready.file.copy.hash,
            serial: opened.token.serial.clone(),
            proven: true,
            detail: "the copy and its shares are good".to_owned(),
        };
        ready
            .succeeded(context, made)
            .context("the copy is good, but that could not be recorded")?;
        if context.json {
            return output::json(&serde_json::json!({
                "label": label,
                "hash": ready.file.copy.hash,
                "proven": true,
            }));
        }
        output::say(&format!(
            "The copy of KEK {label} is good: unwrapped in token {} for a moment, it opened an EEDK that was made under its public key.",
            ready.asked.token
        ))
    }

    /// Reads the files, asks for the passphrases, and has recorded what is about to be done.
    fn ready(self, context: &Context, act: CopyAct) -> anyhow::Result<Ready> {
        harden_server()?;
        let config = context.own_config()?;
        let token = own_bridge::token(&config, self.token.as_deref())?;
        let file = holders::read_copy(&self.copy)?;
        let key = holders::combined(&file, &self.shares, &self.passphrases)?;
        let own = OwnBridge::new(&config, &token.name, self.pin_file.as_deref())?;
        let asked = CopyAsked {
            act,
            label: file.copy.label.clone(),
            token: token.name.clone(),
            ceremony: file.copy.ceremony,
            kek: Some(file.copy.hash),
            detail: format!("{} shares given", self.shares.len()),
        };
        site::execute(
            context,
            Command::KekCopy {
                asked: Box::new(asked.clone()),
                ended: None,
            },
        )?;
        Ok(Ready {
            file,
            key,
            own,
            asked,
        })
    }
}

struct Ready {
    file: KekCopyFile,
    key: TransportKey,
    own: OwnBridge,
    asked: CopyAsked,
}

impl Ready {
    fn succeeded(&self, context: &Context, made: CopyMade) -> anyhow::Result<Reply> {
        self.ended(context, Ok(Box::new(made)))
    }

    fn failed(&self, context: &Context, error: anyhow::Error) -> anyhow::Result<()> {
        self.ended(context, Err(format!("{error:#}")))
            .context("and that it failed could not be recorded")
            .with_context(|| error.to_string())?;
        Err(error)
    }

    fn ended(
        &self,
        context: &Context,
        ended: Result<Box<CopyMade>, String>,
    ) -> anyhow::Result<Reply> {
        site::execute(
            context,
            Command::KekCopy {
                asked: Box::new(self.asked.clone()),
                ended: Some(ended),
            },
        )
    }
}

/// Brings the key in, to unwrap only.
async fn open(
    stage: &mut Stage<'_>,
    key: &TransportKey,
    vacant: Option<(KeyLabel, Vec<u8>)>,
) -> anyhow::Result<Opened> {
    match stage
        .step(Step::Open {
            key: key.clone(),
            wraps: false,
            vacant,
        })
        .await?
    {
        Stepped::Opened(opened) => Ok(*opened),
        other => bail!(stage.out_of_turn(&format!("{other:?}"))),
    }
}
