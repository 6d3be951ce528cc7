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
        // What --force allows is forbidden without it.
        SyncError::Clock { .. }
        | SyncError::Emptied { .. }
        | SyncError::Stranger { .. }
        | SyncError::Refused { .. } => EkmCode::EE30,
        SyncError::Unknown { .. } | SyncError::Answer { .. } | SyncError::Version { .. } => {
            EkmCode::EE23
        }
        SyncError::Partly { cause, .. } => code(cause),
        SyncError::Busy
        | SyncError::Tls(_)
        | SyncError::Reach { .. }
        | SyncError::Store(_)
        | SyncError::Here(_) => EkmCode::EE0F,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_cannot_be_does_not_blame_the_drive_table() {
        let unknown = SyncError::Unknown {
            name: "ekm9".to_owned(),
            known: String::new(),
        };
        assert_eq!(code(&unknown), EkmCode::EE23);
        assert_eq!(code(&SyncError::Busy), EkmCode::EE0F);
    }
}
