//! The command line: noun, verb, and help that teaches.
//!
//! Exit codes: 0 done; 1 it failed, and standard error says why and what to
//! do; 2 the command line itself is wrong; 3 something was checked and found
//! wrong (`config check`, `audit verify`, `slot doctor`, `proxy display --verify`; `backup`, where
//! the file was made and lacks an embedded token); 4 it waits for a second person.

mod alarm;
mod approval;
mod assess;
mod audit;
mod backup;
mod config;
mod demo;
mod drive;
mod eedk;
mod elsewhere;
mod export;
mod fleet;
mod kek;
mod migrate;
mod output;
mod proxy;
mod restore;
mod serve;
mod site;
mod slot;
mod softdrive;
mod sync;
mod tape;
mod times;
mod tls;
mod token;
mod volume;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches as _, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

/// Something was checked and found wrong; it has been said already.
#[derive(Debug)]
struct Found;

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("found wrong")
    }
}

impl std::error::Error for Found {}

/// The command waits for a second person.
#[derive(Debug)]
struct Waits(Box<crate::store::Approval>);

impl std::fmt::Display for Waits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let crate::store::Approval {
            id, words, permit, ..
        } = &*self.0;
        write!(
            f,
            "nothing is done yet: this takes a second person, and waits as request {id} ({words}). Another operator: ekm approval approve {id}"
        )?;
        if *permit {
            f.write_str(". Then give this command again")?;
        }
        Ok(())
    }
}

impl std::error::Error for Waits {}

/// A job's command ended so, and this program does too.
#[derive(Debug)]
struct Ended(u8);

impl From<std::process::ExitStatus> for Ended {
    fn from(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let code = status.code().or_else(|| Some(128 + status.signal()?));
        Self(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the command ended with {}", self.0)
    }
}

impl std::error::Error for Ended {}

/// Encryption key management for tape drives. The keys that protect the
/// cartridges live in a hardware security module (or a software token for
/// trying) and never leave it; ekm drives the token over PKCS#11.
///
/// New here? `ekm demo` does the whole job before your eyes. Then `ekm config
/// example` prints a configuration to start from.
#[derive(Debug, Parser)]
#[command(
    name = "ekm",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    /// The configuration file, without this ekm.toml; for `ekm tape` and `ekm proxy` the host's, without this that of `EKM_HOST_CONFIG`, else host.toml.
    #[arg(long, global = true, env = "EKM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Prints JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    elsewhere: elsewhere::Elsewhere,

    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Runs the key server until it is told to stop (SIGTERM, SIGINT).
    Serve(serve::Serve),
    /// Checks a configuration, or prints one to start from.
    #[command(subcommand)]
    Config(config::Config),
    /// Slots and tokens of a PKCS#11 module: look, initialise.
    #[command(subcommand)]
    Slot(slot::Slot),
    /// The configured tokens and how they are.
    #[command(subcommand)]
    Token(token::Token),
    /// Key-encrypting keys: make, list, show, export the public half.
    #[command(subcommand)]
    Kek(kek::Kek),
    /// The drive table: which drives get keys, wrapped for which public key.
    #[command(subcommand)]
    Drive(drive::DriveCommand),
    /// What waits for a second person: list, approve, reject.
    #[command(subcommand)]
    Approval(approval::Approvals),
    /// The volume history: which cartridge was keyed with what.
    #[command(subcommand)]
    Volume(volume::Volume),
    /// What a host decides of its tapes' keys: data classes, DD statements, volume ranges.
    #[command(subcommand)]
    Tape(tape::Tape),
    /// The host's daemon, which asks a list of key servers for its drives: run, display, set.
    #[command(subcommand)]
    Proxy(proxy::Proxy),
    /// A small certificate authority for the doors, for sites without one.
    #[command(subcommand)]
    Tls(tls::Tls),
    /// A tape drive in software, to try and to test with.
    #[command(subcommand)]
    Softdrive(softdrive::Softdrive),
    /// What an EEDK says, field by field; what may be one in a captured blob.
    #[command(subcommand)]
    Eedk(eedk::EedkCommand),
    /// The way from another key manager to ekm.
    #[command(subcommand)]
    Migrate(migrate::Migrate),
    /// What of a site will work: each drive, token, key and cartridge.
    Assess(assess::Assess),
    /// Takes in the drive table, defaults or history of a server that shares no database with this one.
    Sync(sync::SyncCommand),
    /// The servers that share one PostgreSQL database, and how that is.
    #[command(subcommand)]
    Fleet(fleet::FleetCommand),
    /// The audit records: verify the chain, show.
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Everything outside the HSMs in one encrypted file, made beside a running server.
    Backup(backup::BackupCommand),
    /// Brings a backup back, here or on an empty machine.
    Restore(restore::Restore),
    /// Writes the drive table, the defaults, the KEKs or the history into a file (EKM's export).
    Export(export::Export),
    /// Takes such a file in, after it was shown what that changes (EKM's import).
    Import(export::Import),
    /// Alarms: what each code means, and which are raised.
    #[command(subcommand)]
    Alarm(alarm::AlarmCommand),
    /// Writes a cartridge and reads it back, with real processes and real TLS.
    Demo(demo::Demo),
    /// Prints completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages into a directory.
    Man {
        /// The directory.
        directory: PathBuf,
    },
    /// The token process; the server starts it.
    #[command(hide = true)]
    Bridge,
}

