//! Where an operator's command runs: in the server, if one runs, else here.

use anyhow::{Context as _, bail};
use futures_util::future::join_all;

use super::{Context, Waits, output, runtime};
use crate::admin::{self, Change, Command, RekeyAct, Reply, ScheduleAct};
use crate::audit::Reserve;
use crate::bridge::faults::Fault;
use crate::bridge::pin::{EnvironmentPins, Handed};
use crate::bridge::supervisor::{Bridge, Program};
use crate::config::Config;
use crate::operators::{Asker, Shown, Whence};
use crate::server::{self, OperatorError};

/// Puts a command to the server of the configuration, or does it here.
pub(super) fn execute(context: &Context, command: Command) -> anyhow::Result<Reply> {
    execute_at(context, command, None)
}

/// The same, at the server that the command line names, if it names one.
pub(super) fn execute_at(
    context: &Context,
    command: Command,
    pin: Option<&Handed>,
) -> anyhow::Result<Reply> {
    match &context.site {
        Some(site) => done(runtime()?.block_on(site.ask(&command, pin))?),
        None => execute_with_pin(&Config::load(&context.config)?, command, pin),
    }
}

/// What waits for a second person is not done.
fn done(reply: Reply) -> anyhow::Result<Reply> {
    match reply {
        Reply::Waits(approval) => Err(Waits(approval).into()),
        reply => Ok(reply),
    }
}

