//! Taking another server's tables in.

use super::Reply;
use crate::problem::{EkmCode, Problem};
use crate::service::Service;
use crate::sync::{self, Ask, SyncError};

pub(super) async fn sync(service: &Service, operator: &str, ask: &Ask) -> Result<Reply, Problem> {
    match sync::run(service, operator, ask).await {
        Ok(report) => Ok(Reply::Synced(Box::new(report))),
        Err(SyncError::Here(problem)) => Err(problem),
        Err(error) => Err(Problem::new(code(&error), 502, error.to_string())),
    }
}

fn code(error: &SyncError) -> EkmCode {
    match error {
        SyncError::Unknown { .. }
        | SyncError::Busy
        | SyncError::Clock { .. }
        | SyncError::Emptied { .. } => EkmCode::EE25,
        SyncError::Stranger { .. } | SyncError::Refused { .. } => EkmCode::EE30,
        SyncError::Answer { .. } | SyncError::Version { .. } => EkmCode::EE23,
        SyncError::Partly { cause, .. } => code(cause),
        SyncError::Tls(_) | SyncError::Reach { .. } | SyncError::Store(_) | SyncError::Here(_) => {
            EkmCode::EE0F
        }
    }
}
