//! What keying needs of the world: the drive, the key servers, and the tape device's only seat.

use tokio::sync::watch;

use crate::api::{
    ConfirmAnswer, ConfirmRequest, CreateAnswer, CreateRequest, ResolveAnswer, ResolveRequest,
};
use crate::problem::Problem;
use crate::scsi::{Drive, DriveError, Transport};
use crate::t10::SenseKey;

/// A drive, by whatever way it is reached.
pub(super) type Unit = Drive<Box<dyn Transport>>;

/// Whether a drive does not have what it was asked for, or cannot read it. A unit attention, a
/// cartridge that is gone and a drive that fails are something else.
pub(super) fn means_absent(error: &DriveError) -> bool {
    match error {
        DriveError::Page { .. } | DriveError::TooLong { .. } => true,
        DriveError::Refused {
            sense,
            deferred: false,
            ..
        } => match sense.key {
            SenseKey::IllegalRequest | SenseKey::MediumError => true,
            // Auxiliary memory not accessible.
            SenseKey::NotReady => (sense.asc, sense.ascq) == (0x04, 0x10),
            _ => false,
        },
        _ => false,
    }
}

/// The key servers. Each call tries all of them, and ends within the time that the host allows.
pub trait Keys {
    /// A new data key.
    ///
    /// # Errors
    /// See [`KeysError`].
    fn create(&mut self, request: &CreateRequest) -> Result<CreateAnswer, KeysError>;

    /// The data key of a cartridge.
    ///
    /// # Errors
    /// See [`KeysError`].
    fn resolve(&mut self, request: &ResolveRequest) -> Result<ResolveAnswer, KeysError>;

    /// Whether a new one is in use.
    ///
    /// # Errors
    /// See [`KeysError`].
    fn confirm(&mut self, request: &ConfirmRequest) -> Result<ConfirmAnswer, KeysError>;

    /// Whose job the keys are for from now on. A create or resolve ends when that one goes.
    fn serve(&mut self, _client: JobClient) {}

    /// Whether the job's client is still there.
    #[must_use]
    fn wanted(&self) -> bool {
        true
    }
}

/// Before anything is changed for a job: its client is still there.
pub(super) fn still_wanted(keys: &dyn Keys) -> Result<(), KeysError> {
    if keys.wanted() {
        Ok(())
    } else {
        Err(KeysError::ClientGone)
    }
}

/// Whoever wants a tape; gone as soon as the sender is dropped.
#[derive(Clone, Debug)]
pub struct JobClient(watch::Receiver<()>);

impl JobClient {
    /// One that is there until the sender is dropped.
    #[must_use]
    pub fn new() -> (watch::Sender<()>, Self) {
        let (here, client) = watch::channel(());
        (here, Self(client))
    }

    /// Whether it has gone.
    #[must_use]
    pub fn has_gone(&self) -> bool {
        self.0.has_changed().is_err()
    }

    /// Until it has gone.
    pub async fn gone(mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A server said no, and the others would too.
    #[error("the key server refuses: {0}")]
    Refused(Box<Problem>),
    /// None answered.
    #[error("no key server answers: {0}")]
    Unreachable(String),
    /// Nobody waits for the job any more.
    #[error("the job's client has gone, so it gets no key; start the job again where it is wanted")]
    ClientGone,
}

/// The tape device's only seat: while it is taken, nobody else can open the drive.
pub trait Hold: Send {
    /// Takes it anew: it is let go and taken at once, so that `st` looks at the drive and sees what
    /// has happened to it.
    ///
    /// # Errors
    /// Somebody else has it, or it cannot be opened.
    fn take(&mut self) -> Result<(), HoldError>;

    /// Lets go, for a job.
    fn release(&mut self);

    /// What a job opens: `/dev/nst0`.
    fn tape(&self) -> &str;

    /// How many commands to the drive have failed, by whoever sent them, as the kernel counts; none
    /// where nobody counts. Asking sends nothing to the drive.
    fn failures(&self) -> Option<u64>;
}

/// Why the tape device is not held.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Another process has it open.
    #[error("{tape} is in use by another program")]
    Busy {
        /// The tape device.
        tape: String,
    },
    /// It cannot be opened.
    #[error("cannot open {tape}: {source}")]
    Open {
        /// The tape device.
        tape: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// No seat: nobody but this process has a way to the drive.
#[derive(Clone, Debug)]
pub struct NoHold {
    /// What a job is told to open.
    pub tape: String,
}

impl Hold for NoHold {
    fn take(&mut self) -> Result<(), HoldError> {
        Ok(())
    }

    fn release(&mut self) {}

    fn tape(&self) -> &str {
        &self.tape
    }

    fn failures(&self) -> Option<u64> {
        None
    }
}
