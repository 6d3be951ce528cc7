//! `ekm demo`: the whole job before the user's eyes.
//!
//! Every step is this same program, started as a user would start it, with
//! its command line shown. Nothing is faked: the server is a process, TLS is
//! real, the token is driven by a bridge process, the cartridge is a file.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::output::say;

mod in_band;

/// Writes a cartridge and reads it back, with real processes and real TLS on
/// loopback, in a temporary directory.
#[derive(Debug, clap::Args)]
pub(super) struct Demo {
    /// What to write to the cartridge; otherwise a built-in sample.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The token: embedded needs no other software; softhsm2 needs SoftHSM.
    #[arg(long, value_name = "NAME", default_value = "embedded")]
    profile: String,
    /// With drives that this host keys itself (ekm proxy run, ekm tape run), behind sockets that carry
    /// their SCSI commands.
    #[arg(long)]
    in_band: bool,
    /// Leaves everything in this directory to look at.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

const DRIVE_A: (&str, &str) = ("000007800001", "5005076300C0FFE1");
const DRIVE_B: (&str, &str) = ("000007800002", "5005076300C0FFE2");
const DRIVE_C: (&str, &str) = ("000007800003", "5005076300C0FFE3");

impl Demo {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let (directory, _temporary) = match &self.keep {
            Some(directory) => {
                std::fs::create_dir_all(directory)
                    .with_context(|| format!("cannot make {}", directory.display()))?;
                ensure!(
                    std::fs::read_dir(directory)?.next().is_none(),
                    "{} is not empty; give --keep a new directory",
                    directory.display()
                );
                (std::path::absolute(directory)?, None)
            }
            None => {
                let temporary = tempfile::Builder::new().prefix("ekm-demo-").tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        if let Some(data) = &self.data {
            ensure!(data.is_file(), "--data: {} is no file", data.display());
        }
        let stage = Stage {
            program: std::env::current_exe()?,
            directory,
            profile: self.profile.clone(),
        };
        if self.in_band {
            ensure!(
                self.profile == "embedded",
                "--in-band is for the embedded token, which wraps keys as T10 drives take them"
            );
            stage.play_in_band(self.data.as_deref())?;
        } else {
            stage.play(self.data.as_deref())?;
        }
        if self.keep.is_some() {
            say("")?;
            say(&format!(
                "Everything is in {}: ekm.toml, cartridges/, audit/, state/, token/.",
                stage.directory.display()
            ))?;
            say(&format!(
                "Go on there: cd {} && ekm serve",
                stage.directory.display()
            ))?;
        }
        Ok(())
    }
}

struct Stage {
    program: PathBuf,
    directory: PathBuf,
    profile: String,
}

impl Stage {
    fn play(&self, data: Option<&Path>) -> anyhow::Result<()> {
        let form = self.form();
        say(&format!(
            "ekm {}: a cartridge is written and read back; token profile {}",
            env!("CARGO_PKG_VERSION"),
            self.profile
        ))?;

        step(
            1,
            "A small certificate authority for the doors, and a certificate for each who comes in",
        )?;
        self.ekm(&["tls", "init"])?;
        self.ekm(&["tls", "issue", "ekm1", "--role", "server"])?;
        for (serial, _) in [DRIVE_A, DRIVE_B, DRIVE_C] {
            self.ekm(&["tls", "issue", serial, "--role", "drive"])?;
        }

        step(
            2,
            "A token, and two KEKs on it; their private halves never leave it",
        )?;
        self.pin("so-pin")?;
        self.pin("pin")?;
        self.configure("ekm.toml", "ekm1", "token", "state", "audit")?;
        self.ekm(&[
            "slot",
            "init",
            "--profile",
            &self.profile,
            "--directory",
            "token",
            "--label",
            "ekm1",
            "--so-pin-file",
            "so-pin",
            "--pin-file",
            "pin",
        ])?;
        self.ekm(&["kek", "generate", "TAPE2026A"])?;
        self.ekm(&["kek", "generate", "TAPE2026B"])?;
        self.ekm(&["kek", "list"])?;

        step(
            3,
            "The key server; from here on the commands go to it over its socket",
        )?;
        let server = self.serve("ekm.toml")?;

        step(4, "Two software drives, enrolled by their public keys")?;
        for (name, (serial, wwn)) in [
            ("driveA", DRIVE_A),
            ("driveB", DRIVE_B),
            ("driveC", DRIVE_C),
        ] {
            self.ekm(&["softdrive", "init", name, "--serial", serial, "--wwn", wwn])?;
            self.connect(name, serial, &server.address)?;
            if name != "driveC" {
                self.ekm_into(&["softdrive", "key", name], &format!("{name}.pem"))?;
                let key = format!("{name}.pem");
                self.ekm(&[
                    "drive",
                    "add",
                    serial,
                    "--wwn",
                    wwn,
                    "--key",
                    &key,
                    "--form",
                    form,
                    "--kek1",
                    "TAPE2026A:label",
                    "--kek2",
                    "TAPE2026B:hash",
                ])?;
            }
        }
        self.ekm(&["drive", "list"])?;

        step(
            5,
            "Drive A writes: a new data key, wrapped under both KEKs and for this drive",
        )?;
        std::fs::create_dir(self.directory.join("cartridges"))?;
        let sample = self.directory.join("sample.txt");
        let data = match data {
            Some(data) => data.to_owned(),
            None => {
                std::fs::write(&sample, sample_text())?;
                sample
            }
        };
        self.ekm_from(
            &[
                "softdrive",
                "write",
                "--drive",
                "driveA",
                "--cartridge",
                "cartridges/VOL001",
                "--volser",
                "VOL001",
            ],
            &data,
        )?;

        step(6, "What the cartridge holds in clear, for whoever finds it")?;
        self.ekm(&[
            "softdrive",
            "show",
            "--cartridge",
            "cartridges/VOL001",
            "--eedks",
            "cartridges",
        ])?;

        step(
            7,
            "Drive B reads: an EEDK is opened on the token, and wrapped for this other drive",
        )?;
        self.ekm_into(
            &[
                "softdrive",
                "read",
                "--drive",
                "driveB",
                "--cartridge",
                "cartridges/VOL001",
            ],
            "read-back",
        )?;
        let read_back = self.directory.join("read-back");
        ensure!(
            same(&data, &read_back)?,
            "what drive B read is not what drive A wrote"
        );
        say(&format!(
            "    the same {} bytes, compared byte by byte",
            std::fs::metadata(&data)?.len()
        ))?;
        std::fs::remove_file(&read_back)?;

        step(8, "A drive that is not in the drive table gets EF01")?;
        self.refused(
            &[
                "softdrive",
                "read",
                "--drive",
                "driveC",
                "--cartridge",
                "cartridges/VOL001",
            ],
            "EF01",
        )?;

        step(
            9,
            "A cartridge whose KEK is on another site's token gets EE32",
        )?;
        self.elsewhere(form)?;
        self.refused(
            &[
                "softdrive",
                "read",
                "--drive",
                "driveB",
                "--cartridge",
                "cartridges/VOL900",
            ],
            "EE32",
        )?;

        step(
            10,
            "What was recorded, and that the chain of records is whole",
        )?;
        self.ekm(&["volume", "list"])?;
        server.stop()?;
        self.ekm(&["audit", "show", "audit", "--last", "8"])?;
        self.ekm(&["audit", "verify", "audit"])?;

        self.places()
    }

