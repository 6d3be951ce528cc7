//! `ekm kek generate --copy`: the ceremony at a KEK's birth.

mod papers;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use secrecy::SecretString;

use super::own_bridge::{self, OwnBridge};
use super::stage::Stage;
use super::{holders, keks, show, tell};
use crate::admin::{Command, CopyAct, CopyAsked, CopyMade, KEK_BITS, Reply};
use crate::bridge::ceremony::{Born, CopiedKek, Opened, Step, Stepped};
use crate::bridge::message::Custody;
use crate::bridge::process::harden_server;
use crate::cli::{Context, output, runtime, site};
use crate::copies::{KekCopyFile, Quorum, TransportKey, secret};
use crate::key::KeyLabel;
use crate::store::Birth;
use papers::{Paper, Papers};

/// The part of `ekm kek generate` that is about a copy.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Copies {
    /// Makes a second copy of the KEK and writes it here, wrapped under a
    /// transport key. The KEK is extractable until it is wrapped, and never
    /// again. The transport key is in the memory of this command and of its
    /// bridge for that long; the server never has it.
    #[arg(
        long,
        value_name = "FILE",
        requires_all = ["shares", "share_dir"],
        conflicts_with = "sign"
    )]
    copy: Option<PathBuf>,

    /// How many of how many shares of the transport key restore the KEK: 2-of-3.
    #[arg(long, value_name = "M-of-N", requires = "copy")]
    shares: Option<Quorum>,

    /// The directory for the shares, one file for each holder. They can be
    /// printed; move each to its holder, and none to where the copy is.
    #[arg(long, value_name = "DIR", requires = "copy")]
    share_dir: Option<PathBuf>,

    /// A file with a holder's passphrase, mode 0600, once for each share in
    /// their order; each holder types it twice at the terminal where none is
    /// given.
    #[arg(long = "passphrase-file", value_name = "FILE", requires = "copy")]
    passphrases: Vec<PathBuf>,

    /// The transcript for the auditor; ceremony-LABEL-DATE.txt beside the copy
    /// where it is not given. It has no secret in it.
    #[arg(long, value_name = "FILE", requires = "copy")]
    transcript: Option<PathBuf>,

    /// A file with the token's user PIN, where that comes from an operator.
    #[arg(long, value_name = "FILE", requires = "copy")]
    pin_file: Option<PathBuf>,
}

impl Copies {
    /// The ceremony that is asked for, if one is.
    pub(super) fn asked(
        &self,
        label: &KeyLabel,
        bits: u32,
        token: Option<&str>,
        custody: Custody,
    ) -> Option<anyhow::Result<Ceremony>> {
        let Self {
            copy,
            shares,
            share_dir,
            passphrases,
            transcript,
            pin_file,
        } = self;
        let (Some(copy), Some(quorum), Some(share_dir)) = (copy, shares, share_dir) else {
            return None;
        };
        Some(
            Papers::new(label, copy, share_dir, transcript.as_deref(), *quorum).map(|papers| {
                Ceremony {
                    label: label.clone(),
                    bits,
                    token: token.map(str::to_owned),
                    custody,
                    quorum: *quorum,
                    passphrase_files: passphrases.clone(),
                    pin_file: pin_file.clone(),
                    papers,
                }
            }),
        )
    }
}

/// A ceremony that is asked for.
pub(super) struct Ceremony {
    label: KeyLabel,
    bits: u32,
    token: Option<String>,
    custody: Custody,
    quorum: Quorum,
    passphrase_files: Vec<PathBuf>,
    pin_file: Option<PathBuf>,
    papers: Papers,
}

/// What was done, for the transcript and the record.
struct Done {
    opened: Opened,
    born: Born,
    written: Vec<Paper>,
    proof: Result<Opened, String>,
}