/// What every command is given.
#[derive(Clone, Debug)]
struct Context {
    config: PathBuf,
    /// Whether --config was on the command line, and so names the file that this command wants.
    config_named: bool,
    json: bool,
    /// The server that operators' commands go to, where it is not that of the configuration.
    site: Option<elsewhere::Site>,
}

impl Context {
    /// The server's configuration on its own host, for commands that work with a token themselves.
    fn own_config(&self) -> anyhow::Result<crate::config::Config> {
        if let Some(elsewhere::Site::Door { server, .. }) = &self.site {
            anyhow::bail!(
                "this works with a token itself, and not through the server at {server}: run it on the token's host, without --site (EKM_SITE)"
            );
        }
        Ok(crate::config::Config::load(&self.config)?)
    }

    /// The host's file. A server's, by its variable or by default, is never taken for it.
    fn host_config(&self) -> PathBuf {
        if self.config_named {
            return self.config.clone();
        }
        std::env::var_os("EKM_HOST_CONFIG").map_or_else(|| "host.toml".into(), PathBuf::from)
    }
}

/// Runs the program.
#[must_use]
pub fn run() -> ExitCode {
    let matches = Cli::command().get_matches();
    let config_named = matches.value_source("config") == Some(ValueSource::CommandLine);
    let Cli {
        config,
        json,
        elsewhere,
        noun,
    } = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let site = match elsewhere.site() {
        Ok(site) => site,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "ekm: {error}");
            return ExitCode::from(2);
        }
    };
    let context = Context {
        config: config.unwrap_or_else(|| "ekm.toml".into()),
        config_named,
        json,
        site,
    };
    match dispatch(&context, noun) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Found>() => ExitCode::from(3),
        Err(error) if error.is::<Waits>() => {
            let _ = writeln!(std::io::stderr(), "ekm: {error}");
            ExitCode::from(4)
        }
        Err(error) if error.is::<Ended>() => {
            ExitCode::from(error.downcast::<Ended>().map_or(1, |Ended(code)| code))
        }
        Err(error) if broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed too; there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "ekm: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(context: &Context, noun: Noun) -> anyhow::Result<()> {
    match noun {
        Noun::Bridge => {
            log(LevelFilter::INFO);
            Ok(crate::bridge::process::run()?)
        }
        Noun::Serve(serve) => {
            log(LevelFilter::INFO);
            serve.run(context)
        }
        Noun::Proxy(proxy) if proxy.serves() => {
            log(LevelFilter::INFO);
            proxy.run(context)
        }
        other => {
            // What matters of it comes back as the command's own error.
            log(LevelFilter::OFF);
            match other {
                Noun::Config(config) => config.run(context),
                Noun::Slot(slot) => slot.run(context),
                Noun::Token(token) => token.run(context),
                Noun::Kek(kek) => kek.run(context),
                Noun::Drive(drive) => drive.run(context),
                Noun::Approval(approvals) => approvals.run(context),
                Noun::Volume(volume) => volume.run(context),
                Noun::Tape(tape) => tape.run(context),
                Noun::Proxy(proxy) => proxy.run(context),
                Noun::Tls(tls) => tls.run(context),
                Noun::Softdrive(softdrive) => softdrive.run(context),
                Noun::Eedk(eedk) => eedk.run(context),
                Noun::Migrate(migrate) => migrate.run(context),
                Noun::Assess(assess) => assess.run(context),
                Noun::Sync(sync) => sync.run(context),
                Noun::Fleet(fleet) => fleet.run(context),
                Noun::Audit(audit) => audit.run(context),
                Noun::Backup(backup) => backup.run(context),
                Noun::Restore(restore) => restore.run(context),
                Noun::Export(export) => export.run(context),
                Noun::Import(import) => import.run(context),
                Noun::Alarm(alarm) => alarm.run(context),
                Noun::Demo(demo) => demo.run(),
                Noun::Completions { shell } => {
                    // It panics where writing fails.
                    let mut script = Vec::new();
                    clap_complete::generate(shell, &mut Cli::command(), "ekm", &mut script);
                    Ok(std::io::stdout().write_all(&script)?)
                }
                Noun::Man { directory } => {
                    std::fs::create_dir_all(&directory)?;
                    Ok(clap_mangen::generate_to(Cli::command(), &directory)?)
                }
                Noun::Bridge | Noun::Serve(_) => Ok(()),
            }
        }
    }
}

