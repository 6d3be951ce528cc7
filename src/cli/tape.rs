//! `ekm tape`

mod run;

use clap::ValueEnum;
use serde::Serialize;

use super::{Context, output};
use crate::drive::DriveSerial;
use crate::key::KekRef;
use crate::proxy::keying::{JobRequest, in_clear_is_said};
use crate::proxy::{
    Asks, ClassName, Dd, Decision, Disp, HostConfig, Job, KeyPath, KeyServers, Loaded, Place,
};
use crate::volser::Volser;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Tape {
    /// What a job's tape would get.
    #[command(subcommand)]
    Policy(Policy),
    /// Runs a command that uses a tape: the drive is keyed before it, and looked at after it.
    ///
    /// The proxy (ekm proxy run) holds the drive, sets the key and has the drive confirm it; then the
    /// command runs with `EKM_TAPE` as its tape device. Afterwards the drive is held and write protected
    /// again, and the cartridge is looked at for blocks in clear.
    ///
    /// Exit code: the command's; 3 where the look afterwards found something wrong; 1 where the job did
    /// not get its tape.
    Run(run::Run),
    /// Gives a tape to a program that keeps it for long, until ekm tape close.
    Open(run::Open),
    /// Takes a tape back, and looks at it.
    Close(run::Close),
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Policy {
    /// Says what would be asked of the key server for a job, and which line decided; asks nothing.
    ///
    /// The data class turns encryption on. The labels are those of the first of DD statement, data
    /// class and volume range that names any, both of them; where none does, the key server's drive
    /// table and defaults decide. Later files, and DISP=MOD, follow the cartridge.
    ///
    /// For a drive that is in-band it ends with why ekm tape run would refuse the job, where it would.
    ///
    /// The host's file is that of --config, else that of `EKM_HOST_CONFIG`, else host.toml.
    Explain(Explain),
}

#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    /// The job's data class; without one nothing is encrypted.
    #[arg(long, value_name = "NAME")]
    data_class: Option<ClassName>,
    /// The job's DD statement, for example
    /// "KEYLABL1='Tape 1',KEYENCD1=H,DISP=(NEW,KEEP),LABEL=(1,SL)".
    ///
    /// KEYLABL1, KEYENCD1, KEYLABL2, KEYENCD2, DISP, FILESEQ (or LABEL), as in JCL: no blanks; a
    /// label with blanks, commas or small letters to be kept stands in apostrophes, '' is one of them.
    #[arg(long, value_name = "STATEMENT", allow_hyphen_values = true)]
    dd: Option<Dd>,
    /// The cartridge, for volume ranges.
    #[arg(long)]
    volser: Option<Volser>,
    /// The drive, for its path.
    #[arg(long, value_name = "SERIAL")]
    drive: Option<DriveSerial>,
    /// Whether what the cartridge holds is encrypted, which later files and DISP=MOD follow.
    #[arg(long, value_name = "ANSWER")]
    loaded_encrypted: Option<Answer>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Answer {
    Yes,
    No,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Explained<'a> {
    #[serde(flatten)]
    decision: &'a Decision,
    key_servers: Option<&'a KeyServers>,
    drive: Option<DrivePath<'a>>,
    /// Why `ekm tape run` would refuse the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

#[derive(Serialize)]
struct DrivePath<'a> {
    serial: &'a DriveSerial,
    path: KeyPath,
    at: Place,
}

impl Tape {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Policy(Policy::Explain(explain)) => explain.run(context),
            Self::Run(run) => run.run(context),
            Self::Open(open) => open.run(context),
            Self::Close(close) => close.run(context),
        }
    }
}

