//! `rollcall person erase`: a person is nowhere any more, and nothing that happened until then brings them back. And what is kept no
//! longer than the settings say.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use rollcall_shared::erasure::catalogue;
use rollcall_shared::store::entity::{
    course, course_live_session as session, course_staff as staff, dead_letter as letter,
    live_session_interval as interval, live_session_recording as recording, live_session_user as user,
};
use rollcall_tests::command::rollcall;
use rollcall_tests::installation::{Installation, Process};
use rollcall_tests::joins::{applied, join};
use rollcall_tests::webhooks::Sender;
use rollcall_tests::{broker, eventually};
use sea_orm::{
    ActiveModelTrait as _, ActiveValue::Set, ColumnTrait as _, ConnectionTrait as _, DatabaseTransaction, DbBackend,
    EntityTrait as _, PaginatorTrait as _, QueryFilter as _, Statement, TransactionTrait as _,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

rollcall_tests::on_both_back_ends!(
    an_erased_person_is_nowhere_and_nothing_brings_them_back,
    a_pseudonym_keeps_the_counts_and_nobody,
    an_id_of_two_servers_is_two_people,
    what_is_kept_for_long_enough_is_removed,
    every_column_is_in_the_catalogue,
);

/// Of nobody else's in these tests, and in no number or hash by chance.
const ID: &str = "person-4711-x";
const NAME: &str = "Zebedee Quux";

fn event(kind: &str, room: &str, sid: &str, joined_at: i64) -> Value {
    let mut event = join(room, ID);
    event["event"] = kind.into();
    event["id"] = format!("EV_{kind}_{room}_{sid}").into();
    event["created_at"] = (joined_at + 60).to_string().into();
    event["participant"] = json!({"sid": sid, "identity": ID, "name": NAME, "joined_at": joined_at.to_string()});
    event
}

/// One that dies: it has no connection's id.
fn dying(room: &str) -> Value {
    let mut event = event("participant_joined", room, "", 1_790_000_000);
    event["participant"].as_object_mut().unwrap().remove("sid");
    event
}

/// The end of a room.
fn ended(room: &str) -> Value {
    let mut ended = join(room, "nobody");
    ended["event"] = "room_finished".into();
    ended.as_object_mut().unwrap().remove("participant");
    ended
}

/// Every value of every row, as text.
async fn everything(installation: &Installation) -> String {
    let db = &installation.db;
    let mut all = String::new();
    for table in catalogue::TABLES {
        let columns = table.personal.iter().chain(table.others);
        for column in columns {
            let text = match (db.get_database_backend(), *column) {
                (DbBackend::Sqlite, _) => format!("CAST({column} AS TEXT)"),
                (_, "body" | "original_body") => format!("convert_from({column}, 'UTF8')"),
                _ => format!("{column}::text"),
            };
            let select = format!("SELECT {text} AS value FROM {}", table.name);
            let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), select)).await.unwrap();
            for row in rows {
                all += &row.try_get::<Option<String>>("", "value").unwrap().unwrap_or_default();
                all.push('\n');
            }
        }
    }
    all
}

#[track_caller]
fn is_nowhere(everything: &str) {
    assert!(!everything.contains(ID) && !everything.contains(NAME), "{everything}");
}

async fn erase(installation: &Installation, more: &[&str]) -> Value {
    let erase = ["person", "erase", ID, "--reason", "a request", "--as", "sara", "--yes", "--json"];
    let done = rollcall(installation, &[&erase[..], more].concat()).await;
    assert!(done.success, "{}{}", done.stdout, done.stderr);
    serde_json::from_str(&done.stdout).unwrap()
}

async fn dead(installation: &Installation, count: u64) {
    eventually(LIMIT, || async {
        let found = letter::Entity::find().count(&installation.db).await.unwrap();
        if found == count { Ok(()) } else { Err(format!("{found} of {count} are stored")) }
    })
    .await;
}

async fn stop(workers: impl IntoIterator<Item = Process>) {
    for worker in workers {
        worker.stop().await;
    }
}

