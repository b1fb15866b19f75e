//! `rollcall send`: signs one webhook and posts it, as a PlugNMeet server would.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use clap::ValueEnum;
use rollcall_ops::standin::webhook::{Connection, Happening, Room};
use rollcall_shared::config::{Ingress, Settings};
use rollcall_shared::signature;
use secrecy::SecretString;
use serde::Deserialize;
use url::Url;

use crate::address::reachable;
use crate::{output, time};

/// Sign one webhook and post it, as a PlugNMeet server would.
///
/// WHAT is the name of a usual event, whose body is then made from the options below; or a file with a body in it; or
/// "-" for a body on standard input. A capture file, a JSON object with the fields "headers" and "body", gives its
/// body as it stands; it is signed afresh.
///
/// Exits with 1 unless the answer is 2xx.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall send room_started --room algebra
  rollcall send participant_joined --room algebra --user 42 --name 'Sara Ahmadi'
  rollcall send participant_left --room algebra --user 42
  ROLLCALL_API_SECRET=… rollcall send body.json --url https://rollcall.example.org/webhooks/plugnmeet --api-key main")]
pub(crate) struct Args {
    /// A usual event's name, a file, or - for standard input.
    ///
    /// The usual events: room_created, room_started, room_finished, session_ended, participant_joined,
    /// participant_left, track_published, start_recording, end_recording, recording_proceeded, artifact_created.
    #[arg(value_name = "WHAT")]
    what: String,
    /// Post the very same request this many times, as servers with two webhook URLs do.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    /// Change the body after it was signed, to see it refused.
    #[arg(long)]
    corrupt: bool,
    #[command(flatten)]
    to: To,
    #[command(flatten)]
    fields: Fields,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Where to, and signed how")]
struct To {
    /// Where to post; without it, this machine's ingress by the settings.
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
    /// Sign as this server of the settings; needed where they name more than one.
    // A secret in the environment is no reason to refuse: it may be there for other runs.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["api_key", "secret_file"])]
    server: Option<String>,
    /// Sign with this API key, and a secret from one of the next two.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// The API secret. Other users of the machine can see it on the command line: better in the environment.
    #[arg(long, value_name = "SECRET", env = "ROLLCALL_API_SECRET", hide_env_values = true)]
    secret: Option<SecretString>,
    /// The file with the API secret in it.
    #[arg(long, value_name = "FILE", conflicts_with = "secret")]
    secret_file: Option<PathBuf>,
    /// What the signature is: what real servers send, or what integrations like the old Django one do.
    #[arg(long, value_enum, default_value_t = Scheme::Token)]
    scheme: Scheme,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scheme {
    /// A JWT in Hash-Token and Authorization, good for five minutes.
    Token,
    /// The hex HMAC-SHA256 of the body in Hash-Token.
    Hmac,
}

/// What a usual event tells.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What a usual event tells")]
struct Fields {
    /// The room.
    #[arg(long, value_name = "ID", default_value = "algebra")]
    room: String,
    /// The room's session; a new one is a new class. [default: the room, and -session]
    #[arg(long, value_name = "SID")]
    sid: Option<String>,
    /// The room's title. [default: not told, so that a title that is known stays]
    #[arg(long)]
    title: Option<String>,
    /// The class that this is a breakout room of.
    #[arg(long, value_name = "ROOM")]
    parent: Option<String>,
    /// The person. RECORDER_BOT is the bot that records.
    #[arg(long, value_name = "ID", default_value = "42")]
    user: String,
    /// The person's name. [default: not told, so that a name that is known stays]
    #[arg(long)]
    name: Option<String>,
    /// The person's connection; one who comes in again has a new one. [default: PA_ and the person's id]
    #[arg(long, value_name = "SID")]
    connection: Option<String>,
    /// When the connection began. [default: now for a join; not told for a leave]
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    joined_at: Option<DateTime<Utc>>,
    /// Why a connection ended.
    #[arg(long, default_value = "CLIENT_INITIATED")]
    reason: String,
    /// The recording, or the artifact. [default: the session, and -1]
    #[arg(long, value_name = "ID")]
    record: Option<String>,
    /// When it happened: RFC 3339 (2026-11-22T09:00:00Z), Unix seconds, or how long ago (2h). [default: now]
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    at: Option<DateTime<Utc>>,
}

pub(crate) async fn run(args: Args, config: Option<&Path>) -> Result<ExitCode> {
    let body = body(&args.what, &args.fields)?;
    let key = args.to.key(config)?;
    let url = args.to.url(config)?;
    let signature = match args.to.scheme {
        Scheme::Token => signature::sign_token(&key.api_key, &key.secret, &body, Utc::now().timestamp()),
        Scheme::Hmac => signature::sign_hmac(&key.secret, &body),
    };
    let body = if args.corrupt { corrupted(&body) } else { body };
    let client = reqwest::Client::builder().build().context("cannot set up the HTTP client")?;
    let mut all_accepted = true;
    for _ in 0..args.times {
        let mut request = client
            .post(url.clone())
            .header("Content-Type", "application/json")
            .header("Hash-Token", &signature)
            .body(body.clone());
        if args.to.scheme == Scheme::Token {
            request = request.header("Authorization", &signature);
        }
        all_accepted &= post(request).await?;
    }
    Ok(if all_accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Posts a request and prints the answer; whether it was 2xx.
async fn post(request: reqwest::RequestBuilder) -> Result<bool> {
    let begun = Instant::now();
    let response = request.send().await.context("nobody answered")?;
    let status = response.status();
    let answer = response.text().await.context("the answer broke off")?;
    let took = begun.elapsed().as_millis();
    output::print(format_args!("{status} after {took} ms: {}", answer.trim_end()))?;
    Ok(status.is_success())
}

struct Key {
    api_key: String,
    secret: SecretString,
}

impl To {
    /// The key of the command line, or that of a server of the settings.
    fn key(&self, config: Option<&Path>) -> Result<Key> {
        let secret = match &self.secret_file {
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
                Some(SecretString::from(text.trim_end_matches(['\r', '\n'])))
            }
            None => self.secret.clone(),
        };
        match (&self.server, &self.api_key, secret) {
            (None, Some(api_key), Some(secret)) => Ok(Key { api_key: api_key.clone(), secret }),
            // Nothing in this scheme names the key.
            (None, None, Some(secret)) if self.scheme == Scheme::Hmac => Ok(Key { api_key: String::new(), secret }),
            (None, Some(_), None) => {
                bail!("--api-key needs a secret: ROLLCALL_API_SECRET in the environment, or --secret-file")
            }
            (None, None, Some(_)) => bail!("a secret needs an --api-key, which a token names"),
            (Some(_), _, _) | (None, None, None) => self.key_of_server(&Settings::load(config)?),
        }
    }

    fn key_of_server(&self, settings: &Settings) -> Result<Key> {
        let names = settings.plugnmeet.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let server = match &self.server {
            Some(name) => {
                settings.plugnmeet.get(name).ok_or_else(|| anyhow!("the settings have no server {name}: {names}"))?
            }
            None => match settings.plugnmeet.len() {
                1 => settings.plugnmeet.values().next().context("there is one")?,
                0 => bail!("the settings name no server: give --api-key and a secret"),
                _ => bail!("which server? --server with one of {names}"),
            },
        };
        Ok(Key { api_key: server.api_key.clone(), secret: server.api_secret.clone() })
    }

    /// The URL of the command line, or the ingress that the settings describe.
    fn url(&self, config: Option<&Path>) -> Result<Url> {
        match &self.url {
            Some(url) => Ok(url.clone()),
            None => ingress_url(&Settings::load(config)?.ingress),
        }
    }
}

/// Where the ingress of these settings can be reached from this machine.
pub(crate) fn ingress_url(ingress: &Ingress) -> Result<Url> {
    let path = ingress.paths.first().context("setting ingress.paths is empty")?;
    Ok(Url::parse(&format!("{}://{}{path}", ingress.scheme(), reachable(ingress.address)))?)
}

fn body(what: &str, fields: &Fields) -> Result<Bytes> {
    if let Some(body) = fields.body(what) {
        return Ok(body);
    }
    let mut text = Vec::new();
    if what == "-" {
        std::io::stdin().read_to_end(&mut text).context("cannot read standard input")?;
    } else {
        text = std::fs::read(what).with_context(|| {
            format!("{what} is neither a usual event (rollcall send --help lists them) nor a file that can be read")
        })?;
    }
    Ok(body_of_capture(&text).unwrap_or_else(|| text.into()))
}

/// The body in a capture file; `None` where the text is a body itself.
fn body_of_capture(text: &[u8]) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Capture {
        #[serde(rename = "headers")]
        _headers: serde_json::Map<String, serde_json::Value>,
        body: String,
    }
    let capture: Capture = serde_json::from_slice(text).ok()?;
    Some(capture.body.into())
}

/// A body that differs in one bit of its middle byte, and is still of the same length.
fn corrupted(body: &Bytes) -> Bytes {
    let mut bytes = body.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes.into()
}

impl Fields {
    /// The body of the usual event of this name; `None` where there is none.
    fn body(&self, event: &str) -> Option<Bytes> {
        let at = self.at.unwrap_or_else(Utc::now);
        let sid = self.sid.clone().unwrap_or_else(|| format!("{}-session", self.room));
        let record = self.record.clone().unwrap_or_else(|| format!("{sid}-1"));
        let mut connection = Connection {
            sid: self.connection.clone().unwrap_or_else(|| format!("PA_{}", self.user)),
            identity: self.user.clone(),
            name: self.name.clone().unwrap_or_default(),
            joined_at: self.joined_at,
        };
        let happening = match event {
            "room_created" => Happening::RoomCreated,
            "room_started" => Happening::RoomStarted,
            "room_finished" => Happening::RoomFinished,
            "session_ended" => Happening::SessionEnded,
            "participant_joined" => {
                connection.joined_at = self.joined_at.or(Some(at));
                Happening::Joined(&connection)
            }
            "participant_left" => Happening::Left(&connection, &self.reason),
            "track_published" => Happening::TrackPublished(&connection),
            "start_recording" => Happening::StartRecording(&record),
            "end_recording" => Happening::EndRecording(&record),
            "recording_proceeded" => Happening::RecordingProceeded(&record, 0),
            "artifact_created" => Happening::ArtifactCreated(&record),
            _ => return None,
        };
        let room = Room {
            room_id: self.room.clone(),
            sid,
            title: self.title.clone().unwrap_or_default(),
            parent_room_id: self.parent.clone(),
            created_at: at,
        };
        Some(room.webhook(happening, at).body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use rollcall_shared::event::{Change, Event};
    use rollcall_shared::plugnmeet::webhook::{Parsed, parse};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Args {
        Cli::try_parse_from(std::iter::once("send").chain(line.split_whitespace())).unwrap().args
    }

    fn event(line: &str) -> Event {
        let args = args(line);
        let body = body(&args.what, &args.fields).unwrap();
        match parse("main", &body, Utc::now()).unwrap() {
            Parsed::Event(event) => event,
            Parsed::Ignored(reason) => panic!("ignored: {reason}"),
        }
    }

    #[test]
    fn a_join_and_a_leave_of_the_same_person_are_of_one_connection() {
        let Change::Joined(join) = event("participant_joined --user 7 --at 1700000000").change else { panic!() };
        let left = event("participant_left --user 7 --at 2023-11-14T22:14:20Z");
        let Change::Left(leave, departure) = left.change else { panic!() };
        assert_eq!((&join.user_id, &join.participant_sid), (&leave.user_id, &leave.participant_sid));
        assert_eq!(join.joined_at.unwrap().timestamp(), 1_700_000_000);
        assert_eq!(departure.at.timestamp(), 1_700_000_060);
    }

    #[test]
    fn a_name_and_a_title_are_told_only_where_they_are_given() {
        for what in ["participant_joined", "participant_left"] {
            for (options, name, title) in
                [("", None, None), (" --name Sara --title Physics", Some("Sara"), Some("Physics"))]
            {
                let told = event(&format!("{what} --user 42{options}"));
                let (Change::Joined(connection) | Change::Left(connection, _)) = told.change else { panic!() };
                assert_eq!((connection.name.as_deref(), told.room.title.as_deref()), (name, title), "{what}{options}");
            }
        }
        assert_eq!(event("room_started").room.title, None);
    }

    #[test]
    fn every_event_that_the_help_lists_can_be_made() {
        let help = <Args as clap::Args>::augment_args(clap::Command::new("send")).render_long_help().to_string();
        let (_, list) = help.split_once("The usual events: ").unwrap();
        let (list, _) = list.split_once('.').unwrap();
        let events: Vec<&str> = list.split(',').map(str::trim).collect();
        assert_eq!(events.len(), 11);
        for event in events {
            assert!(args(event).fields.body(event).is_some(), "{event}");
        }
    }

    #[test]
    fn a_capture_gives_its_body_and_everything_else_itself() {
        let capture = br#"{"name": "x", "headers": {"A": "b"}, "body": "{\"event\": \"x\" }"}"#;
        assert_eq!(body_of_capture(capture).unwrap(), r#"{"event": "x" }"#);
        assert_eq!(body_of_capture(br#"{"event": "x", "body": "y"}"#), None);
        assert_eq!(body_of_capture(b"not json"), None);
    }

    #[test]
    fn the_key_is_of_the_command_line_or_of_the_settings() {
        let settings: Settings = serde_json::from_value(serde_json::json!({
            "queue": {"url": "amqp://localhost"},
            "plugnmeet": {
                "one": {"url": "http://one", "api_key": "key-1", "api_secret": "s"},
                "two": {"url": "http://two", "api_key": "key-2", "api_secret": "s"},
            },
        }))
        .unwrap();
        let key = |line: &str| args(line).to.key_of_server(&settings).map(|key| key.api_key);
        assert_eq!(key("room_started --server two").unwrap(), "key-2");
        assert!(key("room_started --server three").err().unwrap().to_string().contains("one, two"));
        assert!(key("room_started").err().unwrap().to_string().contains("which server?"));
        let key = |line: &str| args(line).to.key(None).map(|key| key.api_key);
        assert_eq!(key("room_started --api-key k --secret s").unwrap(), "k");
        assert_eq!(key("room_started --secret s --scheme hmac").unwrap(), "");
        assert!(key("room_started --secret s").err().unwrap().to_string().contains("--api-key"));
        assert!(key("room_started --api-key k").err().unwrap().to_string().contains("ROLLCALL_API_SECRET"));
        assert_eq!(ingress_url(&settings.ingress).unwrap().as_str(), "http://127.0.0.1:8080/webhooks/plugnmeet");
    }
}
