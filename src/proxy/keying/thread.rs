//! A drive's own thread: whatever its drive does, or does not, it costs nobody else anything.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::error::JobRefused;
use super::report::{Closed, Opened, TakenOver};
use super::seams::{JobClient, Keys};
use super::story::{HeldDrive, JobRequest};
use crate::drive::DriveSerial;
use crate::proxy::HostConfig;
use crate::volser::Volser;

/// Between two glances at the kernel's count of failures, where a drive cannot protect itself.
const GLANCE: Duration = Duration::from_millis(20);

/// Between two attempts to take over a drive that somebody else has.
const AGAIN: Duration = Duration::from_secs(2);

/// How a drive is, for whoever asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum DriveState {
    /// Not yet looked at.
    Starting,
    /// Somebody else has it, or it fails.
    NotHeld {
        /// Why.
        why: String,
    },
    /// Held and protected.
    Held(TakenOver),
    /// A job is on its way in or out.
    Busy {
        /// What is done.
        doing: String,
    },
    /// A job has it.
    Job {
        /// The cartridge.
        volser: Volser,
        /// Whether it may write.
        writes: bool,
    },
}

/// A drive with its thread, which ends with the last clone.
#[derive(Clone, Debug)]
pub struct DriveThread {
    serial: DriveSerial,
    orders: mpsc::Sender<Order>,
    state: Arc<Mutex<DriveState>>,
}

enum Order {
    Open {
        request: Box<JobRequest>,
        client: JobClient,
        reply: oneshot::Sender<Result<Opened, String>>,
    },
    Close {
        /// That job alone; whichever there is, where none is named.
        job: Option<u64>,
        unload: bool,
        reply: oneshot::Sender<Result<Closed, String>>,
    },
}

impl DriveThread {
    /// Starts the thread, which takes the drive over as soon as it can be had.
    ///
    /// # Errors
    /// The operating system has no thread to give.
    pub fn start(
        drive: HeldDrive,
        keys: Box<dyn Keys + Send>,
        host: Arc<HostConfig>,
    ) -> std::io::Result<Self> {
        let (orders, received) = mpsc::channel();
        let serial = drive.serial().clone();
        let state = Arc::new(Mutex::new(DriveState::Starting));
        let worker = Worker {
            drive,
            keys,
            host,
            state: Arc::clone(&state),
            held: false,
        };
        std::thread::Builder::new()
            .name(format!("drive {serial}"))
            .spawn(move || worker.run(&received))?;
        Ok(Self {
            serial,
            orders,
            state,
        })
    }

    /// The drive.
    #[must_use]
    pub const fn serial(&self) -> &DriveSerial {
        &self.serial
    }

