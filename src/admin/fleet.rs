//! The servers that share a state.

use super::{Reply, event};
use crate::problem::Problem;
use crate::service::Service;
use crate::store::Difference;

pub(super) async fn status(service: &Service) -> Result<Reply, Problem> {
    let mut status = service.fleet_status().await?;
    // Two servers of one name are one in the table that is compared.
    let own = format!("server {}", status.node);
    let lasting = service.fleet_differences().into_iter();
    let twins = lasting.filter(|(what, _)| *what == own);
    let twins = twins.map(|(what, how)| Difference { what, how });
    status.differences.extend(twins);
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
