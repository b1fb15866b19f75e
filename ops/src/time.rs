//! Times on the command line, and how they are shown.

use std::ops::Range;

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};

/// Which numbers are taken for Unix seconds: from 2001 to 5138. A smaller one is a `2h` without its h, a larger one of
/// milliseconds.
const UNIX_SECONDS: Range<i64> = 1_000_000_000..100_000_000_000;

/// Reads a time, for clap: RFC 3339 (`2026-11-22T09:00:00Z`), a day's beginning in UTC (`2026-11-22`), Unix seconds, or how long
/// ago it was (`2h`, `3days`).
///
/// # Errors
/// It is none of them, and the error says what they look like.
pub(crate) fn parse(text: &str) -> Result<DateTime<Utc>, String> {
    let rfc3339 = || DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc());
    let day = || Some(text.parse::<NaiveDate>().ok()?.and_time(NaiveTime::MIN).and_utc());
    unix(text).or_else(rfc3339).or_else(day).or_else(|| ago(text)).ok_or_else(|| {
        "it is RFC 3339 (2026-11-22T09:00:00Z), a day (2026-11-22, UTC), Unix seconds, or how long ago (30m, 2h, 3days)"
            .to_owned()
    })
}

/// Reads a time that has been, as [`parse`] does.
///
/// # Errors
/// As [`parse`]; or it is to come.
pub(crate) fn past(text: &str) -> Result<DateTime<Utc>, String> {
    let at = parse(text)?;
    if at > Utc::now() { Err(format!("{} is to come", at.format("%Y-%m-%d %H:%M:%S UTC"))) } else { Ok(at) }
}

fn unix(text: &str) -> Option<DateTime<Utc>> {
    let seconds = text.parse().ok().filter(|seconds| UNIX_SECONDS.contains(seconds))?;
    DateTime::from_timestamp(seconds, 0)
}

fn ago(text: &str) -> Option<DateTime<Utc>> {
    let how_long = text.strip_suffix("ago").unwrap_or(text).trim_end();
    let how_long = TimeDelta::from_std(humantime::parse_duration(how_long).ok()?).ok()?;
    Utc::now().checked_sub_signed(how_long)
}

/// How long, in its largest unit and the next: `3m 20s`.
pub(crate) fn span(time: TimeDelta) -> String {
    let seconds = time.num_seconds().max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_absolute_or_so_long_ago() {
        assert_eq!(parse("1700000000").unwrap().timestamp(), 1_700_000_000);
        assert_eq!(parse("2023-11-14T23:13:20+01:00").unwrap().timestamp(), 1_700_000_000);
        assert_eq!(parse("2023-11-14").unwrap().to_rfc3339(), "2023-11-14T00:00:00+00:00");
        for (text, seconds) in [("90s", 90), ("2h", 7_200), ("3days", 259_200), ("1h 30m", 5_400), ("2h ago", 7_200)] {
            let at = parse(text).unwrap();
            let ago = (Utc::now() - at).num_seconds();
            assert!((seconds..seconds + 10).contains(&ago), "{text}: {ago}");
        }
        for text in ["", "yesterday", "2026-13-01", "2x", "2", "-5", "1700000000000", "99999999999999y", "ago"] {
            assert!(parse(text).unwrap_err().contains("RFC 3339"), "{text}");
        }
    }

    #[test]
    fn what_is_to_come_has_not_been() {
        assert!(past("2h").is_ok() && parse("99999999999").is_ok());
        assert!(past("99999999999").unwrap_err().ends_with("UTC is to come"));
        assert!(past("2").unwrap_err().contains("RFC 3339"));
    }

    #[test]
    fn a_span_has_its_two_largest_units() {
        let spans = [(-5, "0s"), (59, "59s"), (60, "1m 0s"), (3_725, "1h 2m"), (90_000, "1d 1h")];
        for (seconds, text) in spans {
            assert_eq!(span(TimeDelta::seconds(seconds)), text);
        }
    }
}