impl Explain {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let host = HostConfig::load(&context.host_config())?;
        let Self {
            data_class,
            dd,
            volser,
            drive,
            loaded_encrypted,
        } = self;
        let dd = dd.unwrap_or_default();
        let decision = host.decide(&Job {
            data_class: data_class.as_ref(),
            dd: &dd,
            volser: volser.as_ref(),
            loaded: match loaded_encrypted {
                None => Loaded::Unknown,
                Some(Answer::Yes) => Loaded::Encrypted,
                Some(Answer::No) => Loaded::Clear,
            },
        })?;
        let drive = drive.as_ref().map(|serial| {
            let (path, line) = host.path(serial);
            let file = host.file().to_owned();
            DrivePath {
                serial,
                path,
                at: line.map_or(Place::Rule, |line| Place::Line { file, line }),
            }
        });
        let refused = match &drive {
            Some(drive) if drive.path == KeyPath::InBand => {
                let request = JobRequest {
                    // Its name is for the words alone.
                    volser: volser.map_or_else(|| "VOLSER".parse::<Volser>(), Ok)?,
                    data_class,
                    dd,
                    name: None,
                };
                refused(&host, decision.asks(), drive.serial, &request)
            }
            Some(_) | None => None,
        };
        let explained = Explained {
            decision: &decision,
            key_servers: host.key_servers(),
            drive,
            refused,
        };
        if context.json {
            return output::json(&explained);
        }
        explained.say()
    }
}

impl Explained<'_> {
    fn say(&self) -> anyhow::Result<()> {
        let Self {
            decision,
            key_servers,
            drive,
            refused,
        } = self;
        let asks = match decision.asks() {
            Asks::Nothing if refused.is_some() => "nothing".to_owned(),
            asks => asked(asks),
        };
        let mut lines = vec![("asks", asks)];
        if let Some(servers) = key_servers
            && *decision.asks() != Asks::Nothing
        {
            let names: Vec<String> = servers.servers.iter().map(ToString::to_string).collect();
            lines.push(("of", names.join(", then ")));
        }
        if let Some(DrivePath { serial, path, at }) = drive {
            let who = match path {
                KeyPath::OutOfBand => "by its control unit",
                KeyPath::InBand => "through this host",
            };
            lines.push(("path", format!("{path}, {who} (drive {serial}, {at})")));
        }
        for (heading, reasons) in [
            ("why", decision.reasons()),
            ("warning", decision.warnings()),
        ] {
            for (index, reason) in reasons.iter().enumerate() {
                // A warning is found by its word, a story is read in one.
                let heading = if index == 0 || heading == "warning" {
                    heading
                } else {
                    ""
                };
                lines.push((heading, format!("{}: {}", reason.at, reason.why)));
            }
        }
        if let Some(why) = refused {
            lines.push(("tape run", why.clone()));
        }
        output::fields(&lines)
    }
}

/// What `ekm tape run` says to a job for an in-band drive that it refuses by the host's file alone.
fn refused(
    host: &HostConfig,
    asks: &Asks,
    drive: &DriveSerial,
    request: &JobRequest,
) -> Option<String> {
    if !host.in_band_drives().any(|one| one.serial.value == *drive) {
        return Some(format!(
            "refused: {drive} is not among the [[drives]] of the host's file; add it there"
        ));
    }
    let in_clear = || in_clear_is_said(host, request, false).err();
    match asks {
        Asks::Nothing if request.dd.disp() != Disp::Old => {
            in_clear().map(|why| format!("refused: {why}"))
        }
        Asks::ResolveIfEncrypted { append: true } => {
            in_clear().map(|why| format!("if the cartridge is in clear, refused: {why}"))
        }
        Asks::Nothing
        | Asks::Create { .. }
        | Asks::Resolve { .. }
        | Asks::ResolveIfEncrypted { append: false } => None,
    }
}

fn asked(asks: &Asks) -> String {
    let kek = |kek: &KekRef| format!("{} by {}", kek.label, kek.encoding);
    match asks {
        Asks::Create { kek1: None, .. } => "create; the key server chooses the labels".to_owned(),
        Asks::Create {
            kek1: Some(kek1),
            kek2: None,
        } => format!("create under {}", kek(kek1)),
        Asks::Create {
            kek1: Some(kek1),
            kek2: Some(kek2),
        } => format!("create under {} and {}", kek(kek1), kek(kek2)),
        Asks::Resolve { append: false } => "resolve, to read".to_owned(),
        Asks::Resolve { append: true } => "resolve, to write more".to_owned(),
        Asks::ResolveIfEncrypted { .. } => {
            "resolve if the cartridge is encrypted, else nothing (see --loaded-encrypted)"
                .to_owned()
        }
        Asks::Nothing => "nothing; the file is in clear".to_owned(),
    }
}