    /// How it is.
    #[must_use]
    pub fn state(&self) -> DriveState {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Gives the tape to a job. Where its client goes while it waits, it does not come about; where
    /// whoever asked has gone when it is ready, it is taken back.
    ///
    /// # Errors
    /// Why the job does not get it.
    pub async fn open(&self, request: JobRequest, client: JobClient) -> Result<Opened, String> {
        let (reply, answer) = oneshot::channel();
        let request = Box::new(request);
        let open = Order::Open {
            request,
            client,
            reply,
        };
        self.order(open, answer).await
    }

    /// Takes it back.
    ///
    /// # Errors
    /// There is no job, or the drive's thread has ended.
    pub async fn close(&self, job: Option<u64>, unload: bool) -> Result<Closed, String> {
        let (reply, answer) = oneshot::channel();
        let close = Order::Close { job, unload, reply };
        self.order(close, answer).await
    }

    /// Takes it back from that job, whose client has gone; nobody is told but the log. Nothing is
    /// done where another job has the tape by now.
    pub fn abandon(&self, job: u64) {
        let (reply, _) = oneshot::channel();
        let close = Order::Close {
            job: Some(job),
            unload: false,
            reply,
        };
        if self.orders.send(close).is_err() {
            tracing::error!(drive = %self.serial, "a drive's thread has ended");
        }
    }

    async fn order<T>(
        &self,
        order: Order,
        answer: oneshot::Receiver<Result<T, String>>,
    ) -> Result<T, String> {
        let ended = || {
            format!(
                "the thread of drive {} has ended; the proxy's log says why",
                self.serial
            )
        };
        if let DriveState::Busy { doing } = self.state() {
            return Err(format!(
                "drive {} is busy: {doing}. Where that never ends, the drive hangs: have it looked at",
                self.serial
            ));
        }
        self.orders.send(order).map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

struct Worker {
    drive: HeldDrive,
    keys: Box<dyn Keys + Send>,
    host: Arc<HostConfig>,
    state: Arc<Mutex<DriveState>>,
    held: bool,
}

impl Worker {
    fn run(mut self, orders: &mpsc::Receiver<Order>) {
        self.take_over(false);
        loop {
            let pause = if self.drive.is_watched() {
                GLANCE
            } else {
                AGAIN
            };
            match orders.recv_timeout(pause) {
                Ok(Order::Open {
                    request,
                    client,
                    reply,
                }) => {
                    self.keys.serve(client);
                    self.open(&request, reply);
                }
                Ok(Order::Close {
                    job: Some(job),
                    reply,
                    ..
                }) if job != self.drive.job_number() || self.drive.job().is_none() => {
                    drop(reply.send(Err(format!(
                        "job {job} of drive {} has no tape any more: it was taken back",
                        self.drive.serial()
                    ))));
                }
                Ok(Order::Close { unload, reply, .. }) => {
                    // Nobody waits for the answer where the client has gone.
                    drop(reply.send(self.close(unload)));
                }
                Err(RecvTimeoutError::Timeout) if self.drive.is_watched() => self.drive.glance(),
                // Nothing is sent to a drive that a job has.
                Err(RecvTimeoutError::Timeout) if self.held || self.drive.job().is_some() => {}
                Err(RecvTimeoutError::Timeout) => self.take_over(false),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    fn say(&self, state: DriveState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// `after_job`: of this proxy's own, whose key stays until the cartridge is out.
    fn take_over(&mut self, after_job: bool) {
        let drive = self.drive.serial().clone();
        let before = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.clone()
        };
        let state = match self.drive.take_over() {
            Ok(taken) => {
                self.held = true;
                tracing::info!(%drive, guard = ?taken.guard, "drive held and write protected");
                if let Some(keyed) = taken.keyed.as_ref().filter(|_| !after_job) {
                    tracing::warn!(%drive, dki = keyed, "the drive has a key already, of a job whose end nobody saw; it is kept until the cartridge is out");
                    match self.drive.inspect() {
                        Ok(None) => {
                            tracing::info!(%drive, "its cartridge has no block in clear");
                        }
                        Ok(Some(block)) => {
                            tracing::error!(%drive, block, "its cartridge has a block in clear");
                        }
                        Err(error) => {
                            tracing::error!(%drive, %error, "its cartridge cannot be looked at");
                        }
                    }
                }
                if let Some(unfit) = &taken.unfit {
                    tracing::error!(%drive, unfit, "no job gets this drive");
                }
                DriveState::Held(taken)
            }
            Err(error) => {
                let state = DriveState::NotHeld {
                    why: error.to_string(),
                };
                // Said once, not every two seconds.
                if state != before {
                    tracing::warn!(%drive, %error, "drive not taken over");
                }
                state
            }
        };
        self.say(state);
    }

    fn open(&mut self, request: &JobRequest, reply: oneshot::Sender<Result<Opened, String>>) {
        // It stood in line behind another order.
        if !self.keys.wanted() {
            tracing::warn!(drive = %self.drive.serial(), volser = %request.volser, "whoever wanted the tape has gone: no job");
            return;
        }
        let before = self.state_now();
        self.say(DriveState::Busy {
            doing: format!("a job gets {}", request.volser),
        });
        let opened = self.drive.open(self.keys.as_mut(), &self.host, request);
        let state = match &opened {
            Ok(opened) => {
                let drive = &opened.drive;
                let dki = opened.key.as_ref().map(|key| key.dki.to_string());
                tracing::info!(%drive, volser = %opened.volser, writes = opened.writes, dki, "a job has the tape");
                DriveState::Job {
                    volser: opened.volser.clone(),
                    writes: opened.writes,
                }
            }
            Err(error) => {
                tracing::warn!(drive = %self.drive.serial(), volser = %request.volser, %error, "job refused");
                if error.means_not_held() {
                    // Taken over again as soon as that can be done, and so protected: nothing else in
                    // the loop would protect a drive that was held before.
                    self.held = false;
                    DriveState::NotHeld {
                        why: error.to_string(),
                    }
                } else {
                    before
                }
            }
        };
        self.say(state);
        let answer = opened.map_err(|error: JobRefused| error.to_string());
        let came_about = answer.is_ok();
        if reply.send(answer).is_err() && came_about {
            tracing::warn!(drive = %self.drive.serial(), "whoever wanted the tape has gone meanwhile");
            drop(self.close(false));
        }
    }

    fn close(&mut self, unload: bool) -> Result<Closed, String> {
        self.say(DriveState::Busy {
            doing: "a job's tape is taken back".to_owned(),
        });
        let mut closed = self.drive.close(unload).map_err(|error| error.to_string());
        if let Err(trouble) = self.drive.tell_unused(self.keys.as_mut()) {
            tracing::error!(drive = %self.drive.serial(), trouble, "after a job");
            if let Ok(closed) = &mut closed {
                closed.warnings.push(trouble);
            }
        }
        self.held = false;
        self.take_over(true);
        closed
    }

    fn state_now(&self) -> DriveState {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
