//! Times on the command line, and how they are shown.

use chrono::{DateTime, TimeDelta, Utc};

/// Reads a time, for clap: RFC 3339 (`2026-11-22T09:00:00Z`), Unix seconds, or how long ago it was (`2h`, `3days`).
///
/// # Errors
/// It is none of them, and the error says what they look like.
pub(crate) fn parse(text: &str) -> Result<DateTime<Utc>, String> {
    let unix = || text.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let rfc3339 = || DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc());
    unix().or_else(rfc3339).or_else(|| ago(text)).ok_or_else(|| {
        "it is RFC 3339 (2026-11-22T09:00:00Z), Unix seconds, or how long ago (30m, 2h, 3days)".to_owned()
    })
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
        for (text, seconds) in [("90s", 90), ("2h", 7_200), ("3days", 259_200), ("1h 30m", 5_400), ("2h ago", 7_200)] {
            let at = parse(text).unwrap();
            let ago = (Utc::now() - at).num_seconds();
            assert!((seconds..seconds + 10).contains(&ago), "{text}: {ago}");
        }
        for text in ["", "yesterday", "2026-11-22", "2x", "99999999999999y", "ago"] {
            assert!(parse(text).unwrap_err().contains("RFC 3339"), "{text}");
        }
    }

    #[test]
    fn a_span_has_its_two_largest_units() {
        let spans = [(-5, "0s"), (59, "59s"), (60, "1m 0s"), (3_725, "1h 2m"), (90_000, "1d 1h")];
        for (seconds, text) in spans {
            assert_eq!(span(TimeDelta::seconds(seconds)), text);
        }
    }
}
