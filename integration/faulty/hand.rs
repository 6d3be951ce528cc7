//! The second PKCS#11 client, one call at a time, on a token behind the faulty module.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::Faulty;
use crate::support::{Hsm, PIN, example};

/// Longest time for one step.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A process that has the faulty module loaded and takes one step after another.
pub(crate) struct Hand {
    pub(super) child: Child,
    steps: ChildStdin,
    pub(super) answers: Receiver<String>,
}

impl Hand {
    /// Starts it; the token is that of the `Hsm`.
    pub(crate) fn of(hsm: &Hsm, faulty: &Faulty) -> Self {
        let mut child = Command::new(example("hand"))
            .arg(Faulty::library())
            .arg(&hsm.label)
            .arg(hsm.directory.path().join("pin"))
            .arg("steps")
            .envs(faulty.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (send, answers) = channel();
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| send.send(line))
        });
        Self {
            steps: child.stdin.take().unwrap(),
            child,
            answers,
        }
    }

    /// Begins a step, whose answer may be long in coming.
    pub(super) fn begin(&mut self, step: &str) {
        writeln!(self.steps, "{step}").unwrap();
    }

    /// Takes a step, and gives its answer.
    pub(super) fn step(&mut self, step: &str) -> String {
        self.begin(step);
        match self.answers.recv_timeout(PATIENCE) {
            Ok(answer) => answer,
            Err(error) => panic!("{step}: {error}"),
        }
    }

    /// Takes steps that must go well.
    pub(super) fn steps<const N: usize>(&mut self, steps: [&str; N]) {
        for step in steps {
            assert_eq!(self.step(step), "ok", "{step}");
        }
    }

    /// Opens a session and logs in.
    pub(super) fn log_in(&mut self) {
        self.steps(["open", &format!("login {PIN}")]);
    }

    /// Numbers and labels of the slots with an initialised token, in the module's order.
    pub(crate) fn slots(&mut self) -> Vec<(u64, String)> {
        let slots = self.step("slots");
        slots
            .split(' ')
            .map(|slot| slot.split_once('=').unwrap())
            .map(|(slot, label)| (slot.parse().unwrap(), label.to_owned()))
            .collect()
    }

    /// The signal that the step ends the process by.
    pub(super) fn dies_of(mut self, step: &str) -> Option<i32> {
        self.begin(step);
        assert!(
            self.answers.recv_timeout(PATIENCE).is_err(),
            "{step} was answered"
        );
        self.child.wait().unwrap().signal()
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
