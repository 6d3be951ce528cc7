//! The time by which a request is to be answered.
//!
//! It begins where the door takes the request, and all that the request waits for ends with it: its
//! turn, its token, another of its id. Whoever waits asks here; a program that embeds the service
//! may set none.

use std::time::Duration;

use tokio::time::Instant;

tokio::task_local! {
    /// When the request is to be answered that this task works on.
    static UNTIL: Instant;
}

/// Works on a request that is to be answered by then.
pub(crate) fn within<F: Future>(until: Instant, work: F) -> impl Future<Output = F::Output> {
    UNTIL.scope(until, work)
}

/// When the request is to be answered that this task works on; none where no time is set.
pub(crate) fn until() -> Option<Instant> {
    UNTIL.try_with(|until| *until).ok()
}

/// The same; that long from now where no time is set.
pub(crate) fn until_or(own: Duration) -> Instant {
    until().unwrap_or_else(|| Instant::now() + own)
}

/// So long, or for what is left of the request's time where that is less.
pub(crate) fn left(most: Duration) -> Duration {
    until().map_or(most, |until| {
        most.min(until.saturating_duration_since(Instant::now()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_waited_for_beyond_the_time_of_the_request() {
        let [second, hour] = [1, 3600].map(Duration::from_secs);
        assert_eq!(until(), None);
        assert_eq!(left(hour), hour);
        let end = Instant::now() + hour;
        within(end, async {
            assert_eq!((until(), until_or(second)), (Some(end), end));
            assert_eq!(left(second), second);
            assert!(left(hour * 2) <= hour);
        })
        .await;
        within(Instant::now(), async {
            assert_eq!(left(second), Duration::ZERO);
        })
        .await;
        assert_eq!(until(), None);
    }
}
