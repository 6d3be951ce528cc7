//! `ekm tape run`, `open` and `close`: a job and its tape.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitStatus;
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Context, Ended, Found, output, runtime};
use crate::drive::DriveSerial;
use crate::job::JobName;
use crate::proxy::control::{Command, Control, Reply, TapeOpen};
use crate::proxy::keying::{ClearBlocks, Closed, Home, Keyed, Opened};
use crate::proxy::{ClassName, Dd, Disp, HostConfig};
use crate::volser::Volser;

/// How long the proxy may take: a cartridge that loads (780 s), and a key server that is waited for.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

/// After so long a job that still waits is told so.
const SOON: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Wanted {
    /// The drive.
    #[arg(long, value_name = "SERIAL")]
    drive: DriveSerial,
    /// The cartridge; refused where its barcode says another.
    #[arg(long)]
    volser: Volser,
    /// What becomes of it: written from its beginning, read, or added to. DISP in --dd says the same.
    #[arg(long, value_name = "DISP")]
    disp: Option<Word>,
    /// The job's data class, which turns encryption on.
    #[arg(long, value_name = "NAME")]
    data_class: Option<ClassName>,
    /// The job's DD statement; see ekm tape policy explain.
    #[arg(long, value_name = "STATEMENT", allow_hyphen_values = true)]
    dd: Option<String>,
    /// The job's name, which the key manager keeps with the data key; `run` takes the command's.
    #[arg(long, value_name = "NAME")]
    job: Option<JobName>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Word {
    /// Written from its beginning; what it held is lost.
    New,
    /// Read.
    Old,
    /// Added to, at its end.
    Mod,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Run {
    #[command(flatten)]
    wanted: Wanted,
    /// Puts the cartridge out when the command has ended.
    #[arg(long)]
    unload: bool,
    /// The command and its arguments. `EKM_TAPE` is the tape device, `EKM_VOLSER` the cartridge.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Open {
    #[command(flatten)]
    wanted: Wanted,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Close {
    /// The drive.
    #[arg(long, value_name = "SERIAL")]
    drive: DriveSerial,
    /// Puts the cartridge out.
    #[arg(long)]
    unload: bool,
}

impl Wanted {
    fn command(&self, stays: bool, job: Option<JobName>) -> anyhow::Result<Command> {
        // What is wrong with it is said before anybody is asked.
        if let Some(dd) = &self.dd {
            dd.parse::<Dd>()
                .map_err(|error| anyhow::anyhow!("--dd: {error}"))?;
        }
        let wanted = TapeOpen {
            drive: self.drive.clone(),
            volser: self.volser.clone(),
            disp: self.disp.map(|word| match word {
                Word::New => Disp::New,
                Word::Old => Disp::Old,
                Word::Mod => Disp::Mod,
            }),
            data_class: self.data_class.as_ref().map(ToString::to_string),
            dd: self.dd.clone(),
            job: self.job.clone().or(job),
            stays,
        };
        wanted
            .request()
            .map_err(|error| anyhow::anyhow!("{error} (--disp)"))?;
        Ok(Command::TapeOpen(wanted))
    }
}

impl Run {
    pub(in crate::cli) fn run(self, context: &Context) -> anyhow::Result<()> {
        runtime()?.block_on(self.go(context))
    }

    async fn go(self, context: &Context) -> anyhow::Result<()> {
        let program = self
            .command
            .first()
            .map(|program| program.to_string_lossy());
        let program = program.and_then(|program| JobName::of_program(&program));
        let open = self.wanted.command(false, program)?;
        let socket = HostConfig::socket_in(&context.host_config())?;
        let mut control = Control::connect(&socket).await?;
        let opened = opened(asked(&mut control, &open, context).await?)?;
        said_opened(&opened, context)?;
        let ended = execute(&self.command, &opened).await;
        let close = Command::TapeClose {
            drive: opened.drive.clone(),
            job: Some(opened.job),
            unload: self.unload,
        };
        let closed = match control.ask(&close, PATIENCE).await {
            Ok(reply) => closed(reply)?,
            Err(error) => {
                complain(&format!(
                    "ALARM: nobody has looked at {} after the job: {error}",
                    opened.volser
                ))?;
                return Err(Found.into());
            }
        };
        said_closed(&closed, context)?;
        let status = ended?;
        if !closed.alarms.is_empty() {
            return Err(Found.into());
        }
        if status.success() {
            return Ok(());
        }
        Err(Ended::from(status).into())
    }
}

impl Open {
    pub(in crate::cli) fn run(self, context: &Context) -> anyhow::Result<()> {
        let open = self.wanted.command(true, None)?;
        let socket = HostConfig::socket_in(&context.host_config())?;
        runtime()?.block_on(async {
            let mut control = Control::connect(&socket).await?;
            let opened = opened(asked(&mut control, &open, context).await?)?;
            said_opened(&opened, context)?;
            if context.json {
                return Ok(());
            }
            output::say(&opened.tape)
        })
    }
}

impl Close {
    pub(in crate::cli) fn run(self, context: &Context) -> anyhow::Result<()> {
        let socket = HostConfig::socket_in(&context.host_config())?;
        let Self { drive, unload } = self;
        runtime()?.block_on(async {
            let mut control = Control::connect(&socket).await?;
            let close = Command::TapeClose {
                drive,
                job: None,
                unload,
            };
            let closed = closed(control.ask(&close, PATIENCE).await?)?;
            said_closed(&closed, context)?;
            if closed.alarms.is_empty() {
                Ok(())
            } else {
                Err(Found.into())
            }
        })
    }
}

/// Asks for a tape, and says so where that takes long.
async fn asked(control: &mut Control, open: &Command, context: &Context) -> anyhow::Result<Reply> {
    let mut answer = std::pin::pin!(control.ask(open, PATIENCE));
    if let Ok(reply) = tokio::time::timeout(SOON, &mut answer).await {
        return Ok(reply?);
    }
    // Its lines are for a program, which has a clock of its own.
    if !context.json {
        complain(
            "waiting: the cartridge is not loaded yet, or no key server answers (ekm proxy display shows the servers, the drive itself its cartridge)",
        )?;
    }
    Ok(answer.await?)
}

fn opened(reply: Reply) -> anyhow::Result<Opened> {
    match reply {
        Reply::TapeOpened(opened) => Ok(*opened),
        other => anyhow::bail!("the proxy gave another answer than asked for: {other:?}"),
    }
}

fn closed(reply: Reply) -> anyhow::Result<Closed> {
    match reply {
        Reply::TapeClosed(closed) => Ok(*closed),
        other => anyhow::bail!("the proxy gave another answer than asked for: {other:?}"),
    }
}

/// Runs the job's command; signals that end this program are passed on to it.
async fn execute(command: &[OsString], opened: &Opened) -> anyhow::Result<ExitStatus> {
    let [program, arguments @ ..] = command else {
        anyhow::bail!("no command is given");
    };
    let mut child = tokio::process::Command::new(program);
    child
        .args(arguments)
        .env("EKM_TAPE", &opened.tape)
        .env("EKM_VOLSER", opened.volser.as_str())
        .kill_on_drop(true);
    // On a terminal the command is in the foreground, and hears of Ctrl-C itself.
    let own_group = !std::io::stdin().is_terminal();
    if own_group {
        child.process_group(0);
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut child = child
        .spawn()
        .map_err(|error| anyhow::anyhow!("cannot run {}: {error}", program.display()))?;
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    loop {
        let passed = tokio::select! {
            status = child.wait() => return Ok(status?),
            _ = interrupt.recv() => Signal::INT,
            _ = terminate.recv() => Signal::TERM,
            _ = hangup.recv() => Signal::HUP,
        };
        // It may have ended meanwhile.
        let _ = match pid {
            Some(group) if own_group => kill_process_group(group, passed),
            Some(pid) if passed != Signal::INT => kill_process(pid, passed),
            Some(_) | None => Ok(()),
        };
    }
}

/// To standard error: standard output is the command's.
fn complain(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stderr(), "ekm: {line}")?)
}

fn said_opened(opened: &Opened, context: &Context) -> anyhow::Result<()> {
    if context.json {
        let line = serde_json::to_string(&serde_json::json!({ "opened": opened }))?;
        return Ok(writeln!(std::io::stderr(), "{line}")?);
    }
    let Opened {
        job: _,
        drive,
        tape,
        volser,
        barcode,
        writes,
        key,
        why: _,
        warnings,
    } = opened;
    let what = match (key, writes) {
        (Some(key), true) => format!("written under {}", named(key)),
        (Some(key), false) => format!("read under {}", named(key)),
        (None, true) => "written in clear".to_owned(),
        (None, false) => "read without a key".to_owned(),
    };
    complain(&format!("{volser} in drive {drive}, {tape}: {what}"))?;
    if barcode.is_none() {
        complain(
            "the cartridge has no barcode in its memory, so its volume serial was not checked",
        )?;
    }
    for warning in warnings {
        complain(&format!("warning: {warning}"))?;
    }
    Ok(())
}

fn named(key: &Keyed) -> String {
    let Keyed {
        dki,
        created,
        labels,
        key_format,
        eedks,
        ..
    } = key;
    let labels: Vec<String> = labels.iter().map(ToString::to_string).collect();
    let home = match eedks {
        Home::Drive => "kept by the drive",
        Home::Memory => "in the cartridge's memory",
        Home::Catalog(_) => "in the key server's catalog alone",
    };
    format!(
        "data key {dki}{}, {} {}; EEDKs {home}; key format {key_format}",
        if *created { ", new" } else { "" },
        if labels.len() == 1 { "KEK" } else { "KEKs" },
        if labels.is_empty() {
            "unknown here".to_owned()
        } else {
            labels.join(", ")
        },
    )
}

fn said_closed(closed: &Closed, context: &Context) -> anyhow::Result<()> {
    if context.json {
        let line = serde_json::to_string(&serde_json::json!({ "closed": closed }))?;
        return Ok(writeln!(std::io::stderr(), "{line}")?);
    }
    for alarm in &closed.alarms {
        complain(&format!("ALARM: {alarm}"))?;
    }
    let volser = &closed.volser;
    match &closed.clear_blocks {
        ClearBlocks::None => complain(&format!("{volser}: no block in clear"))?,
        ClearBlocks::NoneAtLoadPoint => complain(&format!(
            "{volser}: the first block is encrypted; the drive does not count the others"
        ))?,
        ClearBlocks::Unknown(why) => complain(&format!(
            "warning: whether {volser} has blocks in clear cannot be told: {why}"
        ))?,
        ClearBlocks::NotLookedFor | ClearBlocks::Some => {}
    }
    for warning in &closed.warnings {
        complain(&format!("warning: {warning}"))?;
    }
    Ok(())
}