impl Ceremony {
    /// From the passphrases to the record.
    pub(super) fn hold(self, context: &Context) -> anyhow::Result<()> {
        // Neither a core dump nor another process of this user may see the key.
        harden_server()?;
        let config = context.own_config()?;
        let token = own_bridge::token(&config, self.token.as_deref())?;
        if !KEK_BITS.contains(&self.bits) {
            bail!("a KEK has {KEK_BITS:?} bits, got {}", self.bits);
        }
        self.papers.vacant()?;
        // People first: what they get wrong costs nothing yet.
        let phrases = holders::new_passphrases(self.quorum, &self.passphrase_files)?;
        let own = OwnBridge::new(&config, &token.name, self.pin_file.as_deref())?;
        let ceremony = uuid::Uuid::new_v4();
        let asked = CopyAsked {
            act: CopyAct::Birth,
            label: self.label.clone(),
            token: token.name.clone(),
            ceremony,
            kek: None,
            detail: format!(
                "RSA-{} for custody {}, with a copy in {} shares",
                self.bits, self.custody, self.quorum
            ),
        };
        let tell_site = |ended| {
            site::execute(
                context,
                Command::KekCopy {
                    asked: Box::new(asked.clone()),
                    ended,
                },
            )
        };
        if let Reply::Left(birth) = tell_site(None)? {
            clear(context, &own, *birth)?;
            if let Reply::Left(birth) = tell_site(None)? {
                bail!("{}", birth.words());
            }
        }
        let done = match runtime()?.block_on(self.conduct(&own, ceremony, &phrases)) {
            Ok(done) => done,
            Err(error) => {
                tell_site(Some(Err(format!("{error:#}"))))
                    .context("and that it failed could not be recorded")
                    .with_context(|| format!("{error:#}"))?;
                return Err(error);
            }
        };
        let transcript = self.papers.transcript(&self, &asked, &done)?;
        let files: Vec<String> = done
            .written
            .iter()
            .chain([&transcript])
            .map(|paper| format!("{} sha256:{}", paper.name(), paper.sha256))
            .collect();
        tell("6/6  recording it in registry and audit log");
        let recorded = tell_site(Some(Ok(Box::new(CopyMade {
            kek: done.born.kek.hash,
            serial: done.opened.token.serial.clone(),
            proven: done.proof.is_ok(),
            detail: format!(
                "RSA-{}, wrapped by {}, {} shares; {}",
                self.bits,
                done.born.wrapped.mechanism,
                self.quorum,
                files.join(", ")
            ),
        }))))
        .with_context(|| {
            format!(
                "KEK {} is on token {} with its copy, and that could not be recorded; once that is mended, run: ekm kek copy prove {}",
                self.label,
                asked.token,
                self.papers.copy.display()
            )
        })?;
        self.report(context, recorded, &done, &transcript)
    }

    /// Everything between the first bridge and the last proof. Where it fails
    /// no key and no file of it is left.
    async fn conduct(
        &self,
        own: &OwnBridge,
        ceremony: uuid::Uuid,
        phrases: &[SecretString],
    ) -> anyhow::Result<Done> {
        let mut stage = Stage::set(own).await?;
        let id = ceremony.as_bytes().to_vec();
        tell("1/6  bringing a transport key into the token, and trying it on a throw-away key");
        let key = TransportKey::new()?;
        let opened = opened(
            &mut stage,
            Step::Open {
                key: key.clone(),
                wraps: true,
                vacant: Some((self.label.clone(), id.clone())),
            },
        )
        .await?;
        tell(&format!(
            "2/6  generating KEK {}, RSA-{}, wrapping it once, and freezing it",
            self.label, self.bits
        ));
        let born = stage
            .step(Step::Bear {
                label: self.label.clone(),
                bits: self.bits,
                custody: self.custody,
                id: id.clone(),
            })
            .await;
        let born = match born {
            Ok(Stepped::Born(born)) => *born,
            Ok(other) => bail!(stage.out_of_turn(&format!("{other:?}"))),
            Err(fault) => {
                let undone = stage.undo(&id).await;
                bail!("{fault}; {undone}");
            }
        };
        let after = async {
            tell(&format!(
                "3/6  splitting the transport key into {} shares",
                self.quorum
            ));
            let copied = CopiedKek {
                label: self.label.clone(),
                id: id.clone(),
                custody: self.custody,
                spki: born.kek.spki.clone(),
                wrapped: born.wrapped.clone(),
            };
            let file = KekCopyFile::new(
                ceremony,
                format!("{} {}", opened.token.label, opened.token.serial),
                &copied,
                born.kek.bits,
                self.quorum,
                &key,
            );
            let written = self.papers.write(&file, &key, phrases)?;
            drop(key);
            tell("4/6  reading the shares back from their files, and putting them together");
            let again = self.papers.combined_again(&file, phrases)?;
            tell("5/6  proving the copy: unwrapping it and opening an EEDK with it");
            let proof = prove(&mut stage, &opened, copied, again).await?;
            anyhow::Ok((written, proof))
        };
        let outcome = after.await;
        match outcome {
            Ok((written, proof)) => Ok(Done {
                opened,
                born,
                written,
                proof,
            }),
            Err(error) => {
                self.papers.remove();
                let undone = stage.undo(&id).await;
                Err(error.context(format!("the ceremony was undone: {undone}")))
            }
        }
    }

