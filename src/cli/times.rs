//! Times as operators give them.

use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime, Time};

/// Reads `2026-11-30`, which is 00:00 UTC, or `2026-11-30T18:00:00+01:00`.
///
/// # Errors
/// It is neither.
pub(super) fn parse(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    let format = time::macros::format_description!("[year]-[month]-[day]");
    Date::parse(text, format)
        .map(|date| date.with_time(Time::MIDNIGHT).assume_utc())
        .map_err(|_| {
            format!("expected a date (2026-11-30) or a time (2026-11-30T18:00:00Z), got {text:?}")
        })
}

/// A time as tables show it, UTC.
pub(super) fn shown(time: OffsetDateTime) -> String {
    let text = time
        .to_offset(time::UtcOffset::UTC)
        .format(&Rfc3339)
        .unwrap_or_default();
    text.chars().take(19).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn dates_and_times_are_read() {
        assert_eq!(parse("2026-11-30"), Ok(datetime!(2026-11-30 0:00 UTC)));
        assert_eq!(
            parse("2026-11-30T18:00:00+01:00"),
            Ok(datetime!(2026-11-30 17:00 UTC))
        );
        assert!(parse("tomorrow").is_err());
        assert_eq!(shown(datetime!(2026-11-30 18:00 +1)), "2026-11-30T17:00:00");
    }
}