    fn form(&self) -> &'static str {
        // What SoftHSM can wrap for a drive by itself; T10's form needs OAEP with SHA-256 and a label.
        if self.profile == "embedded" {
            "t10-02h"
        } else {
            "rsa-oaep-sha1"
        }
    }

    /// Another site: its own token and KEK, its own server, the same drives.
    fn elsewhere(&self, form: &str) -> anyhow::Result<()> {
        self.configure(
            "other.toml",
            "other",
            "other/token",
            "other/state",
            "other/audit",
        )?;
        self.quietly(&[
            "slot",
            "init",
            "--profile",
            &self.profile,
            "--directory",
            "other/token",
            "--label",
            "other",
            "--so-pin-file",
            "so-pin",
            "--pin-file",
            "pin",
        ])?;
        self.quietly(&[
            "--config",
            "other.toml",
            "kek",
            "generate",
            "ELSEWHERE",
            "--bits",
            "2048",
        ])?;
        self.quietly(&[
            "--config",
            "other.toml",
            "drive",
            "add",
            DRIVE_B.0,
            "--wwn",
            DRIVE_B.1,
            "--key",
            "driveB.pem",
            "--form",
            form,
            "--kek1",
            "ELSEWHERE:hash",
        ])?;
        let other = self.serve("other.toml")?;
        let source = self.directory.join("ekm.toml");
        let arguments = [
            "softdrive",
            "write",
            "--drive",
            "driveB",
            "--server",
            &other.address,
            "--cartridge",
            "cartridges/VOL900",
            "--volser",
            "VOL900",
        ];
        self.show_line(&arguments, None)?;
        let output = self
            .command(&arguments)
            .stdin(std::fs::File::open(source)?)
            .output()?;
        show_output(&output)?;
        ensure!(output.status.success(), "the other site's write failed");
        other.stop()
    }

