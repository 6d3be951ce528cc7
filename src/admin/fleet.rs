//! The servers that share a state.

use super::{Reply, event};
use crate::problem::Problem;
use crate::service::Service;

pub(super) async fn status(service: &Service) -> Result<Reply, Problem> {
    let status = service.fleet_status().await?;
    Ok(Reply::Fleet(Box::new(status)))
}

pub(super) async fn forget(
    service: &Service,
    operator: &str,
    node: &str,
) -> Result<Reply, Problem> {
    let event = event("fleet-forget", operator);
    service.forget_server(node, event).await?;
    Ok(Reply::Done)
}
