//! A PlugNMeet server: whether it takes our key, and whether its clock is right.

use std::time::Duration;

use chrono::TimeDelta;
use rollcall_shared::config::{self, Settings};
use rollcall_shared::plugnmeet::api::{Client, Clock, Error, GoodSecret};
use rollcall_shared::signature::{CLOCK_LEEWAY, TOKEN_LIFETIME};

use super::finding::Finding;
use crate::causes;

/// How long a server may be silent; shorter than a worker allows it to be, since somebody waits.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// From when on a difference of clocks is worth a word, in seconds.
const WORTH_A_WORD: i64 = 10;

/// What to say where no server is set.
pub(super) fn none() -> Vec<Finding> {
    let todo = "set plugnmeet.<name>.url, .api_key and .api_secret to those of the server";
    vec![
        Finding::warning("plugnmeet", "no server is set: every webhook is refused", todo),
        Finding::not_made("webhook", "there is no server to sign as"),
    ]
}

pub(super) async fn check(settings: &Settings, name: &str, server: &config::PlugNMeet) -> Vec<Finding> {
    let check = format!("plugnmeet {name}");
    let read_timeout = settings.recordings.read_timeout.min(READ_TIMEOUT);
    let greeting = match Client::new(server, read_timeout, &[]) {
        Ok(client) => client.greet().await,
        Err(error) => return vec![Finding::failed(check, causes(error), "install the system's certificates")],
    };
    let mut findings = vec![match greeting.accepted {
        Ok(GoodSecret::Current) => Finding::ok(&check, format!("{} takes our key", shown(server))),
        Ok(GoodSecret::Previous) => Finding::warning(
            &check,
            format!("{} takes previous_secret only", shown(server)),
            format!("set client.secret of its config.yaml to plugnmeet.{name}.api_secret, and start it again"),
        ),
        Err(error) => {
            let todo = todo(name, &error);
            Finding::failed(&check, format!("{}: {}", shown(server), causes(error)), todo)
        }
    }];
    findings.extend(greeting.clock.map(|clock| about_clock(format!("clock of {name}"), clock)));
    findings
}

/// Its address, without a password.
fn shown(server: &config::PlugNMeet) -> String {
    let mut url = server.url.clone();
    // Neither can fail where there is a host, and the settings allow no URL without one.
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.to_string()
}

fn todo(name: &str, error: &Error) -> String {
    let of_config =
        |setting: &str, field: &str| format!("set plugnmeet.{name}.{setting} to {field} of the server's config.yaml");
    match error {
        Error::Status { status, code, .. } => match (status.as_u16(), code.as_str()) {
            (401, "INVALID_API_KEY") => of_config("api_key", "client.api_key"),
            (401, "INVALID_TOKEN_OR_SIGNATURE") => of_config("api_secret", "client.secret"),
            // Older servers say no code.
            (401, _) => of_config("api_key and .api_secret", "client.api_key and client.secret"),
            (301 | 302 | 307 | 308, _) => {
                format!("it redirects: set plugnmeet.{name}.url to where it redirects to, https:// it may be")
            }
            (404, _) => format!(
                "put plugnmeet.{name}.url right: it is the server's own address, and PlugNMeet answers elsewhere"
            ),
            (429, _) => {
                "it has too much to do, or a proxy in front of it lets through only so much: try again later".into()
            }
            (500.., _) => "look into the server's log, and into that of the proxy in front of it".into(),
            _ => "something in front of the server refuses us: let it through what begins with /auth".into(),
        },
        Error::Connection(_) => {
            format!(
                "see that it runs, can be reached from here and has a good certificate, or put plugnmeet.{name}.url right"
            )
        }
        Error::Setup(_) | Error::Redirect(_) | Error::Refused { .. } | Error::Unreadable(_) | Error::Endless => {
            format!("put plugnmeet.{name}.url right: something else answers there")
        }
    }
}

/// A webhook's token is good from a minute before its time to a minute after it has expired.
fn about_clock(check: String, clock: Clock) -> Finding {
    const TODO: &str = "let both machines keep time (NTP)";
    let seconds = TimeDelta::seconds;
    // By no reading of its Date is it nearer.
    let off = clock.at_least.max(-clock.at_most).num_seconds();
    let about = |time: TimeDelta| humantime::format_duration(Duration::from_secs(time.num_seconds().unsigned_abs()));
    let found = if clock.at_least > seconds(0) {
        format!("it is {} ahead of this machine's", about(clock.at_most))
    } else if clock.at_most < seconds(0) {
        format!("it is {} behind this machine's", about(clock.at_least))
    } else {
        return Finding::ok(check, "it shows the time of this machine's");
    };
    if clock.at_least > seconds(CLOCK_LEEWAY) || clock.at_most < seconds(-CLOCK_LEEWAY - TOKEN_LIFETIME) {
        Finding::failed(check, format!("{found}: its webhooks are refused"), TODO)
    } else if off > CLOCK_LEEWAY {
        Finding::failed(check, format!("{found}: its webhooks will be refused if it is off by more"), TODO)
    } else if off > WORTH_A_WORD {
        Finding::warning(check, found, TODO)
    } else {
        Finding::ok(check, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_counts_as_off_only_beyond_what_its_date_leaves_open() {
        let finding = |at_least, at_most| {
            let clock = Clock { at_least: TimeDelta::seconds(at_least), at_most: TimeDelta::seconds(at_most) };
            about_clock("clock".into(), clock).to_string()
        };
        for (at_least, at_most, expected) in [
            (-1, 1, "✓ clock            it shows the time"),
            (2, 4, "✓ clock            it is 4s ahead"),
            (30, 31, "! clock            it is 31s ahead"),
            // A slow answer leaves open whether it is.
            (59, 70, "! clock            it is 1m 10s ahead"),
            (600, 601, "✗ clock            it is 10m 1s ahead of this machine's: its webhooks are refused"),
            (-121, -120, "✗ clock            it is 2m 1s behind this machine's: its webhooks will be refused"),
            (-601, -600, "✗ clock            it is 10m 1s behind this machine's: its webhooks are refused"),
        ] {
            let line = finding(at_least, at_most);
            assert!(line.starts_with(expected), "{line}");
        }
    }
}