/// Log events go to standard error; `RUST_LOG` says which, and
/// `EKM_LOG_FORMAT=json` makes them JSON.
fn log(level: LevelFilter) {
    let said = std::env::var("RUST_LOG").ok();
    let said = said.filter(|said| !said.trim().is_empty());
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(level.into())
        .parse_lossy(said.unwrap_or_else(|| logged(level)));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let started = if std::env::var_os("EKM_LOG_FORMAT").is_some_and(|format| format == "json") {
        builder.json().try_init()
    } else {
        builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init()
    };
    // A second start would be within one process, whose first log goes on.
    drop(started);
}

/// What is logged where nobody said. PostgreSQL notes at each start that tables are there already, and
/// sqlx repeats that as information.
fn logged(level: LevelFilter) -> String {
    if level == LevelFilter::OFF {
        level.to_string()
    } else {
        format!("{level},sqlx=warn")
    }
}

/// An error and its causes, each once: many of ours name their cause already.
fn told(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| {
        let cause = cause.to_string();
        if told.is_empty() {
            cause
        } else if told.contains(&cause) {
            told
        } else {
            format!("{told}: {cause}")
        }
    })
}

/// What is said of a file that should be PEM. The decoder's own words are about the text before the
/// first line that begins a block, also where there is no such line.
fn not_pem(path: &Path, text: &[u8], error: &dyn std::fmt::Display) -> anyhow::Error {
    const BEGIN: &[u8] = b"-----BEGIN ";
    let path = path.display();
    if text.windows(BEGIN.len()).any(|part| part == BEGIN) {
        anyhow::anyhow!("{path} is not PEM that can be read: {error}")
    } else {
        anyhow::anyhow!("{path} is not PEM: it has no line that begins with -----BEGIN")
    }
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// A runtime for the server: half of the processors. The others are for the
/// bridges and the log's thread, and fewer threads hand each other less.
fn server_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads((processors / 2).max(1))
        .enable_all()
        .build()?)
}

/// A runtime for commands that talk or wait.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?)
}

#[cfg(test)]
mod documents;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn notices_of_the_database_are_not_logged_where_nobody_asked_for_them() {
        assert_eq!(logged(LevelFilter::INFO), "info,sqlx=warn");
        assert_eq!(logged(LevelFilter::OFF), "off");
    }

    #[test]
    fn a_file_that_is_no_pem_is_called_that_and_nothing_else() {
        let told = |text: &[u8]| not_pem(Path::new("pin"), text, &"(NUL byte)").to_string();
        let none = told(b"1234");
        assert!(none.contains("pin is not PEM: it has no line"), "{none}");
        assert!(!none.contains("NUL"), "{none}");
        assert!(told(b"\0-----BEGIN PUBLIC KEY-----").contains("NUL"));
    }
}
