//! A command of the site's that is told of alarms: for a pager, a mail, a ticket.
//!
//! No shell reads its arguments: `raised` or `over`, code, subject, detail; the
//! same and more is JSON on its standard input. Of each code one runs at a time,
//! in the order in which things happened; it has its time, and so many wait. No
//! look at the server, and no request, waits for it.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::{Alarm, Entry, Severity};

/// Events of one code that wait at most.
const WAITING: usize = 16;

/// Longest argument, characters.
const ARGUMENT: usize = 4096;

/// `[alarms]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlarmsConfig {
    /// The command's path and its first arguments; none is run where it is empty.
    #[serde(default)]
    pub command: Vec<String>,
    /// Seconds after which it is killed.
    #[serde(default = "default_seconds")]
    pub seconds: u64,
}

const fn default_seconds() -> u64 {
    30
}

impl Default for AlarmsConfig {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            seconds: default_seconds(),
        }
    }
}

impl AlarmsConfig {
    /// Whether no command is to be run.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.command.is_empty()
    }

    /// What is wrong with it, one sentence each.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(program) = self.command.first()
            && !Path::new(program).is_absolute()
        {
            faults.push(format!(
                "alarms.command: {program:?} is no absolute path; no shell looks for it"
            ));
        }
        if !(1..=600).contains(&self.seconds) {
            faults.push(format!("alarms.seconds: {} is not 1 to 600", self.seconds));
        }
        faults
    }
}

/// An alarm was raised, or is over.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Happened {
    event: &'static str,
    code: &'static str,
    severity: Severity,
    title: &'static str,
    action: &'static str,
    subject: String,
    detail: String,
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
}

impl Happened {
    pub(super) fn new(
        raised: bool,
        alarm: Alarm,
        subject: &str,
        detail: &str,
        since: OffsetDateTime,
    ) -> Self {
        let Entry {
            alarm: _,
            code,
            severity,
            title,
            action,
        } = alarm.entry();
        Self {
            event: if raised { "raised" } else { "over" },
            code,
            severity: *severity,
            title,
            action,
            subject: subject.to_owned(),
            detail: detail.to_owned(),
            since,
        }
    }
}

/// Runs the command.
#[derive(Debug)]
pub(super) struct Runner {
    command: Vec<String>,
    patience: Duration,
    node: String,
    // By code, each with a task of its own.
    queues: Mutex<HashMap<&'static str, Queue>>,
}

#[derive(Debug)]
struct Queue {
    to: mpsc::Sender<Happened>,
    // Whether it was said that some were left out.
    full: bool,
}

impl Runner {
    pub(super) fn new(config: &AlarmsConfig, node: &str) -> Option<Self> {
        (!config.is_none()).then(|| Self {
            command: config.command.clone(),
            patience: Duration::from_secs(config.seconds),
            node: node.to_owned(),
            queues: Mutex::default(),
        })
    }

    /// Has the command run when its turn comes; never waits.
    pub(super) fn tell(&self, happened: Happened) {
        let code = happened.code;
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(code).or_insert_with(|| {
            let (to, from) = mpsc::channel(WAITING);
            tokio::spawn(work(
                from,
                self.command.clone(),
                self.patience,
                self.node.clone(),
            ));
            Queue { to, full: false }
        });
        let full = queue.to.try_send(happened).is_err();
        if full && !queue.full {
            tracing::warn!(
                alarm = code,
                "the alarms' command is too slow: it is not told of some that happened since"
            );
        }
        queue.full = full;
    }
}

async fn work(
    mut from: mpsc::Receiver<Happened>,
    command: Vec<String>,
    patience: Duration,
    node: String,
) {
    let mut failed = false;
    while let Some(happened) = from.recv().await {
        let outcome = run(&command, &happened, patience, &node).await;
        if let (Err(why), false) = (&outcome, failed) {
            tracing::error!(
                alarm = happened.code,
                command = command.first(),
                "the alarms' command failed: {why}; this is said once until it succeeds"
            );
        }
        failed = outcome.is_err();
    }
}

