//! How long people's data are kept: nothing is wrong with for ever, if somebody has decided so.

use std::time::Duration;

use rollcall_shared::config::Settings;

use super::finding::Finding;

pub(super) fn check(settings: &Settings) -> Finding {
    let word = |setting: &str, keep: Option<Duration>| match keep {
        Some(keep) => format!("for {} ({setting})", humantime::format_duration(keep)),
        None => format!("for ever ({setting} sets an end)"),
    };
    let attendance = word("attendance.keep", settings.attendance.keep);
    let dead_letters = word("dead_letters.keep_dead", settings.dead_letters.keep_dead);
    Finding::ok(
        "keeping",
        format!("who was in a session is kept {attendance}, dead letters that stay dead {dead_letters}"),
    )
}
