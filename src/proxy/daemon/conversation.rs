//! One conversation on the socket: what it holds lives as long as its connection.

use std::sync::Arc;

use super::Host;
use crate::proxy::KeyPath;
use crate::proxy::control::{Command, Reply, TapeOpen};
use crate::proxy::keying::{DriveThread, JobClient};

/// Who speaks, and what was opened for them. Dropped when the connection ends.
#[derive(Debug)]
pub(super) struct Conversation {
    host: Arc<Host>,
    user: u32,
    /// Drives whose job ends with this conversation.
    jobs: Vec<(DriveThread, u64)>,
}

impl Conversation {
    pub(super) const fn new(host: Arc<Host>, user: u32) -> Self {
        Self {
            host,
            user,
            jobs: Vec::new(),
        }
    }

    /// Whether something is open, so that the connection may be silent for as long as it likes.
    pub(super) const fn holds(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// `client`: whoever waits for the answer.
    pub(super) async fn execute(&mut self, command: Command, client: JobClient) -> Reply {
        let user = self.user;
        match command {
            Command::Display {} => Reply::Display(Box::new(self.host.display())),
            Command::Verify { which } => Reply::Verified {
                servers: self.host.keys().verify(which).await,
            },
            Command::Set(change) => {
                let outcome = self.host.set_servers(change);
                if outcome.is_ok() {
                    let now = self.host.keys().servers();
                    let list: Vec<String> = now.servers.iter().map(ToString::to_string).collect();
                    tracing::info!(
                        user,
                        servers = list.join(","),
                        maxconn = now.maxconn,
                        maxpconn = now.maxpconn,
                        "key servers changed; the host's file stays as it is"
                    );
                }
                self.done(outcome)
            }
            Command::Path { drive, path } => {
                let outcome = self.host.set_path(drive.clone(), path);
                if outcome.is_ok() {
                    let drive = drive.map_or_else(|| "default".to_owned(), |one| one.to_string());
                    let path = path.map_or_else(|| "default".to_owned(), |one| one.to_string());
                    tracing::info!(
                        user,
                        drive,
                        path,
                        "path changed; the host's file stays as it is"
                    );
                }
                self.done(outcome)
            }
            Command::TapeOpen(wanted) => self
                .open(wanted, client)
                .await
                .unwrap_or_else(|reason| Reply::Failed { reason }),
            Command::TapeClose { drive, job, unload } => {
                let closed = match self.host.drives().of(&drive) {
                    Ok(thread) => thread.close(job, unload).await,
                    Err(reason) => Err(reason),
                };
                match closed {
                    Ok(closed) => {
                        self.jobs.retain(|(job, _)| *job.serial() != drive);
                        Reply::TapeClosed(Box::new(closed))
                    }
                    Err(reason) => Reply::Failed { reason },
                }
            }
        }
    }

    async fn open(&mut self, wanted: TapeOpen, client: JobClient) -> Result<Reply, String> {
        let request = wanted.request()?;
        let (path, by) = self.host.path(&wanted.drive);
        if path != KeyPath::InBand {
            return Err(format!(
                "the path of drive {} is {path} ({by}): its control unit asks for keys itself",
                wanted.drive
            ));
        }
        let thread = self.host.drives().of(&wanted.drive)?.clone();
        let opened = thread.open(request, client).await?;
        tracing::info!(user = self.user, drive = %wanted.drive, volser = %wanted.volser, stays = wanted.stays, "a tape was given to a job");
        if !wanted.stays {
            self.jobs.push((thread, opened.job));
        }
        Ok(Reply::TapeOpened(Box::new(opened)))
    }

    fn done(&self, outcome: Result<(), String>) -> Reply {
        match outcome {
            Ok(()) => Reply::Done(Box::new(self.host.display())),
            Err(reason) => Reply::Failed { reason },
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        for (drive, job) in &self.jobs {
            if self.host.is_stopping() {
                // It is encrypted, on a drive that refuses to write after a reset: no reason to end it.
                tracing::warn!(drive = %drive.serial(), job, "a job keeps its tape while the proxy stops; nobody will look at it after the job");
                continue;
            }
            tracing::warn!(user = self.user, drive = %drive.serial(), job, "a job's client has gone: its tape is taken back");
            drive.abandon(*job);
        }
    }
}