async fn people(installation: &Installation) -> Vec<user::Model> {
    user::Entity::find().all(&installation.db).await.unwrap()
}

async fn an_erased_person_is_nowhere_and_nothing_brings_them_back(installation: Installation) {
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    let now = Utc::now().timestamp();
    let joined = event("participant_joined", "algebra", "PA_1", now - 600);
    for body in [&joined, &join("algebra", "somebody-else"), &dying("algebra"), &dying("geometry")] {
        sender.post(&body.to_string()).await;
    }
    let mut workers = vec![installation.worker("attendance").await, installation.worker("rooms").await];
    let storing = installation.spawn("rollcall-worker", &["dead-letters"]);
    applied(&installation, 2, LIMIT).await;
    dead(&installation, 2).await;
    storing.stop().await;
    let there = everything(&installation).await;
    assert!(there.contains(ID) && there.contains(NAME));

    // Of staff, and of a dead letter that somebody has edited to be about somebody else.
    let algebra = course::ActiveModel { slug: Set("algebra".into()), ..Default::default() };
    let algebra = algebra.insert(&installation.db).await.unwrap();
    let of_staff = staff::ActiveModel { course_id: Set(algebra.id), user_id: Set(ID.into()) };
    staff::Entity::insert(of_staff).exec_without_returning(&installation.db).await.unwrap();
    let letters = letter::Entity::find().all(&installation.db).await.unwrap();
    let edited = &letters[1].id.to_string();
    let set = ["--set", "/participant/identity=somebody-else", "--set", "/participant/name=S"];
    let ran = rollcall(&installation, &[&["dlq", "edit", edited], &set[..]].concat()).await;
    assert!(ran.success, "{}", ran.stderr);
    let exported = rollcall(&installation, &["dlq", "export", "dead.jsonl", "--state", "all"]).await;
    assert!(exported.success, "{}", exported.stderr);
    // A recording of the class, which is told of.
    let of_class = session::Entity::find().one(&installation.db).await.unwrap().unwrap();
    let film = recording::ActiveModel {
        session_id: Set(of_class.id),
        source: Set("main".into()),
        record_id: Set("r-1".into()),
        status: Set("ready".into()),
        file_key: Set(Some("main/2026/11/r-1.mp4".into())),
        ..Default::default()
    };
    let film = film.insert(&installation.db).await.unwrap();

    let look = rollcall(&installation, &["person", "erase", ID, "--dry-run", "--json"]).await;
    let look: Value = serde_json::from_str(&look.stdout).unwrap();
    assert!(everything(&installation).await.contains(ID));
    let erased = erase(&installation, &[]).await;
    for found in [&look, &erased] {
        let count = |what: &str| found[what].as_u64().unwrap();
        let counts = ["sessions", "connections", "dead_letters", "edited_dead_letters", "staff"].map(count);
        assert_eq!(counts, [1, 1, 1, 1, 1], "{found}");
        assert_eq!(found["recordings_not_touched"], json!([{"id": film.id, "file_key": "main/2026/11/r-1.mp4"}]));
    }
    assert_eq!((&look["erased"], &erased["erased"]), (&json!(false), &json!(true)));
    is_nowhere(&everything(&installation).await);
    assert_eq!(people(&installation).await.len(), 1);

    // Sent again, the leave that comes late, what had died and dies now, an import, the room's end, a rebuild.
    let mut late = event("participant_left", "algebra", "PA_1", now - 600);
    late["created_at"] = (now + 3_600).to_string().into();
    for body in [&joined, &late, &dying("chemistry"), &ended("algebra")] {
        sender.post(&body.to_string()).await;
    }
    let storing = installation.spawn("rollcall-worker", &["dead-letters"]);
    broker::drained(&installation, LIMIT).await;
    storing.logs("stored dead letters").await;
    workers.push(storing);
    let imported = rollcall(&installation, &["dlq", "import", "dead.jsonl", "--json"]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&imported.stdout).unwrap(),
        json!({"imported": 0, "known": 0, "erased": 2}),
        "{}",
        imported.stderr
    );
    let rebuilt = rollcall(&installation, &["attendance", "rebuild", "--all"]).await;
    assert!(rebuilt.success, "{}", rebuilt.stderr);
    is_nowhere(&everything(&installation).await);

    // Whoever comes again is somebody new.
    sender.post(&event("participant_joined", "algebra", "PA_2", Utc::now().timestamp() + 5).to_string()).await;
    eventually(LIMIT, || async {
        if people(&installation).await.iter().any(|row| row.user_id == ID) {
            Ok(())
        } else {
            Err("not there".to_owned())
        }
    })
    .await;
    stop(workers).await;
}

