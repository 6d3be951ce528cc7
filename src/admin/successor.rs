//! The label of the KEK that follows another one.

use time::OffsetDateTime;

use crate::key::KeyLabel;

/// The label that follows `label` at that time: the month or year in it becomes that of the time, a
/// counter goes up; where there is neither, the month is put behind it. Of what is taken the next
/// counter is tried.
pub(super) fn successor(
    label: &KeyLabel,
    at: OffsetDateTime,
    taken: impl Fn(&KeyLabel) -> bool,
) -> Result<KeyLabel, String> {
    let text = label.as_str().trim_end();
    let year = format!("{:04}", at.year());
    let month = format!("{year}-{:02}", u8::from(at.month()));
    let base = if let Some(base) = ends_in(text, "dddd-dd") {
        format!("{base}{month}")
    } else if let Some(base) = ends_in(text, "dddd") {
        format!("{base}{year}")
    } else if let Some(next) = counted_up(text) {
        next
    } else {
        format!("{text}-{month}")
    };
    let mut next = base.clone();
    for number in 2..1000 {
        let parsed: KeyLabel = next.parse().map_err(|error| {
            format!("no label follows {label} ({error}); say one with --new-label")
        })?;
        if !parsed.same_as(label) && !taken(&parsed) {
            return Ok(parsed);
        }
        next = format!("{base}.{number}");
    }
    Err(format!(
        "all labels that follow {label} are taken; say one with --new-label"
    ))
}

/// What is before digits of that form at the end (`d` is a digit), if it does not end in a digit.
fn ends_in<'a>(text: &'a str, form: &str) -> Option<&'a str> {
    let (base, end) = text.split_at_checked(text.len().checked_sub(form.len())?)?;
    let fits = end.chars().zip(form.chars()).all(|(got, form)| match form {
        'd' => got.is_ascii_digit(),
        other => got == other,
    });
    // A year is one: a serial number is not.
    let year = end.starts_with("19") || end.starts_with("20");
    (fits && year && !base.is_empty() && !base.ends_with(|last: char| last.is_ascii_digit()))
        .then_some(base)
}

fn counted_up(text: &str) -> Option<String> {
    let base = text.trim_end_matches(|last: char| last.is_ascii_digit());
    let digits = text.get(base.len()..)?;
    let number: u64 = digits.parse().ok()?;
    if base.is_empty() {
        return None;
    }
    let next = number.checked_add(1)?;
    Some(format!("{base}{next:0width$}", width = digits.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(label: &str, taken: &[&str]) -> String {
        let at = time::macros::datetime!(2027-03-01 0:00 UTC);
        let taken = |label: &KeyLabel| taken.contains(&label.as_str());
        successor(&label.parse().unwrap(), at, taken)
            .map_or_else(|error| error, |label| label.to_string())
    }

    #[test]
    fn dates_and_counters_go_on() {
        assert_eq!(next("TAPE-2026-11", &[]), "TAPE-2027-03");
        assert_eq!(next("TAPE-2026", &[]), "TAPE-2027");
        assert_eq!(next("BACKUP.2027", &[]), "BACKUP.2027.2");
        assert_eq!(next("TAPE-2026-11", &["TAPE-2027-03"]), "TAPE-2027-03.2");
        assert_eq!(next("KEK1", &[]), "KEK2");
        assert_eq!(next("KEK099", &["KEK100"]), "KEK100.2");
        assert_eq!(next("PAYROLL", &[]), "PAYROLL-2027-03");
    }

    #[test]
    fn a_label_without_room_is_said_to_have_none() {
        let long = "A".repeat(64);
        assert!(next(&long, &[]).contains("--new-label"));
    }
}
