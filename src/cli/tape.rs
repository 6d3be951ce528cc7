//! `ekm tape`

mod run;

use clap::ValueEnum;
use serde::Serialize;

use super::{Context, output};
use crate::drive::DriveSerial;
use crate::key::KekRef;
use crate::proxy::{
    Asks, ClassName, Dd, Decision, HostConfig, Job, KeyPath, KeyServers, Loaded, Place,
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
        let decision = host.decide(&Job {
            data_class: data_class.as_ref(),
            dd: &dd.unwrap_or_default(),
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
        let explained = Explained {
            decision: &decision,
            key_servers: host.key_servers(),
            drive,
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
        } = self;
        let mut lines = vec![("asks", asked(decision.asks()))];
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
        output::fields(&lines)
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
