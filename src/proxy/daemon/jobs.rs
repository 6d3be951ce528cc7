//! The in-band drives, each in its own thread, and the jobs that have them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustix::mm::{MlockAllFlags, mlockall};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::DaemonError;
use crate::api::{
    ConfirmAnswer, ConfirmRequest, CreateAnswer, CreateRequest, ResolveAnswer, ResolveRequest,
};
use crate::drive::DriveSerial;
use crate::proxy::HostConfig;
use crate::proxy::control::InBandShown;
use crate::proxy::keying::{
    DriveThread, HeldDrive, History, JobClient, Keys, KeysError, Rules, way,
};
use crate::proxy::service::{Confirmed, Issuer, KeyService, Served, ServiceError};
use crate::store::EedkState;

/// The drives whose keys travel through this host.
#[derive(Debug)]
pub(super) struct Drives(BTreeMap<DriveSerial, DriveThread>);

impl Drives {
    /// Starts a thread for each, which takes its drive over.
    ///
    /// # Errors
    /// The operating system has no thread to give, or does not lock the memory that keys in clear
    /// need.
    pub(super) fn start(config: &HostConfig, keys: &KeyService) -> Result<Self, DaemonError> {
        if config.in_band_drives().any(|drive| drive.plain_key) {
            mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)
                .map_err(|error| DaemonError::Lock(error.into()))?;
        }
        let host = Arc::new(config.clone());
        let history = History::new(&config.in_band().history);
        let mut drives = BTreeMap::new();
        for drive in config.in_band_drives() {
            let (transport, seat) = way(drive);
            let held = HeldDrive::new(
                Box::new(transport),
                Box::new(seat),
                Rules::from(drive),
                history.clone(),
            );
            let keys = ServiceKeys::new(keys.clone(), Handle::current());
            let thread = DriveThread::start(held, Box::new(keys), Arc::clone(&host))
                .map_err(DaemonError::Thread)?;
            drives.insert(thread.serial().clone(), thread);
        }
        Ok(Self(drives))
    }

    /// A drive of this host's.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn of(&self, serial: &DriveSerial) -> Result<&DriveThread, String> {
        self.0.get(serial).ok_or_else(|| {
            let known: Vec<String> = self.0.keys().take(10).map(ToString::to_string).collect();
            format!(
                "{serial} is no in-band drive of this host ([[drives]] with path = \"in-band\" in \
                 its file); it has {}",
                if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                }
            )
        })
    }

    /// All of them.
    pub(super) fn shown(&self) -> Vec<InBandShown> {
        let each = self.0.values().map(|drive| InBandShown {
            serial: drive.serial().clone(),
            state: drive.state(),
        });
        each.collect()
    }
}

/// The key servers, for a drive's thread.
#[derive(Debug)]
pub struct ServiceKeys {
    service: KeyService,
    runtime: Handle,
    /// Which server gave the last EEDKs that are to be confirmed: it alone can be told.
    issuer: Option<(Uuid, Issuer)>,
    /// Whose job it is.
    client: Option<JobClient>,
}

impl ServiceKeys {
    /// Asks by this runtime, from a thread that is none of its own.
    #[must_use]
    pub const fn new(service: KeyService, runtime: Handle) -> Self {
        Self {
            service,
            runtime,
            issuer: None,
            client: None,
        }
    }

    /// The answer of the key servers, waited for as long as the job's client is there.
    fn served<T>(
        &self,
        asked: impl Future<Output = Result<Served<T>, ServiceError>>,
    ) -> Result<Served<T>, KeysError> {
        let Some(client) = self.client.clone() else {
            return self.runtime.block_on(asked).map_err(failed);
        };
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = client.gone() => Err(KeysError::ClientGone),
                served = asked => served.map_err(failed),
            }
        })
    }
}

fn failed(error: ServiceError) -> KeysError {
    match error {
        ServiceError::Refused { problem, .. } => KeysError::Refused(problem),
        other => KeysError::Unreachable(other.to_string()),
    }
}

impl Keys for ServiceKeys {
    fn create(&mut self, request: &CreateRequest) -> Result<CreateAnswer, KeysError> {
        let served = self.served(self.service.create(request, None))?;
        self.issuer = Some((request.request_id, served.by));
        Ok(served.answer)
    }

    fn resolve(&mut self, request: &ResolveRequest) -> Result<ResolveAnswer, KeysError> {
        let served = self.served(self.service.resolve(request, None))?;
        if let Some(newer) = &served.answer.newer {
            self.issuer = Some((newer.request_id, served.by));
        }
        Ok(served.answer)
    }

    fn confirm(&mut self, request: &ConfirmRequest) -> Result<ConfirmAnswer, KeysError> {
        let issuer = match &self.issuer {
            Some((id, issuer)) if *id == request.request_id => issuer.clone(),
            _ => {
                return Err(KeysError::Unreachable(
                    "it is not known which server gave these EEDKs".to_owned(),
                ));
            }
        };
        if request.stored {
            let told = self
                .runtime
                .block_on(self.service.confirm(&issuer, request));
            return told.map_err(failed);
        }
        // What did not come about may be told when the server is back.
        let told = self
            .runtime
            .block_on(self.service.confirm_or_later(&issuer, request));
        Ok(match told.map_err(failed)? {
            Confirmed::Told(answer) => answer,
            Confirmed::Later => ConfirmAnswer {
                request_id: request.request_id,
                state: EedkState::Issued,
            },
        })
    }

    fn serve(&mut self, client: JobClient) {
        self.client = Some(client);
    }

    fn wanted(&self) -> bool {
        !self.client.as_ref().is_some_and(JobClient::has_gone)
    }
}
