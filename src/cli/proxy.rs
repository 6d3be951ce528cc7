//! `ekm proxy`

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::signal::unix::{SignalKind, signal};

use super::{Context, Found, output, runtime, serve, server_runtime};
use crate::drive::DriveSerial;
use crate::proxy::control::{
    Command, Control, Displayed, DriveShown, InBandShown, OrNone, PathOrDefault, Reply, SetServers,
};
use crate::proxy::keying::{DriveState, Guard};
use crate::proxy::{Daemon, HostConfig, ServerAddress, ServerSeen, Verified, Which};

/// How long an answer of the daemon's may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The same where it asks key servers first; the longest that one may take to answer.
const PATIENCE_VERIFY: Duration = Duration::from_secs(500);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Proxy {
    /// Runs the host's daemon until it is told to stop (SIGTERM, SIGINT).
    ///
    /// It asks the key servers of host.toml for the keys of this host's drives: the primary until its
    /// retries are exhausted, then the next, and the primary again as soon as it is back.
    Run {
        /// The key servers of this list instead, in `lin_tape`'s syntax: server TIMEOUT ADDRESS:PORT.
        #[arg(long, value_name = "FILE")]
        ibmekm_conf: Option<PathBuf>,
    },
    /// Shows the key servers, their state and connections, and the drives' paths (D IOS,EKM).
    ///
    /// With --verify each of those servers is asked: mutual TLS on a connection of its own, and
    /// whether a token of its is ready. Exit code 3 where one is not.
    Display {
        /// Asks these servers: primary, secondary or all (D IOS,EKM,VERIFY=).
        #[arg(long, value_name = "WHICH", num_args = 0..=1, default_missing_value = "all")]
        verify: Option<Which>,
        #[command(flatten)]
        at: At,
    },
    /// Changes key servers, bounds or paths until the daemon ends; host.toml stays as it is (SETIOS EKM).
    Set(Box<Set>),
}

/// Where the daemon is.
#[derive(Debug, clap::Args)]
pub(super) struct At {
    /// The daemon's socket; otherwise that of the host's file.
    #[arg(long, env = "EKM_PROXY_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Set {
    /// Another primary key server.
    #[arg(long, value_name = "HOST[:PORT]")]
    primary: Option<ServerAddress>,
    /// Another secondary, or none.
    #[arg(long, value_name = "HOST[:PORT]|none")]
    secondary: Option<OrNone>,
    /// The whole list instead, in the order in which they are tried.
    #[arg(long, value_name = "HOST[:PORT],…", value_delimiter = ',', conflicts_with_all = ["primary", "secondary"])]
    servers: Option<Vec<ServerAddress>>,
    /// Most connections at once, 1 to 255.
    #[arg(long, value_name = "NUMBER")]
    maxconn: Option<u16>,
    /// Of these, how many stay open.
    #[arg(long, value_name = "NUMBER")]
    maxpconn: Option<u16>,
    /// The drive whose path changes; without it that of all drives that have none of their own.
    #[arg(long, value_name = "SERIAL", requires = "path")]
    drive: Option<DriveSerial>,
    /// in-band (through this host), out-of-band (the control unit asks itself), or default (as
    /// host.toml says).
    #[arg(long, value_name = "WAY")]
    path: Option<PathOrDefault>,
    #[command(flatten)]
    at: At,
}

impl Proxy {
    /// Whether it is the daemon, which logs.
    pub(super) const fn serves(&self) -> bool {
        matches!(self, Self::Run { .. })
    }

    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Run { ibmekm_conf } => {
                let mut host = HostConfig::load(&context.host_config())?;
                if let Some(list) = ibmekm_conf {
                    host.take_ibmekm(&list)?;
                }
                let runtime = server_runtime()?;
                let outcome = runtime.block_on(daemon(host));
                runtime.shutdown_timeout(Duration::from_secs(2));
                outcome
            }
            Self::Display { verify: None, at } => {
                match at.ask(context, &Command::Display {}, PATIENCE)? {
                    Reply::Display(shown) if context.json => output::json(&shown),
                    Reply::Display(shown) => display(&shown),
                    other => out_of_turn(&other),
                }
            }
            Self::Display {
                verify: Some(which),
                at,
            } => {
                let verify = Command::Verify { which };
                match at.ask(context, &verify, PATIENCE_VERIFY)? {
                    Reply::Verified { servers } => verified(context, which, &servers),
                    other => out_of_turn(&other),
                }
            }
            Self::Set(set) => set.run(context),
        }
    }
}

