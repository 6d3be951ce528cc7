//! A program that prints the PIN: for vaults and password managers of the site.
//!
//! It runs in the bridge, without a shell, with nothing on its standard input,
//! and in the surroundings that the bridge itself has.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::PinError;
use super::source::{first_line, without};

/// Longest time that it may take. The server waits a minute for the whole login.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most bytes that are taken of what it prints, and of what it says on standard error.
const PRINTED: u64 = 300;
const SAID: u64 = 4096;

/// Runs the program and takes the first line that it prints.
pub(super) fn run(words: &[String], token: &str) -> Result<SecretString, PinError> {
    run_within(words, token, PATIENCE)
}

fn run_within(words: &[String], token: &str, patience: Duration) -> Result<SecretString, PinError> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(PinError::Command {
            program: String::new(),
            problem: "is not named".to_owned(),
        });
    };
    let fail = |problem: String| PinError::Command {
        program: program.clone(),
        problem,
    };
    let cannot = |error: io::Error| fail(format!("cannot be run: {error}"));
    let until = Instant::now() + patience;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // So that what it starts ends with it.
        .process_group(0)
        .spawn()
        .map_err(cannot)?;
    let mut group = Group(child);
    let printed = reader(group.0.stdout.take(), PRINTED);
    let said = reader(group.0.stderr.take(), SAID);
    let status = group.ended(until).map_err(cannot)?;
    // One that goes on in the background may keep the pipes open.
    let left = until.saturating_duration_since(Instant::now());
    let text = printed.recv_timeout(left).unwrap_or_default();
    let said = said
        .recv_timeout(Duration::from_millis(100))
        .unwrap_or_default();
    let pin = first_line(&format!("the command {program}"), &text);
    log(token, program, &said, pin.as_ref().ok());
    match status {
        None => Err(fail(format!(
            "was ended: it took longer than {} s",
            patience.as_secs_f32()
        ))),
        Some(status) if !status.success() => Err(fail(format!("failed ({status})"))),
        Some(_) => pin.map_err(|error| match error {
            PinError::Unusable { problem, .. } => fail(format!("printed a PIN that is {problem}")),
            other => other,
        }),
    }
}

/// The program and all that it started; killed when dropped.
struct Group(Child);

impl Group {
    /// How it ended; none where it had to be killed.
    fn ended(&mut self, until: Instant) -> io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let leader = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        if let Some(leader) = leader {
            // There may be nobody left in it.
            let _ = kill_process_group(leader, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// Takes the first bytes, and lets the rest go by, so that the program does not stand still.
fn reader(pipe: Option<impl Read + Send + 'static>, most: u64) -> Receiver<Zeroizing<Vec<u8>>> {
    let (sender, receiver) = channel();
    if let Some(mut pipe) = pipe {
        std::thread::spawn(move || {
            let room = usize::try_from(most).unwrap_or_default();
            let mut text = Zeroizing::new(Vec::with_capacity(room));
            // What was read until then is what there is.
            let _ = (&mut pipe).take(most).read_to_end(&mut text);
            let _ = sender.send(text);
            let _ = io::copy(&mut pipe, &mut io::sink());
        });
    }
    receiver
}

/// What it says on standard error belongs to the operator, but not a PIN in it.
fn log(token: &str, program: &str, said: &[u8], pin: Option<&SecretString>) {
    let said = Zeroizing::new(String::from_utf8_lossy(said).into_owned());
    let said = pin.map_or_else(|| said.to_string(), |pin| without(&said, pin));
    for line in said.lines().take(20) {
        tracing::warn!(
            token,
            program,
            said = line,
            "the PIN command said something"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn sh(script: &str, patience: Duration) -> Result<SecretString, PinError> {
        let words = ["/bin/sh", "-c", script].map(str::to_owned);
        run_within(&words, "t", patience)
    }

    #[test]
    fn the_first_line_that_it_prints_is_the_pin() {
        let words = ["/bin/echo", "$(id) 12;34"].map(str::to_owned);
        let pin = run(&words, "t").unwrap();
        // No shell has looked at it.
        assert_eq!(pin.expose_secret(), "$(id) 12;34");
    }

    #[test]
    fn one_that_fails_gives_no_pin() {
        let error = sh("echo 1234; exit 3", PATIENCE).unwrap_err().to_string();
        assert!(error.contains("/bin/sh") && error.contains('3'), "{error}");
        assert!(!error.contains("1234"), "{error}");
        assert!(
            sh("true", PATIENCE)
                .unwrap_err()
                .to_string()
                .contains("empty")
        );
        assert!(run(&["/none/such".to_owned()], "t").is_err());
    }

    #[test]
    fn one_that_hangs_is_ended_with_all_that_it_started() {
        let begin = Instant::now();
        // Nobody else's, nor what an earlier run that was killed has left.
        let time = 1_000_000 + std::process::id();
        let command = format!("sleep {time} & sleep {time}");
        let error = sh(&command, Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5));
        let left = || {
            let mut processes = std::fs::read_dir("/proc").unwrap().flatten();
            processes.any(|process| {
                std::fs::read_to_string(process.path().join("cmdline"))
                    .is_ok_and(|line| line.starts_with(&format!("sleep\0{time}")))
            })
        };
        // They were killed; when the kernel takes them away is its own affair.
        while left() {
            assert!(
                begin.elapsed() < Duration::from_secs(10),
                "what the command started goes on"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn one_that_prints_without_end_is_cut_off() {
        let error = sh("yes 0123456789 | tr -d '\\n'", Duration::from_millis(500)).unwrap_err();
        assert!(matches!(error, PinError::Command { .. }), "{error}");
    }

    #[test]
    fn a_pin_on_standard_error_is_not_logged() {
        let pin = SecretString::from("1234");
        assert_eq!(without("the PIN is 1234!", &pin), "the PIN is [redacted]!");
    }
}