    fn places(&self) -> anyhow::Result<()> {
        say("")?;
        say("Where the keys were")?;
        let process = if self.profile == "embedded" {
            "the token, inside the bridge process (the embedded token is software)"
        } else {
            "the token, inside its module in the bridge process (SoftHSM is software)"
        };
        for (key, place) in [
            ("KEKs, private halves", process.to_owned()),
            ("data key at create", format!("made in {process}")),
            (
                "data key on the way",
                "only wrapped: under the KEKs (EEDKs) and for one drive (SEDK)".to_owned(),
            ),
            (
                "data key at resolve",
                format!("opened and wrapped again in {process}"),
            ),
            (
                "data key in clear",
                "in the drive; never in the server process, never on disk".to_owned(),
            ),
            (
                "the token's PIN",
                "in its file and in the bridge process, never in the server".to_owned(),
            ),
        ] {
            say(&format!("  {key:21} {place}"))?;
        }
        Ok(())
    }

    fn configure(
        &self,
        file: &str,
        token: &str,
        directory: &str,
        state: &str,
        audit: &str,
    ) -> anyhow::Result<()> {
        let port = free_port()?;
        let mut text = String::new();
        writeln!(
            text,
            "node = \"{token}\"\nstate = \"{state}\"\naudit = \"{audit}\"\n"
        )?;
        writeln!(
            text,
            "[server]\nlisten = \"127.0.0.1:{port}\"\ncertificate = \"tls/issued/server-ekm1.crt\"\nkey = \"tls/issued/server-ekm1.key\"\nclient_ca = \"tls/ca.crt\"\ncrl = \"tls/crl.pem\"\n"
        )?;
        writeln!(
            text,
            "[[tokens]]\nname = \"main\"\nprofile = \"{}\"\nuri = \"pkcs11:token={token}\"\npin = {{ file = \"pin\" }}\ndirectory = \"{directory}\"",
            self.profile
        )?;
        std::fs::write(self.directory.join(file), text)?;
        Ok(())
    }

    /// A random PIN in a file of mode 0600.
    fn pin(&self, file: &str) -> anyhow::Result<()> {
        let mut random = [0_u8; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("no random numbers"))?;
        let pin = format!("{}\n", hex::encode(random));
        crate::files::write_private(&self.directory.join(file), pin.as_bytes())?;
        Ok(())
    }

    fn connect(&self, drive: &str, serial: &str, server: &str) -> anyhow::Result<()> {
        let certificate = format!("tls/issued/drive-{serial}.crt");
        let key = format!("tls/issued/drive-{serial}.key");
        self.ekm(&[
            "softdrive",
            "connect",
            drive,
            "--server",
            server,
            "--ca",
            "tls/ca.crt",
            "--tls-cert",
            &certificate,
            "--tls-key",
            &key,
        ])
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(&self.directory)
            .env_remove("EKM_CONFIG")
            .env_remove("EKM_SOFTDRIVE");
        command
    }

    fn show_line(&self, arguments: &[&str], redirect: Option<&str>) -> anyhow::Result<()> {
        say(&format!(
            "  $ ekm {}{}",
            arguments.join(" "),
            redirect.unwrap_or_default()
        ))
    }

    fn ekm(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.show_line(arguments, None)?;
        let output = self.command(arguments).stdin(Stdio::null()).output()?;
        show_output(&output)?;
        succeeded(&output)
    }