async fn daemon(host: HostConfig) -> anyhow::Result<()> {
    // Before anybody is told that it runs, and may stop it.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Its memory may hold data keys of drives that take them in clear.
    crate::bridge::process::harden_server().context("cannot forbid core dumps")?;
    let daemon = Daemon::open(host).await?;
    let config = daemon.host().config();
    let socket = config.socket().display().to_string();
    let servers = daemon.host().keys().servers().servers;
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    tracing::info!(socket, peer = %daemon.host().peer(), servers = servers.join(","), "listening");
    // For whoever started it; a daemon goes on when nobody reads it.
    drop(output::say(&format!("listening on {socket}")));
    serve::tell_systemd(&[sd_notify::NotifyState::Ready]);
    daemon
        .run(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            serve::tell_systemd(&[sd_notify::NotifyState::Stopping]);
        })
        .await;
    Ok(())
}

impl At {
    fn ask(
        &self,
        context: &Context,
        command: &Command,
        patience: Duration,
    ) -> anyhow::Result<Reply> {
        let socket = match &self.socket {
            Some(socket) => socket.clone(),
            None => HostConfig::socket_in(&context.host_config())?,
        };
        runtime()?.block_on(async {
            let mut control = Control::connect(&socket).await?;
            Ok(control.ask(command, patience).await?)
        })
    }
}

impl Set {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self {
            primary,
            secondary,
            servers,
            maxconn,
            maxpconn,
            drive,
            path,
            at,
        } = self;
        let change = SetServers {
            primary,
            secondary,
            servers,
            maxconn,
            maxpconn,
        };
        let mut commands = Vec::new();
        if change != SetServers::default() {
            commands.push(Command::Set(change));
        }
        if let Some(PathOrDefault(path)) = path {
            commands.push(Command::Path { drive, path });
        }
        let mut now = None;
        for command in commands {
            match at.ask(context, &command, PATIENCE)? {
                Reply::Done(shown) => now = Some(shown),
                other => return out_of_turn(&other),
            }
        }
        match now {
            None => bail!("give what is to change: see ekm proxy set --help"),
            Some(now) if context.json => output::json(&now),
            Some(now) => {
                display(&now)?;
                output::say(&format!(
                    "\nChanged until the proxy ends; {} stays as it is.",
                    now.file.display()
                ))
            }
        }
    }
}

fn display(shown: &Displayed) -> anyhow::Result<()> {
    let Displayed {
        file,
        version: _,
        peer,
        certificate_until,
        changed,
        keys,
        path,
        drives,
        in_band,
    } = shown;
    let head = ["server", "role", "state", "since (utc)", "conn", "busy"];
    output::table(&head, keys.servers.iter().map(row))?;
    for server in &keys.servers {
        if let Some(failure) = &server.failure {
            output::say(&format!(
                "last error, {}: {} {}",
                at(failure.at),
                server.server,
                failure.reason
            ))?;
        }
    }
    output::say("")?;
    let next = keys.servers.iter().find(|server| server.next);
    let next = next.map_or_else(
        || "no server is ready; requests wait for one".to_owned(),
        |server| format!("goes to {}", server.server),
    );
    let from = if *changed {
        "a command".to_owned()
    } else {
        file.display().to_string()
    };
    let until = certificate_until.map_or_else(
        || "cannot be read now".to_owned(),
        |until| format!("good until {}", until.date()),
    );
    let mut fields = vec![
        ("next request", next),
        (
            "connections",
            format!(
                "{} of maxconn {}; maxpconn {}",
                keys.open, keys.maxconn, keys.maxpconn
            ),
        ),
        ("servers by", from),
        ("certificate", format!("{peer}, {until}")),
        ("path", format!("{} ({})", path.path, path.by)),
    ];
    if keys.confirms_waiting > 0 {
        fields.push((
            "confirms",
            format!("{} wait for their server", keys.confirms_waiting),
        ));
    }
    output::fields(&fields)?;
    for refused in &keys.confirms_refused {
        output::paragraph(&format!(
            "warning, {}: {} refuses to hear that nothing was written under data key {} of drive {}, \
             and takes the cartridge's former EEDKs for superseded: destroy no KEK of theirs. Mend \
             what it says; it is told again every ten minutes. {}",
            at(refused.at),
            refused.server,
            refused.dki,
            refused.drive,
            refused.why
        ))?;
    }
    paths(drives)?;
    held(in_band)
}