/// Runs it once, with all that it starts in a process group of its own.
async fn run(
    command: &[String],
    happened: &Happened,
    patience: Duration,
    node: &str,
) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(());
    };
    let argument =
        |text: &str| -> String { text.chars().filter(|c| *c != '\0').take(ARGUMENT).collect() };
    let mut input = serde_json::to_value(happened).unwrap_or_default();
    if let Some(object) = input.as_object_mut() {
        object.insert("node".to_owned(), node.into());
    }
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .args([happened.event, happened.code])
        .args([argument(&happened.subject), argument(&happened.detail)])
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    let group = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(rustix::process::Pid::from_raw);
    let stdin = child.stdin.take();
    let ended = tokio::time::timeout(patience, async {
        if let Some(mut stdin) = stdin {
            // It need not read it.
            drop(stdin.write_all(input.to_string().as_bytes()).await);
        }
        child.wait().await
    })
    .await;
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(status.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => {
            if let Some(group) = group {
                // It may have ended by itself just now.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            drop(child.wait().await);
            Err(format!(
                "it did not end within {} s and was killed",
                patience.as_secs()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Alarms, Found};
    use super::*;

    /// The shell is named: a file that was written just now cannot be executed while another
    /// test's new process has it open for writing.
    fn script(directory: &Path, text: &str, seconds: u64) -> AlarmsConfig {
        let path = directory.join("alarm");
        std::fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        AlarmsConfig {
            command: vec!["/bin/sh".to_owned(), path, "first".to_owned()],
            seconds,
        }
    }

    fn down(subject: &str, detail: &str) -> Vec<Found> {
        vec![Found {
            alarm: Alarm::TokenDown,
            subject: subject.to_owned(),
            detail: detail.to_owned(),
        }]
    }

    async fn until(what: impl Fn() -> bool) {
        for _ in 0..600 {
            if what() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it did not happen within 30 s");
    }

    #[tokio::test]
    async fn the_command_is_told_of_raise_and_clear_without_a_shell() {
        let directory = tempfile::tempdir().unwrap();
        let (told, input) = (
            directory.path().join("told"),
            directory.path().join("input"),
        );
        let config = script(
            directory.path(),
            &format!(
                "printf '%s|' \"$@\" >> {0}; echo >> {0}; cat >> {1}; echo >> {1}",
                told.display(),
                input.display()
            ),
            30,
        );
        let alarms = Alarms::telling(&config, "ekm1");
        let detail = "$(touch /tmp/never) ; `id` \"x\"";
        alarms.settle(down("main", detail));
        alarms.settle(down("main", "still"));
        alarms.settle(Vec::new());
        let lines = || std::fs::read_to_string(&input).unwrap_or_default();
        until(|| lines().lines().count() == 2).await;
        assert_eq!(
            std::fs::read_to_string(&told).unwrap(),
            format!("first|raised|EKM-A01|main|{detail}|\nfirst|over|EKM-A01|main|still|\n")
        );
        let first: serde_json::Value =
            serde_json::from_str(lines().lines().next().unwrap()).unwrap();
        assert_eq!(first["event"], "raised");
        assert_eq!(first["detail"], detail);
        assert_eq!(first["node"], "ekm1");
        assert!(
            first["action"]
                .as_str()
                .unwrap()
                .contains("ekm token status")
        );
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed_with_its_children_and_keeps_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let pids = directory.path().join("pids");
        let config = script(
            directory.path(),
            &format!("sleep 60 & echo $! >> {}; wait", pids.display()),
            1,
        );
        let alarms = Alarms::telling(&config, "ekm1");
        let began = std::time::Instant::now();
        for n in 0..100 {
            alarms.settle(down(&format!("token{n}"), "x"));
        }
        // To wait for them would take more than a minute.
        assert!(began.elapsed() < Duration::from_secs(20));
        // The first is killed after a second, and the second has its turn.
        let seen = || std::fs::read_to_string(&pids).unwrap_or_default();
        until(|| seen().lines().count() >= 2).await;
        let first = seen().lines().next().unwrap().to_owned();
        until(|| {
            let stat = std::fs::read_to_string(format!("/proc/{first}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        })
        .await;
    }

    #[test]
    fn a_command_that_a_shell_would_look_for_is_refused() {
        let bad = AlarmsConfig {
            command: vec!["mail root".to_owned()],
            seconds: 0,
        };
        assert_eq!(bad.faults().len(), 2);
        assert!(AlarmsConfig::default().faults().is_empty());
    }
}