    fn report(
        &self,
        context: &Context,
        recorded: Reply,
        done: &Done,
        transcript: &Paper,
    ) -> anyhow::Result<()> {
        let shown = keks(recorded)?;
        let paths: Vec<&Path> = done
            .written
            .iter()
            .chain([transcript])
            .map(|paper| paper.path.as_path())
            .collect();
        if context.json {
            return output::json(&serde_json::json!({
                "keks": shown,
                "proven": done.proof.is_ok(),
                "notes": done.born.notes,
                "files": paths,
            }));
        }
        shown.iter().try_for_each(show)?;
        output::say("")?;
        for note in &done.born.notes {
            output::say(&format!("note: {note}"))?;
        }
        for path in paths {
            output::say(&format!("written: {}", path.display()))?;
        }
        output::say(&match &done.proof {
            Ok(_) => format!(
                "A proven copy: {} shares restored it for a moment, and it opened an EEDK.",
                self.quorum.needed()
            ),
            Err(why) => format!(
                "THE COPY IS NOT PROVEN: {why}. Prove it on another token: ekm kek copy prove {} --token NAME",
                self.papers.copy.display()
            ),
        })?;
        output::say(
            "Now give each holder his share, keep the copy where no share is, and keep the transcript.",
        )
    }
}

/// Removes what an interrupted ceremony left. The lock of the token's own bridge says that it
/// does not go on somewhere.
fn clear(context: &Context, own: &OwnBridge, birth: Birth) -> anyhow::Result<()> {
    tell(&format!(
        "0/6  a ceremony for {} of {} was interrupted; removing what it left on token {} (CKA_ID {})",
        birth.label,
        birth.began.date(),
        birth.token,
        hex::encode(birth.ceremony.as_bytes())
    ));
    let label = birth.label.clone();
    let id = birth.id();
    let objects = runtime()?.block_on(async {
        let mut stage = Stage::set(own).await?;
        match stage.step(Step::Clear { label, id }).await? {
            Stepped::Undone(objects) => anyhow::Ok(objects),
            other => bail!(stage.out_of_turn(&format!("{other:?}"))),
        }
    })?;
    site::execute(context, Command::KekCleared { birth, objects })?;
    Ok(())
}

async fn opened(stage: &mut Stage<'_>, step: Step) -> anyhow::Result<Opened> {
    match stage.step(step).await? {
        Stepped::Opened(opened) => Ok(*opened),
        other => bail!(stage.out_of_turn(&format!("{other:?}"))),
    }
}

/// Opens an EEDK with the copy, unless this token wraps and does not unwrap.
async fn prove(
    stage: &mut Stage<'_>,
    first: &Opened,
    copied: CopiedKek,
    key: TransportKey,
) -> anyhow::Result<Result<Opened, String>> {
    if let Some((mechanism, false)) = &first.wraps_by {
        return Ok(Err(format!(
            "the token wraps private keys by {mechanism}, and unwraps none"
        )));
    }
    let again = opened(
        stage,
        Step::Open {
            key,
            wraps: false,
            vacant: None,
        },
    )
    .await?;
    match stage.step(Step::Prove(copied)).await? {
        Stepped::Proved => Ok(Ok(again)),
        other => bail!(stage.out_of_turn(&format!("{other:?}"))),
    }
}

/// The points of a key, one for each holder.
fn points(key: &TransportKey, quorum: Quorum) -> anyhow::Result<Vec<secret::Point>> {
    Ok(secret::split(key, quorum)?)
}
