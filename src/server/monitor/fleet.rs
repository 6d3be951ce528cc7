//! What is measured of a state that servers share, and what raises an alarm.

use crate::metrics::{Page, families};
use crate::service::Service;

/// What of the history is on this server's disk only.
pub(super) fn backlog(service: &Service) -> Option<String> {
    let seen = service.fleet_seen()?;
    if seen.queued == 0 && seen.rejected == 0 {
        return None;
    }
    Some(format!(
        "{} creates in {} lines; {} lines do not verify",
        seen.at_risk, seen.queued, seen.rejected
    ))
}

/// Why the database is out of reach.
pub(super) fn outage(service: &Service) -> Option<String> {
    let seen = service.fleet_seen()?;
    let (why, since) = seen.outage?;
    Some(format!(
        "since {since}: {why}; the cached table is {} s old and serves {} s",
        seen.cache_age.unwrap_or_default(),
        seen.cache_seconds
    ))
}

pub(super) fn add(service: &Service, page: &mut Page) {
    let Some(seen) = service.fleet_seen() else {
        return;
    };
    page.add(families::DATABASE_UP, &[], seen.outage.is_none());
    if let Some(age) = seen.cache_age {
        let age = std::time::Duration::from_secs(age);
        page.add(families::CACHE_AGE, &[], age);
    }
    page.add(families::BACKLOG, &[], seen.at_risk);
    page.add(families::BACKLOG_REJECTED, &[], seen.rejected);
    let differences = service.fleet_differences();
    page.add(families::DIFFERENCES, &[], differences.len());
}