    fn quietly(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.show_line(arguments, None)?;
        let output = self.command(arguments).stdin(Stdio::null()).output()?;
        succeeded(&output)
    }

    fn ekm_from(&self, arguments: &[&str], from: &Path) -> anyhow::Result<()> {
        self.show_line(arguments, Some(&format!(" < {}", self.short(from))))?;
        let input =
            std::fs::File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
        // Standard error is the terminal's, for the progress bar.
        let status = self.command(arguments).stdin(input).status()?;
        ensure!(status.success(), "that step failed ({status})");
        Ok(())
    }

    fn ekm_into(&self, arguments: &[&str], to: &str) -> anyhow::Result<()> {
        self.show_line(arguments, Some(&format!(" > {to}")))?;
        let out = std::fs::File::create(self.directory.join(to))?;
        let status = self
            .command(arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .status()?;
        ensure!(status.success(), "that step failed ({status})");
        Ok(())
    }

    fn refused(&self, arguments: &[&str], code: &str) -> anyhow::Result<()> {
        self.show_line(arguments, None)?;
        let output = self.command(arguments).stdin(Stdio::null()).output()?;
        show_output(&output)?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && text.contains(code),
            "expected a refusal with {code}"
        );
        Ok(())
    }

    fn short(&self, path: &Path) -> String {
        path.strip_prefix(&self.directory)
            .unwrap_or(path)
            .display()
            .to_string()
    }

    fn serve(&self, config: &str) -> anyhow::Result<Server> {
        self.show_line(&["--config", config, "serve"], Some(" &"))?;
        let log = self.directory.join(format!("{config}.log"));
        let mut child = self
            .command(&["--config", config, "serve"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        let Some(out) = child.stdout.take() else {
            bail!("the server's standard output is not there");
        };
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let Some(address) = line.trim().strip_prefix("listening on https://") else {
            let _ = child.kill();
            bail!(
                "the server did not start:\n{}",
                std::fs::read_to_string(&log).unwrap_or_default()
            );
        };
        say(&format!("    {}", line.trim()))?;
        Ok(Server {
            address: address.to_owned(),
            child,
        })
    }
}

/// A running server, stopped also when a step fails.
struct Server {
    address: String,
    child: Child,
}

impl Server {
    /// SIGTERM, as systemd would: requests in flight finish.
    fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = Pid::from_raw(i32::try_from(self.child.id())?) {
            kill_process(pid, Signal::TERM)?;
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Of no use where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free now; the drives that `--keep` leaves point at it. Not one of those that
/// Linux gives by default to whoever asks for any, which may be taken by the time that the server starts.
fn free_port() -> anyhow::Result<u16> {
    for _ in 0..100 {
        let mut random = [0_u8; 2];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("no random numbers"))?;
        let port = 10_000 + u16::from_be_bytes(random) % 20_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port of 127.0.0.1 between 10000 and 30000 could be had")
}

fn step(number: u32, text: &str) -> anyhow::Result<()> {
    say("")?;
    say(&format!("{number}. {text}"))
}

fn show_output(output: &Output) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for stream in [&output.stdout, &output.stderr] {
        for line in String::from_utf8_lossy(stream).lines() {
            writeln!(out, "    {line}")?;
        }
    }
    Ok(())
}

fn succeeded(output: &Output) -> anyhow::Result<()> {
    ensure!(
        output.status.success(),
        "that step failed ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn sample_text() -> String {
    let mut text = String::new();
    for line in 1..=20_000 {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{line:6} Records that must be readable in thirty years, and by nobody else."
        );
    }
    text
}

fn same(one: &Path, other: &Path) -> anyhow::Result<bool> {
    if std::fs::metadata(one)?.len() != std::fs::metadata(other)?.len() {
        return Ok(false);
    }
    let mut one = BufReader::with_capacity(1 << 20, std::fs::File::open(one)?);
    let mut other = BufReader::with_capacity(1 << 20, std::fs::File::open(other)?);
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let length = left.len().min(right.len());
        if length == 0 {
            return Ok(left.is_empty() && right.is_empty());
        }
        if left.get(..length) != right.get(..length) {
            return Ok(false);
        }
        one.consume(length);
        other.consume(length);
    }
}