/// The same, with a PIN for the server to hand on.
pub(super) fn execute_with_pin(
    config: &Config,
    command: Command,
    pin: Option<&Handed>,
) -> anyhow::Result<Reply> {
    let runtime = runtime()?;
    let reply = runtime.block_on(async {
        match server::ask_with_pin(&config.socket(), &command, pin).await {
            Err(OperatorError::NoServer(_)) if pin.is_some() => {
                bail!("no server runs, and the PIN is for its bridge; start it first: ekm serve")
            }
            Err(OperatorError::NoServer(_)) => here(config, command).await,
            outcome => Ok(outcome?),
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    done(reply?)
}

/// What the server says, where one runs: for what is told beside something else, and is not worth
/// a login.
pub(super) fn of_server(context: &Context, command: &Command) -> Option<Reply> {
    if let Some(site) = &context.site {
        return runtime().ok()?.block_on(site.ask(command, None)).ok();
    }
    let config = Config::load(&context.config).ok()?;
    let asked = async { server::ask_with_pin(&config.socket(), command, None).await };
    runtime().ok()?.block_on(asked).ok()
}

/// The same, for what is told only by a server: that none runs here is an answer, and anything else
/// that keeps it from telling is an error.
pub(super) fn ask_server(context: &Context, command: &Command) -> anyhow::Result<Option<Reply>> {
    if let Some(site) = &context.site {
        return runtime()?.block_on(site.ask(command, None)).map(Some);
    }
    let config = Config::load(&context.config)?;
    let asked = async { server::ask_with_pin(&config.socket(), command, None).await };
    match runtime()?.block_on(asked) {
        Err(OperatorError::NoServer(_)) => Ok(None),
        outcome => Ok(Some(outcome?)),
    }
}

async fn here(config: &Config, command: Command) -> anyhow::Result<Reply> {
    let program = Program::own()
        .context("cannot find the ekm executable")?
        .with_pins(EnvironmentPins::of_environment(config.pin_variables())?);
    let needs_tokens = match &command {
        Command::DriveDel { .. }
        | Command::DriveList
        | Command::DriveImport { .. }
        | Command::DriveTrust { .. }
        | Command::BackupMade { .. }
        | Command::TablesExport
        | Command::VolumesExport { .. }
        | Command::VolumesImport { .. }
        | Command::AlarmList
        | Command::Sync(_)
        | Command::VolumeList { .. }
        | Command::DrivePending
        | Command::DriveReject { .. }
        | Command::ApprovalList { .. }
        | Command::AuditEmergency { .. }
        | Command::AuditKey { generate: None, .. }
        | Command::FleetStatus
        | Command::FleetForget { .. } => false,
        Command::TablesImport { apply, .. } => *apply,

        Command::VolumeFind { .. } | Command::VolumeWriteOff { .. } => false,
        Command::KekSchedule(ScheduleAct::List | ScheduleAct::Remove(_)) => false,
        Command::VolumeRekey(RekeyAct::Status(_) | RekeyAct::Cancel(_)) => false,
        Command::VolumeRekey(_) => {
            bail!(
                "no server runs, and it is the server that works through a rekey; start it first: ekm serve"
            )
        }
        Command::KekTurn { .. }
        | Command::KekDelete { .. }
        | Command::KekImpact { .. }
        | Command::KekRotate(_)
        | Command::KekSchedule(ScheduleAct::Set { .. }) => true,
        Command::KekDefault { set, .. } => set.is_some(),
        Command::DriveAdd { change, .. } | Command::DriveMod { change, .. } => {
            change.accept
                || matches!(change.kek1, Change::Set(_))
                || matches!(change.kek2, Change::Set(_))
        }
        Command::KekGenerate { .. }
        | Command::KekImport(_)
        | Command::KekImported { .. }
        | Command::KekAdopt { .. }
        | Command::KekCopy { .. }
        | Command::KekCopyStated { .. }
        | Command::KekCleared { .. }
        | Command::KekList
        | Command::KekRequest { .. }
        | Command::KekPossession { .. }
        | Command::KekCertificate { .. }
        | Command::PartnerAdd { .. }
        | Command::PartnerList
        | Command::PartnerRemove { .. }
        | Command::TokenStatus
        | Command::TokenUnlock { .. }
        | Command::BackupBegin { .. }
        | Command::BackupStatus
        | Command::EedkFailures { .. }
        // What is approved may want them.
        | Command::DriveAccept { .. }
        | Command::ApprovalDecide { .. }
        | Command::AuditSeal { .. }
        | Command::AuditKey { .. }
        | Command::AuditAnchors => true,
    };
    let mut config = config.clone();
    if !needs_tokens {
        // A bridge that is ended in the middle of its login leaves the PIN held back.
        config.tokens.clear();
        config.keystores.clear();
    }
    if let Command::AuditEmergency { switch: Some(true) } = &command {
        // So that there is room for what opening the log may have to record.
        let reserve = Reserve::of(&config.audit, config.records.reserve());
        reserve
            .release()
            .context("cannot give the reserve to the audit log")?;
    }
    let service = server::open(&config, &program).await?;
    let tolerant = matches!(
        command,
        Command::TokenStatus
            | Command::TokenUnlock { .. }
            // A backup is made most of all where something does not work.
            | Command::BackupBegin { .. }
            | Command::BackupStatus
            | Command::TablesImport { .. }
            // What was done to a token is recorded also where it has gone since.
            | Command::KekImported { .. }
            | Command::KekAdopt { ended: Some(_), .. }
            | Command::KekCleared { .. }
            | Command::KekCopy { ended: Some(_), .. }
    );
    // All of them, before one's fault ends the others in the middle of a login.
    let bridges = service.tokens().bridges();
    let settled = join_all(bridges.iter().map(Bridge::settled)).await;
    let faults: Vec<(&str, Fault)> = bridges
        .iter()
        .zip(settled)
        .filter_map(|(bridge, outcome)| Some((bridge.name(), outcome.err()?)))
        .collect();
    let asker = Asker {
        shown: Shown::Unix(rustix::process::getuid().as_raw()),
        whence: Whence::NoServer,
    };
    if tolerant || faults.is_empty() {
        return Ok(admin::perform(&service, &asker, command, None).await?);
    }
    let about = token_of(&command).map(str::to_owned);
    for (name, fault) in &faults {
        if faults.len() == bridges.len() || about.as_deref() == Some(*name) {
            bail!("{fault}");
        }
        output::tell(&format!("warning: {fault}"));
    }
    let names: Vec<&str> = faults.iter().map(|(name, _)| *name).collect();
    admin::perform(&service, &asker, command, None)
        .await
        .with_context(|| {
            format!(
                "not all was looked at, since {} could not be had (see the warning)",
                names.join(", ")
            )
        })
}

/// The token that a command names. One that is about a KEK finds out by itself where that is.
fn token_of(command: &Command) -> Option<&str> {
    match command {
        Command::KekGenerate { token, .. }
        | Command::KekCertificate { token, .. }
        | Command::AuditKey { token, .. } => token.as_deref(),
        Command::KekImport(asked) | Command::KekImported { asked, .. } => asked.token.as_deref(),
        Command::KekAdopt { asked, .. } => Some(&asked.token),
        Command::KekCopy { asked, .. } => Some(&asked.token),
        Command::DriveTrust { token, .. } | Command::TokenUnlock { token, .. } => Some(token),
        Command::DriveAdd { .. }
        | Command::DriveMod { .. }
        | Command::DriveDel { .. }
        | Command::DriveList
        | Command::DriveImport { .. }
        | Command::EedkFailures { .. }
        | Command::KekCopyStated { .. }
        | Command::KekCleared { .. }
        | Command::KekList
        | Command::KekRequest { .. }
        | Command::KekPossession { .. }
        | Command::PartnerAdd { .. }
        | Command::PartnerList
        | Command::PartnerRemove { .. }
        | Command::KekDefault { .. }
        | Command::TokenStatus
        | Command::BackupBegin { .. }
        | Command::BackupMade { .. }
        | Command::BackupStatus
        | Command::TablesExport
        | Command::TablesImport { .. }
        | Command::VolumesExport { .. }
        | Command::VolumesImport { .. }
        | Command::AlarmList
        | Command::Sync(_)
        | Command::AuditSeal { .. }
        | Command::AuditAnchors
        | Command::AuditEmergency { .. }
        | Command::FleetStatus
        | Command::FleetForget { .. }
        | Command::VolumeList { .. } => None,

        Command::KekRotate(wanted) => wanted.token.as_deref(),
        Command::KekTurn { .. }
        | Command::KekDelete { .. }
        | Command::KekImpact { .. }
        | Command::KekSchedule(_)
        | Command::VolumeFind { .. }
        | Command::VolumeWriteOff { .. }
        | Command::VolumeRekey(_)
        | Command::DrivePending
        | Command::DriveAccept { .. }
        | Command::DriveReject { .. }
        | Command::ApprovalList { .. }
        | Command::ApprovalDecide { .. } => None,
    }
}

/// The reply was of another kind than the command's.
pub(super) fn out_of_turn<T>(reply: &Reply) -> anyhow::Result<T> {
    bail!("the server gave an answer of another kind ({reply:?}); is it of this version?")
}
