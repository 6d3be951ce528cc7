//! `ekm demo --in-band`: a host keys its drives for its jobs.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{DRIVE_A, DRIVE_B, Server, Stage, same, sample_text, show_output, step};
use crate::cli::output::say;

/// How long the proxy may take until it has a drive.
const HELD: Duration = Duration::from_secs(20);

impl Stage {
    pub(super) fn play_in_band(&self, data: Option<&Path>) -> anyhow::Result<()> {
        say(&format!(
            "ekm {}: a host keys its tape drives for its jobs",
            env!("CARGO_PKG_VERSION")
        ))?;

        step(1, "Certificates, a token with a KEK, and the key server")?;
        self.ekm(&["tls", "init"])?;
        self.ekm(&["tls", "issue", "ekm1", "--role", "server"])?;
        self.ekm(&["tls", "issue", "host1", "--role", "proxy"])?;
        self.pin("so-pin")?;
        self.pin("pin")?;
        self.configure("ekm.toml", "ekm1", "token", "state", "audit")?;
        let path = self.directory.join("ekm.toml");
        let mut text = std::fs::read_to_string(&path)?;
        text +=
            "\n[[policy.peers]]\npeer = \"proxy:host1\"\ndrives = [\"*\"]\ncreate_keks = [\"*\"]\n";
        std::fs::write(&path, text)?;
        self.ekm(&[
            "slot",
            "init",
            "--profile",
            "embedded",
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
        self.ekm(&["kek", "default", "--kek1", "TAPE2026A"])?;
        let server = self.serve("ekm.toml")?;

        step(
            2,
            "Two drives in software, enrolled by their public keys, and a tape",
        )?;
        for (name, (serial, wwn)) in [("driveA", DRIVE_A), ("driveB", DRIVE_B)] {
            self.ekm(&[
                "softdrive",
                "init",
                name,
                "--serial",
                serial,
                "--wwn",
                wwn,
                "--kind",
                "lto",
            ])?;
            let key = format!("{name}.pem");
            self.ekm_into(&["softdrive", "key", name], &key)?;
            self.ekm(&["drive", "add", serial, "--wwn", wwn, "--key", &key])?;
        }
        self.ekm(&[
            "softdrive",
            "tape",
            "new",
            "VOL001",
            "--volser",
            "VOL001",
            "--capacity",
            "1024",
        ])?;
        let drive_a = self.drive("driveA", "VOL001")?;

        step(3, "The host's file, and its proxy, which holds the drives")?;
        self.host_file(&server.address)?;
        let proxy = self.listening(&["--config", "host.toml", "proxy", "run"], "proxy.log")?;
        self.held(DRIVE_A.0)?;

        step(4, "A program that writes without a job: the drive refuses")?;
        let sample = self.directory.join("sample.txt");
        let data = match data {
            Some(data) => data.to_owned(),
            None => {
                std::fs::write(&sample, sample_text())?;
                sample
            }
        };
        let put = ["softdrive", "tape", "put", "driveA.sock"];
        self.show_line(&put, Some(&format!(" < {}", self.short(&data))))?;
        let output = self
            .command(&put)
            .stdin(std::fs::File::open(&data)?)
            .output()?;
        show_output(&output)?;
        ensure!(
            !output.status.success(),
            "the drive took a block without a job"
        );

        step(
            5,
            "A job: the drive is keyed, the key confirmed, the tape given to the command",
        )?;
        let mut arguments = vec![
            "tape",
            "run",
            "--drive",
            DRIVE_A.0,
            "--volser",
            "VOL001",
            "--disp",
            "new",
            "--data-class",
            "SECURE",
            "--unload",
        ];
        self.job(&arguments, "put", Some(&data), None)?;

        step(6, "What is on the tape, for whoever finds it")?;
        self.ekm(&["softdrive", "tape", "list", "VOL001"])?;
        drop(drive_a);

        step(7, "The other drive reads it")?;
        let _drive_b = self.drive("driveB", "VOL001")?;
        self.held(DRIVE_B.0)?;
        arguments = vec![
            "tape", "run", "--drive", DRIVE_B.0, "--volser", "VOL001", "--disp", "old",
        ];
        let read_back = self.directory.join("read-back");
        self.job(&arguments, "get", None, Some(&read_back))?;
        ensure!(
            same(&data, &read_back)?,
            "what was read is not what was written"
        );
        say(&format!(
            "    the same {} bytes, compared byte by byte",
            std::fs::metadata(&data)?.len()
        ))?;
        std::fs::remove_file(&read_back)?;

        step(8, "The proxy's view, and the server's")?;
        self.ekm(&["--config", "host.toml", "proxy", "display"])?;
        self.ekm(&["volume", "list"])?;
        proxy.stop()?;
        server.stop()
    }

    fn host_file(&self, server: &str) -> anyhow::Result<()> {
        let mut text = format!(
            "path = \"in-band\"\n\n[tls]\nca = \"tls/ca.crt\"\ncertificate = \"tls/issued/proxy-host1.crt\"\nkey = \"tls/issued/proxy-host1.key\"\n\n[key_servers]\nprimary = \"{server}\"\n\n[in_band]\nhistory = {:?}\n\n[[data_classes]]\nname = \"SECURE\"\nformat = \"EEFMT4\"\n",
            self.directory.join("cartridges.jsonl")
        );
        for (name, (serial, _)) in [("driveA", DRIVE_A), ("driveB", DRIVE_B)] {
            let socket = self.directory.join(format!("{name}.sock"));
            write!(
                text,
                "\n[[drives]]\nserial = \"{serial}\"\ndevice = \"unix:{}\"\n",
                socket.display()
            )?;
        }
        std::fs::write(self.directory.join("host.toml"), &text)?;
        for line in text.lines() {
            say(&format!("    {line}"))?;
        }
        Ok(())
    }

    /// A drive's process, with a tape in it.
    fn drive(&self, name: &str, tape: &str) -> anyhow::Result<Server> {
        let socket = format!("{name}.sock");
        let arguments = [
            "softdrive",
            "tape",
            "serve",
            &socket,
            "--drive",
            name,
            "--tape",
            tape,
        ];
        self.listening(&arguments, &format!("{name}.log"))
    }

    /// A process that says where it listens.
    fn listening(&self, arguments: &[&str], log: &str) -> anyhow::Result<Server> {
        self.show_line(arguments, Some(" &"))?;
        let log = self.directory.join(log);
        let mut child = self
            .command(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        let Some(out) = child.stdout.take() else {
            bail!("its standard output is not there");
        };
        let mut server = Server {
            address: String::new(),
            child,
        };
        BufReader::new(out).read_line(&mut server.address)?;
        ensure!(
            !server.address.trim().is_empty(),
            "it did not start:\n{}",
            std::fs::read_to_string(&log).unwrap_or_default()
        );
        Ok(server)
    }

    /// Waits until the proxy has that drive.
    fn held(&self, serial: &str) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let arguments = ["--config", "host.toml", "--json", "proxy", "display"];
            let output = self.command(&arguments).stdin(Stdio::null()).output()?;
            let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let drives = shown.get("in_band").and_then(Value::as_array);
            let held = drives.into_iter().flatten().any(|drive| {
                drive.get("serial").and_then(Value::as_str) == Some(serial)
                    && drive.get("state").and_then(Value::as_str) == Some("held")
            });
            if held {
                return say(&format!("    drive {serial} is held and write protected"));
            }
            ensure!(
                begin.elapsed() < HELD,
                "the proxy does not get drive {serial}: {shown}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A job whose command is this program.
    fn job(
        &self,
        arguments: &[&str],
        verb: &str,
        from: Option<&Path>,
        to: Option<&Path>,
    ) -> anyhow::Result<()> {
        let mut shown = vec!["--config", "host.toml"];
        shown.extend(arguments);
        shown.extend(["--", "ekm", "softdrive", "tape", verb]);
        let redirect = match (from, to) {
            (Some(from), _) => format!(" < {}", self.short(from)),
            (None, Some(to)) => format!(" > {}", self.short(to)),
            (None, None) => String::new(),
        };
        self.show_line(&shown, Some(&redirect))?;
        let mut command: Command = self.command(&["--config", "host.toml"]);
        command
            .args(arguments)
            .arg("--")
            .arg(&self.program)
            .args(["softdrive", "tape", verb])
            .stderr(Stdio::piped())
            .stdin(match from {
                Some(from) => std::fs::File::open(from)
                    .with_context(|| format!("cannot read {}", from.display()))?
                    .into(),
                None => Stdio::null(),
            })
            .stdout(match to {
                Some(to) => std::fs::File::create(to)?.into(),
                None => Stdio::null(),
            });
        let output = command.output()?;
        show_output(&output)?;
        ensure!(
            output.status.success(),
            "that job failed ({})",
            output.status
        );
        Ok(())
    }
}
