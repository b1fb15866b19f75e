//! `rollcall dlq`: an operator sees what died, mends it, sends it back and sees that it worked; over the command line, with what
//! the tables say.

#![allow(clippy::print_stderr)]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use rollcall_ops::standin::{Recording, StandIn};
use rollcall_shared::store::entity::{
    dead_letter as letter, dead_letter_change as change, dead_letter_failure as failure,
    live_session_interval as interval, live_session_recording as recording,
};
use rollcall_tests::installation::{Folder, Installation, Process};
use rollcall_tests::joins::{intervals, join, join_of_nobody};
use rollcall_tests::services::{self, Server};
use rollcall_tests::webhooks::Sender;
use rollcall_tests::{broker, eventually};
use rustix::process::Signal;
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};
use serde_json::{Value, json};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(120);

rollcall_tests::on_both_back_ends!(
    what_died_is_found_mended_sent_back_and_applied,
    what_dies_again_is_the_same_with_two_failures,
    an_outage_is_one_cause_and_one_command_heals_it,
    groups_and_lists_say_what_died_of_what,
    only_what_was_chosen_is_sent,
    what_is_dropped_is_kept_and_comes_back,
    an_edit_keeps_the_original_and_says_what_it_changed,
    an_editor_is_given_the_body_and_its_mistakes_are_kept,
    letters_travel_with_their_history,
    a_line_that_is_wrong_is_named_and_what_is_before_it_is_kept,
    what_no_queue_takes_is_named_and_the_rest_is_sent,
    an_edit_keeps_the_kind_of_a_value_and_what_would_die_is_not_sent,
    killed_half_way_and_run_again_each_is_applied_once,
    interrupted_it_says_where_it_stands,
    what_a_colleague_drops_meanwhile_is_not_sent,
    ids_that_are_not_there_or_not_meant_are_named,
    what_another_replay_takes_over_is_no_success,
    who_waits_for_a_worker_that_does_not_run_is_told,
    a_reader_that_goes_away_is_no_error,
    what_others_have_written_gives_the_terminal_no_orders,
    what_others_have_written_gives_no_orders_in_a_log,
);

/// A command that has ended.
struct Ran {
    is_well: bool,
    output: String,
    log: String,
}

impl Ran {
    /// What it printed as JSON.
    fn json(&self) -> Value {
        serde_json::from_str(&self.output).unwrap_or_else(|error| panic!("{error}: {}{}", self.output, self.log))
    }

    /// It ended badly, and said that.
    #[track_caller]
    fn failed_with(&self, text: &str) {
        assert!(!self.is_well && self.log.contains(text), "no {text:?} in {}{}", self.output, self.log);
    }
}

async fn ended(mut process: Process) -> Ran {
    let is_well = process.ended().await.success();
    Ran { is_well, output: process.output(), log: process.log() }
}

/// Runs `rollcall dlq`.
async fn dlq(installation: &Installation, arguments: &[&str]) -> Ran {
    ended(begin(installation, &[], arguments)).await
}

/// Runs `rollcall dlq`, which must end well, and gives what it printed as JSON.
async fn json_of(installation: &Installation, arguments: &[&str]) -> Value {
    let ran = dlq(installation, &[arguments, &["--json"]].concat()).await;
    assert!(ran.is_well, "{arguments:?}: {}{}", ran.output, ran.log);
    ran.json()
}

/// Starts `rollcall dlq`, with more in its environment.
fn begin(installation: &Installation, environment: &[&str], arguments: &[&str]) -> Process {
    begin_by(installation, &[&["env"], environment].concat(), arguments)
}

/// Has another program start `rollcall dlq`.
fn begin_by(installation: &Installation, by: &[&str], arguments: &[&str]) -> Process {
    installation.load_settings();
    let folder = Folder(installation.directory.clone());
    std::fs::copy(folder.0.join("settings-of-the-test.toml"), folder.0.join("rollcall.toml")).unwrap();
    folder.spawn_by(by, "rollcall", &[&["dlq"], arguments].concat())
}

/// Has events die, stores them, and gives their ids; the workers go on.
async fn die(installation: &Installation, bodies: &[Value]) -> (Vec<i64>, [Process; 2]) {
    let ingress = installation.ingress().await;
    let sender = Sender::new(installation, "main", ingress.address);
    for body in bodies {
        sender.post(&body.to_string()).await;
    }
    let worker = installation.worker("attendance").await;
    let storing = installation.spawn("rollcall-worker", &["dead-letters"]);
    let ids = eventually(LIMIT, || async {
        let rows = letter::Entity::find().order_by_asc(letter::Column::Id).all(&installation.db).await.unwrap();
        let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
        if ids.len() == bodies.len() { Ok(ids) } else { Err(format!("{} are stored", ids.len())) }
    })
    .await;
    (ids, [worker, storing])
}