/// The drives that this host keys itself.
fn held(drives: &[InBandShown]) -> anyhow::Result<()> {
    if drives.is_empty() {
        return Ok(());
    }
    output::say("")?;
    let rows = drives.iter().map(|InBandShown { serial, state }| {
        let (state, more) = match state {
            DriveState::Starting => ("starting", String::new()),
            DriveState::NotHeld { .. } => ("not held", "see below".to_owned()),
            DriveState::Held(taken) => (
                "held",
                match (&taken.unfit, &taken.keyed, taken.guard) {
                    (Some(_), ..) => "cannot be keyed, see below".to_owned(),
                    (None, Some(keyed), _) => format!("write protected; has data key {keyed}"),
                    (None, None, Guard::Saved) => "write protected".to_owned(),
                    (None, None, Guard::CurrentOnly) => {
                        "write protected until it is reset".to_owned()
                    }
                    (None, None, Guard::None) => "not write protected".to_owned(),
                },
            ),
            DriveState::Busy { doing } => ("busy", doing.clone()),
            DriveState::Job { volser, writes } => (
                "job",
                format!("{} {volser}", if *writes { "writes" } else { "reads" }),
            ),
        };
        vec![serial.to_string(), state.to_owned(), more]
    });
    output::table(&["in-band drive", "state", "more"], rows)?;
    for InBandShown { serial, state } in drives {
        let why = match state {
            DriveState::NotHeld { why } => Some(why),
            DriveState::Held(taken) => taken.unfit.as_ref(),
            DriveState::Starting | DriveState::Busy { .. } | DriveState::Job { .. } => None,
        };
        if let Some(why) = why {
            output::paragraph(&format!("{serial}: {why}"))?;
        }
    }
    Ok(())
}

fn paths(drives: &[DriveShown]) -> anyhow::Result<()> {
    if drives.is_empty() {
        return Ok(());
    }
    output::say("")?;
    let rows = drives.iter().map(|DriveShown { serial, path }| {
        vec![
            serial.to_string(),
            path.path.to_string(),
            path.by.to_string(),
        ]
    });
    output::table(&["drive", "path", "by"], rows)
}

fn row(server: &ServerSeen) -> Vec<String> {
    vec![
        server.server.to_string(),
        server.role.to_string(),
        server.state.to_string(),
        at(server.since),
        server.connections.to_string(),
        server.in_use.to_string(),
    ]
}

/// To the second, UTC.
fn at(time: OffsetDateTime) -> String {
    let text = time.format(&Rfc3339).unwrap_or_default();
    text.chars().take(19).collect::<String>().replace('T', " ")
}

fn verified(context: &Context, which: Which, servers: &[Verified]) -> anyhow::Result<()> {
    if context.json {
        output::json(&serde_json::json!({ "servers": servers }))?;
    } else {
        let rows = servers.iter().map(|one| {
            vec![
                one.server.to_string(),
                one.role.to_string(),
                format!("{} ms", one.milliseconds),
                match &one.failure {
                    None => "ready".to_owned(),
                    Some(reason) => reason.clone(),
                },
            ]
        });
        output::table(&["server", "role", "took", "result"], rows)?;
    }
    if servers.is_empty() {
        bail!("there is no {which} key server in the list");
    }
    if servers.iter().any(|one| one.failure.is_some()) {
        return Err(Found.into());
    }
    Ok(())
}

/// The reply was of another kind than the command's.
fn out_of_turn<T>(reply: &Reply) -> anyhow::Result<T> {
    bail!("the proxy gave an answer of another kind ({reply:?}); is it of this version?")
}