async fn a_pseudonym_keeps_the_counts_and_nobody(installation: Installation) {
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    let now = Utc::now().timestamp();
    for (room, sid) in [("algebra", "PA_1"), ("algebra", "PA_2"), ("geometry", "PA_3")] {
        sender.post(&event("participant_left", room, sid, now - 600).to_string()).await;
    }
    let workers = vec![installation.worker("attendance").await, installation.worker("rooms").await];
    applied(&installation, 3, LIMIT).await;
    let before = people(&installation).await;
    let erased = erase(&installation, &["--pseudonymise"]).await;
    assert_eq!(
        (&erased["pseudonymised"], &erased["sessions"], &erased["connections"]),
        (&json!(true), &json!(2), &json!(3))
    );

    let told = everything(&installation).await;
    is_nowhere(&told);
    assert!(!told.contains("PA_1"), "{told}");
    let after = people(&installation).await;
    assert_eq!(after[0].user_id, after[1].user_id);
    assert!(after[0].user_id.starts_with("erased-"), "{}", after[0].user_id);
    let counts = |rows: &[user::Model]| {
        rows.iter().map(|row| (row.session_id, row.total_seconds, row.join_count)).collect::<Vec<_>>()
    };
    assert_eq!(counts(&before), counts(&after));
    // It comes to the same when it is derived again.
    let rebuilt = rollcall(&installation, &["attendance", "rebuild", "--all"]).await;
    assert!(rebuilt.stdout.contains("0 changed"), "{}", rebuilt.stdout);
    sender.post(&ended("algebra").to_string()).await;
    broker::drained(&installation, LIMIT).await;
    is_nowhere(&everything(&installation).await);
    stop(workers).await;
}

async fn an_id_of_two_servers_is_two_people(mut installation: Installation) {
    installation.server("other", "key-2", "secret-2", "http://127.0.0.1:1");
    let ingress = installation.ingress().await;
    let joined = event("participant_joined", "algebra", "PA_1", 1_790_000_000).to_string();
    for server in ["main", "other"] {
        Sender::new(&installation, server, ingress.address).post(&joined).await;
    }
    let worker = installation.worker("attendance").await;
    applied(&installation, 2, LIMIT).await;
    let which = rollcall(&installation, &["person", "erase", ID, "--reason", "x", "--yes"]).await;
    assert!(!which.success && which.stderr.contains("say --source, once or more, of main, other"), "{}", which.stderr);
    let none = rollcall(&installation, &["person", "erase", ID, "--reason", "x", "--yes", "--source", "mian"]).await;
    assert!(!none.success && none.stderr.contains("no server is called mian"), "{}", none.stderr);
    let unasked = rollcall(&installation, &["person", "erase", ID, "--reason", "x", "--source", "main"]).await;
    assert!(!unasked.success && unasked.stderr.contains("pass --yes"), "{}", unasked.stderr);
    assert_eq!(people(&installation).await.len(), 2);

    assert_eq!(erase(&installation, &["--source", "main"]).await["sessions"], 1);
    for server in ["main", "other"] {
        Sender::new(&installation, server, ingress.address).post(&joined).await;
    }
    broker::drained(&installation, LIMIT).await;
    let left = people(&installation).await;
    let of = session::Entity::find_by_id(left[0].session_id).one(&installation.db).await.unwrap().unwrap();
    assert_eq!((left.len(), of.source.as_str()), (1, "other"));
    stop([worker]).await;
}