/// Writes dead letters into the table as they would be there: their ids.
async fn insert(installation: &Installation, letters: &[(&str, &str, Value)]) -> Vec<i64> {
    let now = Utc::now();
    for letters in letters.chunks(500) {
        let rows = letters.iter().map(|(worker, cause, body)| letter::ActiveModel {
            message_id: Set(Uuid::new_v4().to_string()),
            worker: Set((*worker).into()),
            event: Set(body["event"].as_str().unwrap().into()),
            event_id: Set(body["id"].as_str().map(Into::into)),
            source: Set("main".into()),
            room_id: Set(body["room"]["room_id"].as_str().map(Into::into)),
            user_id: Set(body["participant"]["identity"].as_str().map(Into::into)),
            received_at: Set(now - TimeDelta::hours(3)),
            state: Set("dead".into()),
            kind: Set("exhausted".into()),
            cause: Set((*cause).into()),
            error: Set(format!("why {cause}")),
            attempts: Set(7),
            first_failed_at: Set(now - TimeDelta::hours(2)),
            last_failed_at: Set(now - TimeDelta::hours(1)),
            replays: Set(0),
            created_at: Set(now),
            updated_at: Set(now),
            headers: Set(r#"{"rollcall-attempt":7}"#.into()),
            body: Set(body.to_string().into_bytes()),
            ..Default::default()
        });
        letter::Entity::insert_many(rows).exec_without_returning(&installation.db).await.unwrap();
    }
    let ids = letter::Entity::find().select_only().column(letter::Column::Id).order_by_asc(letter::Column::Id);
    ids.into_tuple().all(&installation.db).await.unwrap()
}

fn joins(count: usize) -> Vec<(&'static str, &'static str, Value)> {
    (0..count).map(|number| ("attendance", "database", join("class", &format!("user-{number}")))).collect()
}

async fn row(installation: &Installation, id: i64) -> letter::Model {
    letter::Entity::find_by_id(id).one(&installation.db).await.unwrap().unwrap()
}

async fn in_state(installation: &Installation, state: &str) -> u64 {
    letter::Entity::find().filter(letter::Column::State.eq(state)).count(&installation.db).await.unwrap()
}

/// What was done with a dead letter: `(who, what, why)`, the first first.
async fn history(installation: &Installation, id: i64) -> Vec<(String, String, String)> {
    let of_letter = change::Entity::find().filter(change::Column::DeadLetterId.eq(id));
    let changes = of_letter.order_by_asc(change::Column::Id).all(&installation.db).await.unwrap();
    changes.into_iter().map(|row| (row.changed_by, row.change, row.reason.unwrap_or_default())).collect()
}

fn triple(who: &str, what: &str, why: &str) -> (String, String, String) {
    (who.into(), what.into(), why.into())
}

async fn what_died_is_found_mended_sent_back_and_applied(installation: Installation) {
    let (ids, workers) = die(&installation, &[join_of_nobody("class", 0)]).await;
    let id = &ids[0].to_string();
    let groups = json_of(&installation, &["groups"]).await;
    assert_eq!(groups["groups"][0]["cause"], "body-incomplete");
    assert_eq!(groups["groups"][0]["example"]["error"], "participant_joined has no participant");

    let participant = r#"/participant={"sid":"PA_7","identity":"seven","joined_at":"1790000000"}"#;
    let ran =
        dlq(&installation, &["edit", id, "--set-json", participant, "--as", "sara", "--reason", "it was Seven"]).await;
    assert!(ran.is_well && ran.log.is_empty(), "{}", ran.log);
    assert_eq!(row(&installation, ids[0]).await.user_id.as_deref(), Some("seven"));

    let replayed = json_of(&installation, &["replay", id, "--wait", "--as", "sara"]).await;
    assert_eq!((&replayed["sent"], &replayed["result"]["applied"]), (&json!(1), &json!(1)));
    let row = row(&installation, ids[0]).await;
    assert_eq!((row.state.as_str(), row.replays), ("applied", 1));
    assert_eq!((row.replayed_by.as_deref(), row.replay_run.as_deref()), (Some("sara"), replayed["run"].as_str()));
    assert_eq!(intervals(&installation).await, 1);

    let shown = json_of(&installation, &["show", id]).await;
    assert_eq!(shown["changes"].as_array().unwrap().len(), 2);
    let page = dlq(&installation, &["show", id]).await.output;
    for text in ["applied", "sara", "it was Seven (/participant added", "participant_joined has no participant"] {
        assert!(page.contains(text), "no {text:?} in {page}");
    }
    assert_eq!(dlq(&installation, &["groups"]).await.output, "no dead letters\n");
    for worker in workers {
        worker.stop().await;
    }
}

async fn what_dies_again_is_the_same_with_two_failures(installation: Installation) {
    let (ids, workers) = die(&installation, &[join_of_nobody("class", 0), join_of_nobody("class", 1)]).await;
    let ran = dlq(&installation, &["replay", "--cause", "body-incomplete", "--wait", "--json"]).await;
    assert!(!ran.is_well, "what died again is no success");
    let result = ran.json()["result"].clone();
    assert_eq!((&result["died_again"], &result["applied"], &result["replaying"]), (&json!(2), &json!(0), &json!(0)));
    assert_eq!(result["causes"], json!([{"worker": "attendance", "cause": "body-incomplete", "count": 2}]));
    for id in &ids {
        let shown = json_of(&installation, &["show", &id.to_string()]).await;
        let replays: Vec<_> =
            shown["failures"].as_array().unwrap().iter().map(|failed| failed["replay"].clone()).collect();
        assert_eq!(
            (replays, &shown["state"], &shown["replays"]),
            (vec![json!(0), json!(1)], &json!("dead"), &json!(1))
        );
    }
    // What became of a run can be seen afterwards.
    let run = ran.json()["run"].as_str().unwrap().to_owned();
    let groups = json_of(&installation, &["groups", "--run", &run]).await;
    assert_eq!((&groups["groups"][0]["count"], &groups["groups"][0]["state"]), (&json!(2), &json!("dead")));
    assert_eq!(json_of(&installation, &["groups", "--run", "another"]).await["groups"], json!([]));
    let ran = dlq(&installation, &["replay", "--all", "--wait"]).await;
    assert!(!ran.is_well && ran.output.contains("0 applied, 2 died again"), "{}", ran.output);
    for worker in workers {
        worker.stop().await;
    }
}

async fn an_outage_is_one_cause_and_one_command_heals_it(mut installation: Installation) {
    const COUNT: usize = 12;
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    for number in 0..COUNT {
        let body = json!({"event": "recording_proceeded", "id": format!("EV_{number}"), "created_at": "1790000000",
                          "room": {"sid": "sid", "room_id": "room"}, "recording_info": {"record_id": format!("r-{number}")}});
        sender.post(&body.to_string()).await;
    }
    // Nobody is at the server's address.
    let worker = installation.worker("recordings").await;
    let storing = installation.spawn("rollcall-worker", &["dead-letters"]);
    eventually(LIMIT, || async {
        let dead = in_state(&installation, "dead").await;
        if dead == COUNT as u64 { Ok(()) } else { Err(format!("{dead} are dead")) }
    })
    .await;
    worker.stop().await;
    let groups = json_of(&installation, &["groups"]).await["groups"].clone();
    assert_eq!(groups.as_array().unwrap().len(), 1, "{groups}");
    assert_eq!((&groups[0]["cause"], &groups[0]["count"]), (&json!("plugnmeet-away"), &json!(COUNT)));

    let server = StandIn::start("key", &"secret".into()).await.unwrap();
    let file = voice(&installation);
    for number in 0..COUNT {
        server.add_recording(Recording::new(&format!("r-{number}"), "room", "sid", &file));
    }
    installation.server("main", "key", "secret", server.url().as_str());
    let worker = installation.worker("recordings").await;
    let ran = dlq(&installation, &["replay", "--cause", "plugnmeet-away", "--wait"]).await;
    assert!(ran.is_well && ran.output.ends_with("12 applied, 0 died again\n"), "{}{}", ran.output, ran.log);
    let recordings = recording::Entity::find().all(&installation.db).await.unwrap();
    assert_eq!(recordings.len(), COUNT);
    assert!(recordings.iter().all(|row| row.status == "ready" && row.error.is_none()), "{recordings:?}");
    for worker in [worker, storing] {
        worker.stop().await;
    }
}

/// A second of sound.
fn voice(installation: &Installation) -> PathBuf {
    let file = installation.directory.join("class.mp4");
    let made = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-y", "-f", "lavfi", "-i", "sine=frequency=440:duration=1"])
        .arg(&file)
        .status();
    assert!(made.unwrap().success());
    file
}

async fn groups_and_lists_say_what_died_of_what(installation: Installation) {
    let mut letters = joins(60);
    letters.push(("rooms", "plugnmeet-away", json!({"event": "room_started", "room": {"room_id": "other"}})));
    let ids = insert(&installation, &letters).await;
    let groups = json_of(&installation, &["groups"]).await["groups"].clone();
    let of = |group: &Value| (group["worker"].clone(), group["cause"].clone(), group["count"].clone());
    assert_eq!(of(&groups[0]), (json!("attendance"), json!("database"), json!(60)));
    assert_eq!(of(&groups[1]), (json!("rooms"), json!("plugnmeet-away"), json!(1)));
    assert_eq!(groups[1]["example"], json!({"id": ids[60], "error": "why plugnmeet-away"}));

    let list = json_of(&installation, &["list", "--limit", "10"]).await;
    assert_eq!((list["dead_letters"].as_array().unwrap().len(), &list["more"]), (10, &json!(51)));
    let ids_of = async |arguments: &[&str]| {
        let list = json_of(&installation, &[&["list"], arguments].concat()).await;
        let letters = list["dead_letters"].as_array().unwrap().iter();
        letters.map(|letter| letter["id"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ids_of(&["--user", "user-7"]).await, [ids[7]]);
    assert_eq!(ids_of(&["--user", "user-7", "--user", "user-8"]).await, [ids[8], ids[7]]);
    assert_eq!(ids_of(&["--user", "user-7", "--room", "other"]).await, [0_i64; 0]);
    assert_eq!(ids_of(&["--room", "other"]).await, [ids[60]]);
    assert_eq!(ids_of(&["--event", "room_started"]).await, [ids[60]]);
    assert_eq!(ids_of(&["--worker", "rooms"]).await, [ids[60]]);
    assert_eq!(ids_of(&["--since", "50m"]).await, [0_i64; 0]);
    assert_eq!(ids_of(&["--since", "2h", "--until", "50m", "--cause", "plugnmeet-away"]).await, [ids[60]]);
    assert_eq!(ids_of(&["--state", "applied,dropped"]).await, [0_i64; 0]);
    assert_eq!(ids_of(&["--id", &format!("{},{}", ids[1], ids[2])]).await, [ids[2], ids[1]]);
    let plain = dlq(&installation, &["list", "--room", "other"]).await.output;
    assert!(plain.contains("ERROR") && plain.contains("why plugnmeet-away"), "{plain}");
    dlq(&installation, &["show", "4711"]).await.failed_with("there is no dead letter 4711");
}

async fn only_what_was_chosen_is_sent(installation: Installation) {
    let mut letters = joins(150);
    letters.push(("rooms", "plugnmeet-away", json!({"event": "room_started", "room": {"room_id": "other"}})));
    let ids = insert(&installation, &letters).await;
    dlq(&installation, &["replay"]).await.failed_with("which dead letters?");
    dlq(&installation, &["drop", "--reason", "x"]).await.failed_with("which dead letters?");
    dlq(&installation, &["replay", "--all"]).await.failed_with("151 dead letters will be sent back to their workers");
    let dry = json_of(&installation, &["replay", "--all", "--dry-run"]).await;
    assert_eq!(dry["would_send"], 151);
    assert_eq!(
        dry["of"][0],
        json!({"worker": "attendance", "event": "participant_joined", "cause": "database", "count": 150})
    );
    assert_eq!((in_state(&installation, "dead").await, broker::depths(&installation).await.unwrap().len()), (151, 0));

    let sent = json_of(&installation, &["replay", "--worker", "rooms", "--reason", "it is back"]).await;
    assert_eq!((&sent["sent"], sent["error"].is_null()), (&json!(1), true));
    assert_eq!(in_state(&installation, "replaying").await, 1);
    assert_eq!(broker::depths(&installation).await.unwrap()["rooms"], 1);
    let (_, what, why) = history(&installation, ids[150]).await.remove(0);
    assert_eq!((what.as_str(), why.as_str()), ("replayed", "it is back"));
    assert_eq!(json_of(&installation, &["replay", "--worker", "rooms"]).await["sent"], 0);
    let sent = json_of(&installation, &["replay", "--all", "--yes"]).await;
    assert_eq!(sent["sent"], 150);
    // Nobody takes them, so they wait.
    let ran = dlq(&installation, &["replay", &ids[0].to_string(), "--wait", "--timeout", "1s"]).await;
    assert!(!ran.is_well && ran.output.contains("1 still wait"), "{}", ran.output);
    assert_eq!(row(&installation, ids[0]).await.replays, 2);
}

async fn what_is_dropped_is_kept_and_comes_back(installation: Installation) {
    let ids = insert(&installation, &joins(700)).await;
    let one = &ids[0].to_string();
    assert!(dlq(&installation, &["drop", one]).await.log.contains("--reason"));
    let dropped = json_of(&installation, &["drop", "--all", "--yes", "--reason", "a test", "--as", "sara"]).await;
    assert_eq!((&dropped["dropped"], &dropped["not_dropped"]), (&json!(700), &json!(0)));
    assert_eq!(in_state(&installation, "dropped").await, 700);
    assert_eq!(json_of(&installation, &["list"]).await["dead_letters"], json!([]));
    let again = json_of(&installation, &["drop", one, "--reason", "again"]).await;
    let left_out = json!([{"id": ids[0], "state": "dropped"}]);
    assert_eq!(again, json!({"dropped": 0, "not_dropped": 1, "missing": [], "left_out": left_out}));

    let restored = json_of(&installation, &["restore", "--all", "--yes", "--as", "omid"]).await;
    assert_eq!((&restored["restored"], &restored["not_restored"]), (&json!(700), &json!(0)));
    assert_eq!(in_state(&installation, "dead").await, 700);
    json_of(&installation, &["note", one, "asked the LMS's people", "--as", "omid"]).await;
    dlq(&installation, &["note", "4711", "x"]).await.failed_with("there is no dead letter 4711");
    let expected = [
        triple("sara", "dropped", "a test"),
        triple("omid", "restored", ""),
        triple("omid", "noted", "asked the LMS's people"),
    ];
    assert_eq!(history(&installation, ids[0]).await, expected);
    assert_eq!(change::Entity::find().count(&installation.db).await.unwrap(), 1401);
}

async fn an_edit_keeps_the_original_and_says_what_it_changed(installation: Installation) {
    let ids = insert(&installation, &joins(1)).await;
    let id = &ids[0].to_string();
    let original = row(&installation, ids[0]).await.body;
    let edit = ["edit", id, "--as", "sara"];
    let edited = json_of(&installation, &[&edit[..], &["--set", "/room/room_id=algebra"]].concat()).await;
    assert_eq!(edited["differences"], json!([r#"/room/room_id "class" → "algebra""#]));
    json_of(&installation, &[&edit[..], &["--set-json", "/participant/note={\"a\": 1}"]].concat()).await;
    let row_now = row(&installation, ids[0]).await;
    assert_eq!(row_now.room_id.as_deref(), Some("algebra"));
    assert_eq!(row_now.original_body.as_ref(), Some(&original));
    let body: Value = serde_json::from_slice(&row_now.body).unwrap();
    assert_eq!((&body["participant"]["note"]["a"], &body["id"]), (&json!(1), &json!("EV_class_user-0")));

    // Of another event, it is another worker's; and one that no worker understands is said to be so.
    let moved =
        json_of(&installation, &[&edit[..], &["--set", "/event=room_started", "--unset", "/room/sid"]].concat()).await;
    assert_eq!((&moved["worker"], &moved["problem"]), (&json!("rooms"), &json!("room_started has no room.sid")));
    assert_eq!(row(&installation, ids[0]).await.worker, "rooms");

    for (arguments, error) in [
        (
            ["--set", "/event=track_published"],
            "no worker wants an event \"track_published\": it is one of participant_joined",
        ),
        (["--unset", "/event"], "the body has no event"),
        (["--set", "/rooms/sid=x"], "the body has no /rooms"),
        (["--unset", "/room/sid"], "the body has no /room/sid"),
    ] {
        dlq(&installation, &[&edit[..], &arguments].concat()).await.failed_with(error);
    }
    let unchanged = json_of(&installation, &[&edit[..], &["--set", "/room/room_id=algebra"]].concat()).await;
    assert_eq!(unchanged["changed"], false);

    let page = dlq(&installation, &["show", id]).await.output;
    assert!(
        page.contains("Original body") && page.contains(r#"/event "participant_joined" → "room_started""#),
        "{page}"
    );
    json_of(&installation, &[&edit[..], &["--revert"]].concat()).await;
    let reverted = row(&installation, ids[0]).await;
    assert_eq!((reverted.body, reverted.original_body), (original, None));
    assert_eq!((reverted.worker.as_str(), reverted.room_id.as_deref()), ("attendance", Some("class")));
    dlq(&installation, &[&edit[..], &["--revert"]].concat()).await.failed_with("there is nothing to revert");
    let history = history(&installation, ids[0]).await;
    assert_eq!(history[0], triple("sara", "edited", r#"/room/room_id "class" → "algebra""#));
    assert_eq!((history.len(), history[3].2.as_str()), (4, "the original body again"));

    json_of(&installation, &["replay", id]).await;
    dlq(&installation, &[&edit[..], &["--revert"]].concat())
        .await
        .failed_with("only one that is dead or dropped can be edited");
}

async fn an_editor_is_given_the_body_and_its_mistakes_are_kept(installation: Installation) {
    let ids = insert(&installation, &joins(1)).await;
    let id = &ids[0].to_string();
    let edit = async |editor: &str| {
        let editor = format!("EDITOR={editor}");
        ended(begin(&installation, &["VISUAL=", &editor], &["edit", id])).await
    };
    let untouched = edit("cat").await;
    assert!(untouched.is_well && untouched.output.contains("nothing is changed"), "{}", untouched.log);
    assert!(untouched.output.contains(r#"    "room_id": "class""#), "{}", untouched.output);
    let modes = edit("stat -c %a").await;
    assert!(modes.output.starts_with("600\n"), "{}", modes.output);
    edit("false").await.failed_with("the editor false has failed");
    assert!(row(&installation, ids[0]).await.original_body.is_none());

    let ran = edit("sed -i /room_id/s/class/algebra/").await;
    assert!(ran.is_well, "{}", ran.log);
    assert_eq!(row(&installation, ids[0]).await.room_id.as_deref(), Some("algebra"));

    // What a terminal does at Ctrl-C and Ctrl-\: we hear it as the editor does, for which alone it is.
    let ran = edit("kill -INT $PPID && kill -QUIT $PPID && sed -i /room_id/s/algebra/geometry/").await;
    assert!(ran.is_well, "{}", ran.log);
    assert_eq!(row(&installation, ids[0]).await.room_id.as_deref(), Some("geometry"));

    let wrong = edit("sed -i 1s/{/[/").await;
    wrong.failed_with("is no JSON");
    let kept = wrong.log.trim().rsplit_once(" in ").unwrap().1.to_owned();
    assert!(std::fs::read_to_string(&kept).unwrap().starts_with("[\n"), "{}", wrong.log);
    std::fs::remove_file(kept).unwrap();
}

async fn letters_travel_with_their_history(installation: Installation) {
    let elsewhere = if installation.is_on_files() { Installation::on_files().await } else { Installation::new().await };
    let (mut ids, workers) = die(&installation, &[join_of_nobody("class", 0)]).await;
    for worker in workers {
        worker.stop().await;
    }
    ids.extend(insert(&installation, &joins(600)).await.split_off(1));
    // Bytes that are no text, and one that somebody has edited.
    let mut bytes: letter::ActiveModel = row(&installation, ids[1]).await.into();
    bytes.body = Set(vec![0xff, 0, b'{']);
    letter::Entity::update(bytes).exec(&installation.db).await.unwrap();
    json_of(&installation, &["edit", &ids[0].to_string(), "--set-json", "/participant={}", "--as", "sara"]).await;

    let exported = json_of(&installation, &["export", "dead.jsonl", "--state", "all"]).await;
    assert_eq!(exported["exported"], 601);
    dlq(&installation, &["export", "dead.jsonl"]).await.failed_with("is there already");
    let file = installation.directory.join("dead.jsonl");
    let file = file.to_str().unwrap();
    let streamed = dlq(&installation, &["export", "--state", "all"]).await;
    assert_eq!(streamed.output, std::fs::read_to_string(file).unwrap());
    std::fs::copy(file, elsewhere.directory.join("dead.jsonl")).unwrap();

    let dry = json_of(&elsewhere, &["import", "dead.jsonl", "--dry-run"]).await;
    assert_eq!((&dry["would_import"], in_state(&elsewhere, "dead").await), (&json!(601), 0));
    let imported = json_of(&elsewhere, &["import", "dead.jsonl", "--as", "omid", "--reason", "moved"]).await;
    assert_eq!(imported, json!({"imported": 601, "known": 0, "erased": 0}));
    let again = json_of(&elsewhere, &["import", "dead.jsonl"]).await;
    assert_eq!(again, json!({"imported": 0, "known": 601, "erased": 0}));

    let known = letter::Entity::find().order_by_asc(letter::Column::Id).all(&installation.db).await.unwrap();
    let taken = letter::Entity::find().order_by_asc(letter::Column::Id).all(&elsewhere.db).await.unwrap();
    for (one, other) in known.iter().zip(&taken) {
        let copy =
            letter::Model { id: other.id, created_at: other.created_at, updated_at: other.updated_at, ..one.clone() };
        assert_eq!(&copy, other);
    }
    assert_eq!(failure::Entity::find().count(&elsewhere.db).await.unwrap(), 1);
    let history = history(&elsewhere, taken[0].id).await;
    assert_eq!(history, [triple("sara", "edited", "/participant added: {}"), triple("omid", "imported", "moved")]);
}

async fn a_line_that_is_wrong_is_named_and_what_is_before_it_is_kept(installation: Installation) {
    insert(&installation, &joins(3)).await;
    json_of(&installation, &["export", "dead.jsonl"]).await;
    let text = std::fs::read_to_string(installation.directory.join("dead.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let other = |key: &str, value: Value| {
        let mut line = lines[1].clone();
        line["message_id"] = Uuid::new_v4().to_string().into();
        line[key] = value;
        line.to_string()
    };
    let new = other("error", json!("with a NUL \0 in it"));
    let failure = json!({"failed_at": "2026-11-26T09:00:00Z", "replay": 0, "kind": "permanent", "cause": "other", "error": "x",
                         "attempts": 1, "host": null});
    for (wrong, error) in [
        ("not JSON".to_owned(), "line 2: it is no exported dead letter"),
        (other("format", json!(2)), "line 2: it is of format 2, and this Rollcall reads format 1"),
        (other("worker", json!("cleaning")), "line 2: its worker is \"cleaning\""),
        (other("message_id", json!("x")), "line 2: its message_id is \"x\""),
        (other("kind", json!("bad")), "line 2: its kind is \"bad\""),
        (other("state", json!("asleep")), "line 2: its state is \"asleep\""),
        (other("source", json!("A.b")), "line 2: its source is \"A.b\": it has to be the name of a server"),
        (other("event", json!("e".repeat(300))), "… (300 bytes): it has to be 120 bytes at most"),
        (other("room_id", json!("r".repeat(5_000_000))), "… (5000000 bytes): it has to be 1000 bytes at most"),
        (other("event_id", json!("i".repeat(200_000))), "line 2: its event_id is"),
        (other("user_id", json!("u".repeat(200_000))), "line 2: its user_id is"),
        (other("cause", json!("c".repeat(100_000))), "line 2: its cause is"),
        (other("error", json!("c".repeat(100_000))), "line 2: its error is"),
        (other("body", json!("x".repeat(1_048_577))), "line 2: its body is \"1048577 bytes long\""),
        (other("original_body", json!("x".repeat(1_048_577))), "line 2: its original_body is"),
        (other("original_body_base64", json!("!")), "line 2: its original_body_base64 is \"!\""),
        (other("replays", json!(2_147_483_647)), "line 2: its replays is \"2147483647\""),
        (other("replays", json!(-1)), "line 2: its replays is \"-1\""),
        (other("attempts", json!(-7)), "line 2: its attempts is \"-7\""),
        (other("received_at", json!("+262142-01-01T00:00:00Z")), "line 2: its received_at is"),
        (other("last_failed_at", json!("1066-10-14T00:00:00Z")), "line 2: its last_failed_at is"),
        (other("failures", json!([failure.clone(), failure])), "line 2: its failed_at is"),
        (other("surprise", json!(1)), "line 2: it is no exported dead letter: unknown field `surprise`"),
    ] {
        std::fs::write(installation.directory.join("wrong.jsonl"), format!("{new}\n{wrong}\n")).unwrap();
        dlq(&installation, &["import", "wrong.jsonl"]).await.failed_with(error);
    }
    let rows = letter::Entity::find().order_by_asc(letter::Column::Id).all(&installation.db).await.unwrap();
    assert_eq!((rows.len(), rows[3].error.as_str()), (4, "with a NUL  in it"));
}

/// Whoever has written them into the table: an import of an older version, or somebody with SQL.
async fn what_no_queue_takes_is_named_and_the_rest_is_sent(installation: Installation) {
    let ids = insert(&installation, &joins(8)).await;
    let change = async |id: i64, change: letter::ActiveModel| {
        let change = letter::ActiveModel { id: Set(id), ..change };
        letter::Entity::update(change).exec(&installation.db).await.unwrap();
    };
    let long = |length: usize| "x".repeat(length);
    change(ids[0], letter::ActiveModel { event: Set(long(300)), ..Default::default() }).await;
    change(ids[1], letter::ActiveModel { source: Set("A.b".into()), ..Default::default() }).await;
    change(ids[2], letter::ActiveModel { replays: Set(i32::MAX), ..Default::default() }).await;
    change(ids[3], letter::ActiveModel { body: Set(vec![b' '; (16 << 20) + 1]), ..Default::default() }).await;
    // What stands beside a body and is too long does not travel: the body has it.
    let (room_id, event_id) = (Set(Some(long(5_000_000))), Set(Some(long(200_000))));
    change(ids[4], letter::ActiveModel { room_id, event_id, ..Default::default() }).await;
    let traceparent = Set(Some(long(200_000)));
    change(ids[5], letter::ActiveModel { traceparent, ..Default::default() }).await;

    let ran = dlq(&installation, &["replay", "--all", "--json"]).await;
    assert!(!ran.is_well, "{}", ran.output);
    let report = ran.json();
    let impossible: Vec<_> = report["impossible"].as_array().unwrap().iter().map(|one| one["id"].clone()).collect();
    assert_eq!(
        (&report["sent"], impossible, &report["error"]),
        (&json!(4), json!(ids[..4]).as_array().unwrap().clone(), &json!(null))
    );
    let named = dlq(&installation, &["replay", "--all"]).await;
    for (id, why) in [
        (ids[0], "its event is \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"… (300 bytes)"),
        (ids[1], "its source is \"A.b\""),
        (ids[2], "its replays is \"2147483647\""),
        (ids[3], "its body is \"16777217 bytes long\""),
    ] {
        named.failed_with(&format!("not sent: {id}: {why}"));
    }
    let worker = installation.worker("attendance").await;
    eventually(LIMIT, || async {
        let applied = in_state(&installation, "applied").await;
        if applied == 4 { Ok(()) } else { Err(format!("{applied} are applied")) }
    })
    .await;
    assert_eq!((intervals(&installation).await, in_state(&installation, "dead").await), (4, 4));
    worker.stop().await;
}

async fn an_edit_keeps_the_kind_of_a_value_and_what_would_die_is_not_sent(installation: Installation) {
    let ids = insert(&installation, &joins(2)).await;
    let id = &ids[0].to_string();
    let value = async |pointer: &str| {
        let body: Value = serde_json::from_slice(&row(&installation, ids[0]).await.body).unwrap();
        body.pointer(pointer).unwrap().clone()
    };
    for number in ["4711", "true", "1e5", "null"] {
        json_of(&installation, &["edit", id, "--set", &format!("/participant/identity={number}")]).await;
        assert_eq!(value("/participant/identity").await, json!(number));
    }
    json_of(&installation, &["edit", id, "--set", "/room/room_id=101", "--set", "/participant/identity=4711"]).await;

    // A number where an id is: said at once, and not sent, by whichever way.
    let wrong = dlq(&installation, &["edit", id, "--set-json", "/room/sid=17", "--replay"]).await;
    wrong.failed_with("the worker attendance will not understand this body");
    wrong.failed_with("it is edited, and not sent: it would die again");
    assert_eq!(value("/room/sid").await, json!(17));
    dlq(&installation, &["replay", id]).await.failed_with(&format!("not sent: {id}: it was edited"));
    assert_eq!(
        (row(&installation, ids[0]).await.state.as_str(), broker::depths(&installation).await.unwrap().len()),
        ("dead", 0)
    );
    // Longer than the ingress takes one; and ids that are longer than they may travel are no columns.
    let long = format!("EDITOR=sed -i s/user-1/{}/", "n".repeat(100_000));
    let other = &ids[1].to_string();
    let ran = ended(begin(&installation, &["VISUAL=", &long], &["edit", other])).await;
    assert!(ran.is_well, "{}", ran.log);
    assert_eq!(row(&installation, ids[1]).await.user_id, None);
    let grow = r#"EDITOR=perl -pi -e 's/PA_/"x" x 1_100_000/e'"#;
    let ran = ended(begin(&installation, &["VISUAL=", grow], &["edit", other])).await;
    ran.failed_with("the edited body cannot be: its body is");

    json_of(&installation, &["edit", id, "--set-json", "/room/sid=\"S\""]).await;
    let worker = installation.worker("attendance").await;
    let applied = json_of(&installation, &["replay", id, "--wait"]).await;
    assert_eq!(applied["result"]["applied"], 1);
    let joined = interval::Entity::find().one(&installation.db).await.unwrap().unwrap();
    assert_eq!(joined.user_id, "4711");
    worker.stop().await;
}

async fn killed_half_way_and_run_again_each_is_applied_once(installation: Installation) {
    const COUNT: usize = 4_000;
    insert(&installation, &joins(COUNT)).await;
    let all = ["replay", "--all", "--yes"];
    for _ in 0..2 {
        let before = in_state(&installation, "dead").await;
        let process = begin(&installation, &[], &[&all[..], &["--rate", "1000"]].concat());
        eventually(LIMIT, || async {
            let dead = in_state(&installation, "dead").await;
            if dead + 500 <= before { Ok(()) } else { Err(format!("{dead} are still dead")) }
        })
        .await;
        process.kill().await;
    }
    let left = settled(&installation).await;
    assert!(left > 0, "it was too quick to be killed");
    let sent = json_of(&installation, &all).await;
    assert_eq!(sent["sent"], left);
    let worker = installation.worker("attendance").await;
    eventually(LIMIT, || async {
        let applied = in_state(&installation, "applied").await;
        if applied == COUNT as u64 { Ok(()) } else { Err(format!("{applied} are applied")) }
    })
    .await;
    broker::drained(&installation, LIMIT).await;
    worker.stop().await;
    assert_eq!(intervals(&installation).await, COUNT as u64);
    // Marked once each: what was sent and not marked before it was killed is sent by the same number.
    let rows = letter::Entity::find().all(&installation.db).await.unwrap();
    assert!(rows.iter().all(|row| row.replays == 1));
    let changes = change::Entity::find().all(&installation.db).await.unwrap();
    let marked: BTreeSet<_> = changes.iter().map(|change| change.dead_letter_id).collect();
    assert_eq!((changes.len(), marked.len()), (COUNT, COUNT));
}

/// How many are dead, once the database has ended what a killed process had begun there.
async fn settled(installation: &Installation) -> u64 {
    let before = Cell::new(None);
    eventually(LIMIT, || async {
        let dead = in_state(installation, "dead").await;
        if before.replace(Some(dead)) == Some(dead) { Ok(dead) } else { Err(format!("{dead} are dead just now")) }
    })
    .await
}

async fn interrupted_it_says_where_it_stands(installation: Installation) {
    insert(&installation, &joins(300)).await;
    let process = begin(&installation, &[], &["replay", "--all", "--yes", "--rate", "40"]);
    eventually(LIMIT, || async {
        let replaying = in_state(&installation, "replaying").await;
        if replaying > 20 { Ok(()) } else { Err(format!("{replaying} are sent")) }
    })
    .await;
    process.signal(Signal::INT);
    let ran = ended(process).await;
    assert!(!ran.is_well && ran.log.contains("run the same again to go on"), "{}", ran.log);
    let sent = in_state(&installation, "replaying").await;
    assert!(ran.output.contains(&format!("{sent} of 300 dead letters sent back")), "{sent}: {}", ran.output);
    let rest = json_of(&installation, &["replay", "--all", "--yes"]).await;
    assert_eq!(rest["sent"], 300 - sent);
    assert_eq!(broker::depths(&installation).await.unwrap()["attendance"], 300);
}

async fn what_a_colleague_drops_meanwhile_is_not_sent(installation: Installation) {
    let ids = insert(&installation, &joins(100)).await;
    let process = begin(&installation, &[], &["replay", "--all", "--rate", "20", "--json"]);
    eventually(LIMIT, || async {
        let replaying = in_state(&installation, "replaying").await;
        if replaying > 0 { Ok(()) } else { Err("nothing is sent".to_owned()) }
    })
    .await;
    json_of(&installation, &["drop", &ids[99].to_string(), "--reason", "not this one"]).await;
    let report = ended(process).await.json();
    assert_eq!((&report["sent"], &report["changed_meanwhile"]), (&json!(99), &json!(1)));
    assert_eq!(row(&installation, ids[99]).await.state, "dropped");
    assert_eq!(broker::depths(&installation).await.unwrap()["attendance"], 99);
}

async fn set_state(installation: &Installation, id: i64, state: &str) {
    let changed = letter::ActiveModel { id: Set(id), state: Set(state.into()), ..Default::default() };
    letter::Entity::update(changed).exec(&installation.db).await.unwrap();
}

async fn ids_that_are_not_there_or_not_meant_are_named(installation: Installation) {
    let ids = insert(&installation, &joins(3)).await;
    let [dead, dropped, applied] = [ids[0], ids[1], ids[2]].map(|id| id.to_string());
    set_state(&installation, ids[1], "dropped").await;
    set_state(&installation, ids[2], "applied").await;
    for command in [&["replay"][..], &["restore"], &["drop", "--reason", "x"]] {
        let ran = dlq(&installation, &[command, &["4711"]].concat()).await;
        ran.failed_with("there is no dead letter 4711");
        assert!(!ran.output.contains("rollcall dlq"), "a way back from nothing: {}", ran.output);
    }
    for (id, said) in [(&dropped, "is dropped"), (&applied, "is applied")] {
        let ran = dlq(&installation, &["replay", id, "--wait"]).await;
        ran.failed_with(&format!("left as it is: {id} {said}"));
        assert_eq!(ran.output, "none of these fit: nothing was sent\n");
    }
    let unfitting = dlq(&installation, &["replay", &dead, "--room", "other"]).await;
    unfitting.failed_with("is dead, and the other options do not fit it");
    assert_eq!(broker::depths(&installation).await.unwrap().len(), 0);

    let ran = dlq(&installation, &["replay", &dead, &applied, "4711", "--json"]).await;
    ran.failed_with("there is no dead letter 4711");
    let report = ran.json();
    assert_eq!((&report["sent"], &report["missing"]), (&json!(1), &json!([4711])));
    assert_eq!(report["left_out"], json!([{"id": ids[2], "state": "applied"}]));
    let sent = json_of(&installation, &["replay", &dropped, "--state", "dropped"]).await;
    assert_eq!(sent["sent"], 1);

    // Of a run, what has been applied is not sent once more.
    let run = report["run"].as_str().unwrap();
    set_state(&installation, ids[0], "applied").await;
    assert_eq!(json_of(&installation, &["replay", "--run", run]).await["sent"], 0);
    assert_eq!(json_of(&installation, &["list", "--run", run]).await["dead_letters"][0]["state"], "applied");
    let none = dlq(&installation, &["groups", "--run", "nonsense"]).await;
    assert_eq!(none.output, "none of 3 dead letters fit\n");
}

async fn what_another_replay_takes_over_is_no_success(installation: Installation) {
    let ids = insert(&installation, &joins(2)).await;
    let first = begin(&installation, &[], &["replay", "--all", "--wait", "--json"]);
    eventually(LIMIT, || async {
        let replaying = in_state(&installation, "replaying").await;
        if replaying == 2 { Ok(()) } else { Err(format!("{replaying} are sent")) }
    })
    .await;
    json_of(&installation, &["replay", &ids[0].to_string(), &ids[1].to_string()]).await;
    let first = ended(first).await;
    assert!(!first.is_well, "{}", first.output);
    let result = first.json()["result"].clone();
    assert_eq!((&result["taken_over"], &result["applied"], &result["replaying"]), (&json!(2), &json!(0), &json!(0)));
}

async fn who_waits_for_a_worker_that_does_not_run_is_told(installation: Installation) {
    insert(&installation, &joins(1)).await;
    let waiting = begin(&installation, &[], &["replay", "--all", "--wait"]);
    waiting.logs("no worker attendance runs").await;
    waiting.logs("no worker dead-letters runs").await;
    ended(installation.spawn("rollcall", &["pause", "attendance", "--as", "sara"])).await;
    waiting.logs("attendance is paused by sara").await;
    ended(installation.spawn("rollcall", &["resume", "attendance"])).await;
    let worker = installation.worker("attendance").await;
    let ran = ended(waiting).await;
    assert!(ran.is_well && ran.output.ends_with("1 applied, 0 died again\n"), "{}{}", ran.output, ran.log);
    worker.stop().await;
}

async fn a_reader_that_goes_away_is_no_error(installation: Installation) {
    insert(&installation, &joins(2_000)).await;
    for command in [&["list", "--limit", "2000"][..], &["list", "--limit", "2000", "--json"], &["export"]] {
        let cut = r#""$@" | head -c 10; echo " and ${PIPESTATUS[0]}""#;
        let ran = ended(begin_by(&installation, &["bash", "-c", cut, "bash"], command)).await;
        assert!(ran.output.ends_with(" and 141\n") && ran.log.is_empty(), "{command:?}: {}{}", ran.output, ran.log);
    }
}

/// What a terminal takes for an order, and marks that turn the direction of writing around, end a line, or hide.
fn is_order(character: char) -> bool {
    let marks = [
        '\u{61c}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202e}', '\u{2028}', '\u{2029}', '\u{2066}', '\u{2069}',
        '\u{feff}',
    ];
    (character.is_control() && character != '\n') || marks.contains(&character)
}

async fn what_others_have_written_gives_the_terminal_no_orders(installation: Installation) {
    let nasty = "a\u{1b}[2Jb\u{9b}2J\u{7f}\u{85}\u{202e}gpj.exe\u{2028}\u{2066}\u{200f}\u{61c}\u{feff}";
    let event = json!({"event": "room_started", "room": {"room_id": nasty}, "\u{1b}[31mkey": nasty});
    let cause = "bad\u{1b}]0;x\u{7}\u{202e}";
    let id = &insert(&installation, &[("rooms", cause, event)]).await[0].to_string();
    let key = format!("/room/room_id={nasty}");
    for command in [
        &["list"][..],
        &["groups"],
        &["show", id],
        &["replay", "--all", "--dry-run"],
        &["list", "--json"],
        &["groups", "--json"],
        &["edit", id, "--set", "/\u{1b}[31mkey=5", "--set", "/room/room_id=\u{9b}\u{202e}"],
        &["edit", id, "--set", &key],
        &["show", id],
        &["show", id, "--json"],
        &["export"],
        &["note", "4711\u{1b}[2J", "x"],
    ] {
        let ran = dlq(&installation, command).await;
        assert!(
            !ran.output.contains(is_order) && !ran.log.contains(is_order),
            "{command:?}: {:?}{:?}",
            ran.output,
            ran.log
        );
    }
    // A program has it all the same.
    let shown = json_of(&installation, &["show", id]).await;
    assert_eq!((&shown["room_id"], &shown["cause"]), (&json!(nasty), &json!(cause)));
    for command in ["status", "doctor"] {
        let ran = ended(installation.spawn("rollcall", &[command])).await;
        assert!(!ran.output.contains(is_order) && !ran.log.contains(is_order), "{command}: {:?}", ran.output);
    }
}

async fn what_others_have_written_gives_no_orders_in_a_log(installation: Installation) {
    let mut body = join_of_nobody("class", 0);
    body["room"]["room_id"] = "a\u{9b}2J\u{7f}\u{202e}gpj\u{2028}\u{2066}b".into();
    let (_, workers) = die(&installation, &[body.clone()]).await;
    for worker in workers {
        let log = worker.log();
        assert!(!log.contains(is_order), "{log:?}");
        let mut events = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        // The one that buried it says of which room it was.
        if log.contains("an event is dead") {
            assert!(events.any(|event| event["room_id"] == body["room"]["room_id"]), "{log}");
        }
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_broker_that_goes_away_leaves_the_rest_as_it_was() {
    let rabbitmq = Server::rabbitmq("dead-letters").await;
    let installation = Installation::on(&rabbitmq.url, &services::shared_postgres()).await;
    insert(&installation, &joins(2_000)).await;
    let process = begin(&installation, &[], &["replay", "--all", "--yes", "--rate", "200"]);
    eventually(LIMIT, || async {
        let replaying = in_state(&installation, "replaying").await;
        if replaying > 200 { Ok(()) } else { Err(format!("{replaying} are sent")) }
    })
    .await;
    rabbitmq.kill().await;
    let ran = ended(process).await;
    ran.failed_with("run the same again to go on");
    let marked = in_state(&installation, "replaying").await;
    assert!(ran.output.contains("2,000 dead letters sent back"), "{}", ran.output);
    assert_eq!(in_state(&installation, "dead").await, 2_000 - marked);
    // While it is away, nothing is sent.
    let away = dlq(&installation, &["replay", "--all", "--yes"]).await;
    away.failed_with("it broke off");
    away.failed_with("see that the queue amqp://");
    rabbitmq.start().await;
    assert_eq!(json_of(&installation, &["replay", "--all", "--yes"]).await["sent"], 2_000 - marked);
}