/// A join that a worker is in the middle of while the person is erased. On PostgreSQL: in a file, only one can write.
#[tokio::test]
async fn who_is_written_down_just_now_is_erased_after_that() {
    let installation = Installation::new().await;
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    let worker = installation.worker("attendance").await;
    sender.post(&join("algebra", "somebody-else").to_string()).await;
    applied(&installation, 1, LIMIT).await;

    let held = installation.db.begin().await.unwrap();
    held.execute_unprepared("SELECT 1 FROM course_live_session FOR UPDATE").await.unwrap();
    sender.post(&event("participant_joined", "algebra", "PA_1", Utc::now().timestamp() - 60).to_string()).await;
    waiting(&installation, 1).await;
    erased_meanwhile(&installation, held).await;
    broker::drained(&installation, LIMIT).await;
    assert_eq!(
        (people(&installation).await.len(), interval::Entity::find().count(&installation.db).await.unwrap()),
        (1, 1)
    );
    is_nowhere(&everything(&installation).await);
    stop([worker]).await;
}

/// The end of a room, which a worker has read everybody for and writes down for each.
#[tokio::test]
async fn whoever_derives_a_session_brings_nobody_back() {
    let installation = Installation::new().await;
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    let workers = vec![installation.worker("attendance").await, installation.worker("rooms").await];
    // It is written first.
    sender.post(&join("algebra", "a-person-before").to_string()).await;
    sender.post(&event("participant_joined", "algebra", "PA_1", Utc::now().timestamp() - 60).to_string()).await;
    applied(&installation, 2, LIMIT).await;

    let held = installation.db.begin().await.unwrap();
    let first = "SELECT 1 FROM live_session_user WHERE user_id = 'a-person-before' FOR UPDATE";
    held.execute_unprepared(first).await.unwrap();
    sender.post(&ended("algebra").to_string()).await;
    waiting(&installation, 1).await;
    erased_meanwhile(&installation, held).await;
    broker::drained(&installation, LIMIT).await;
    assert!(people(&installation).await.iter().all(|row| !row.is_online), "the end is written down");
    is_nowhere(&everything(&installation).await);
    stop(workers).await;
}

/// Erases the person while somebody else waits for what is held, and lets go of it once the erasure waits too, or is done.
async fn erased_meanwhile(installation: &Installation, held: DatabaseTransaction) {
    let mut erasing = installation.spawn("rollcall", &["person", "erase", ID, "--reason", "x", "--yes"]);
    eventually(LIMIT, || async {
        let is_done = erasing.output().contains("Erased");
        if is_done || waits(installation).await > 1 { Ok(()) } else { Err("it has not come so far".to_owned()) }
    })
    .await;
    held.commit().await.unwrap();
    assert!(erasing.ended().await.success(), "{}", erasing.log());
}

async fn waiting(installation: &Installation, count: i64) {
    eventually(LIMIT, || async {
        let waiting = waits(installation).await;
        if waiting == count { Ok(()) } else { Err(format!("{waiting} wait")) }
    })
    .await;
}

/// How many sessions with the database wait for another.
async fn waits(installation: &Installation) -> i64 {
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let waiting = installation.db.query_one_raw(Statement::from_string(DbBackend::Postgres, waiting)).await.unwrap();
    waiting.unwrap().try_get_by_index(0).unwrap()
}

async fn what_is_kept_for_long_enough_is_removed(mut installation: Installation) {
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    // Over for long, over since yesterday, and never ended.
    for room in ["old", "new", "open", "busy"] {
        sender.post(&event("participant_joined", room, "PA_1", 1_790_000_000).to_string()).await;
    }
    sender.post(&dying("algebra").to_string()).await;
    sender.post(&dying("geometry").to_string()).await;
    let worker = installation.worker("attendance").await;
    let storing = installation.spawn("rollcall-worker", &["dead-letters"]);
    applied(&installation, 4, LIMIT).await;
    dead(&installation, 2).await;
    stop([worker, storing]).await;
    let ago = |days| Utc::now() - TimeDelta::days(days);
    for (room, ended_at, days) in
        [("old", Some(ago(31)), 0), ("new", Some(ago(1)), 40), ("open", None, 40), ("busy", None, 40)]
    {
        let row = session::Entity::find().filter(session::Column::RoomId.eq(room)).one(&installation.db).await.unwrap();
        let id = row.unwrap().id;
        let changed = session::ActiveModel {
            id: Set(id),
            ended_at: Set(ended_at),
            started_at: Set(Some(ago(40))),
            ..Default::default()
        };
        session::Entity::update(changed).exec(&installation.db).await.unwrap();
        if room == "open" {
            let untouched = user::ActiveModel { updated_at: Set(ago(days)), ..Default::default() };
            let of_session = user::Entity::update_many().set(untouched).filter(user::Column::SessionId.eq(id));
            of_session.exec(&installation.db).await.unwrap();
        }
    }
    let letters = letter::Entity::find().all(&installation.db).await.unwrap();
    let untouched = letter::ActiveModel { id: Set(letters[0].id), updated_at: Set(ago(31)), ..Default::default() };
    letter::Entity::update(untouched).exec(&installation.db).await.unwrap();

    // Unless somebody says so, for ever.
    let keeping = installation.spawn("rollcall-worker", &["dead-letters"]);
    keeping.logs("taking dead letters").await;
    stop([keeping]).await;
    assert_eq!(
        (people(&installation).await.len(), letter::Entity::find().count(&installation.db).await.unwrap()),
        (4, 2)
    );

    installation.set("attendance.keep", "30days");
    installation.set("dead_letters.keep_dead", "30days");
    let keeping = installation.spawn("rollcall-worker", &["dead-letters"]);
    dead(&installation, 1).await;
    eventually(LIMIT, || async {
        let mut left = BTreeMap::new();
        for row in session::Entity::find().all(&installation.db).await.unwrap() {
            let people = user::Entity::find().filter(user::Column::SessionId.eq(row.id)).count(&installation.db);
            let connections =
                interval::Entity::find().filter(interval::Column::SessionId.eq(row.id)).count(&installation.db);
            left.insert(row.room_id, (people.await.unwrap(), connections.await.unwrap()));
        }
        let wanted = [("busy", (1, 1)), ("new", (1, 1)), ("old", (0, 0)), ("open", (0, 0))];
        let is_so = left == wanted.map(|(room, counts)| (room.to_owned(), counts)).into();
        if is_so { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    assert_eq!(letter::Entity::find().one(&installation.db).await.unwrap().unwrap().id, letters[1].id);
    stop([keeping]).await;
    let doctor = rollcall(&installation, &["doctor"]).await;
    assert!(doctor.stdout.contains("is kept for 30days (attendance.keep)"), "{}", doctor.stdout);
}

async fn every_column_is_in_the_catalogue(installation: Installation) {
    let db = &installation.db;
    let columns = match db.get_database_backend() {
        DbBackend::Sqlite => {
            "SELECT t.name AS table_name, c.name AS column_name FROM sqlite_master t, pragma_table_info(t.name) c \
             WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
        }
        _ => "SELECT table_name::text, column_name::text FROM information_schema.columns WHERE table_schema = 'public'",
    };
    let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), columns)).await.unwrap();
    let mut schema: Vec<(String, String)> = rows
        .into_iter()
        .map(|row| (row.try_get("", "table_name").unwrap(), row.try_get("", "column_name").unwrap()))
        .filter(|(table, _)| table != "seaql_migrations")
        .collect();
    let of_table = |table: catalogue::Table| {
        let columns = table.personal.iter().chain(table.others);
        columns.map(|column| (table.name.to_owned(), (*column).to_owned())).collect::<Vec<_>>()
    };
    let mut catalogue: Vec<_> = catalogue::TABLES.into_iter().flat_map(of_table).collect();
    schema.sort_unstable();
    catalogue.sort_unstable();
    assert_eq!(catalogue, schema, "say in shared/src/erasure/catalogue.rs what a new column holds");
}
