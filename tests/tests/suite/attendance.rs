//! `rollcall attendance rebuild` derives people's rows again: those that are meant, as they must be, beside everything else.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_shared::store::entity::{course_live_session, live_session_interval, live_session_user};
use rollcall_tests::command::{Done, rollcall};
use rollcall_tests::installation::Installation;
use rollcall_tests::joins::{applied, join};
use rollcall_tests::load::{Load, all_applied};
use rollcall_tests::webhooks::Sender;
use rollcall_tests::{eventually, fixtures};
use sea_orm::{ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(120);

rollcall_tests::on_both_back_ends!(
    who_became_staff_later_is_a_moderator_after_it,
    damaged_rows_of_captured_classes_are_healed,
    only_what_is_selected_is_derived,
    what_cannot_be_done_is_said,
    killed_half_way_and_run_again_it_heals_everything,
    beside_workers_under_load_nothing_is_lost_or_wrong,
);

async fn rebuild(installation: &Installation, arguments: &[&str]) -> Done {
    rollcall(installation, &[&["attendance", "rebuild"], arguments].concat()).await
}

/// It goes well and says this.
async fn rebuilds(installation: &Installation, arguments: &[&str], says: &str) {
    let done = rebuild(installation, arguments).await;
    assert!(done.success && done.stdout == says, "{arguments:?}: {done:?}");
}

async fn all_rows(installation: &Installation) -> Vec<live_session_user::Model> {
    live_session_user::Entity::find().all(&installation.db).await.unwrap()
}

/// Everybody's row, where nobody is in two rooms: by person.
async fn rows(installation: &Installation) -> BTreeMap<String, live_session_user::Model> {
    all_rows(installation).await.into_iter().map(|row| (row.user_id.clone(), row)).collect()
}

async fn execute(installation: &Installation, sql: &str) {
    installation.db.execute_unprepared(sql).await.unwrap();
}

/// Rooms of these names, each with one person of the room's name who stays 100 seconds. Of `principal`, the server says that they
/// moderate.
async fn attended(installation: &Installation, rooms: &[&str]) {
    let ingress = installation.ingress().await;
    let workers = installation.attendance_and_rooms(1).await;
    let sender = Sender::new(installation, "main", ingress.address);
    for room in rooms {
        sender.post(&join(room, room).to_string()).await;
        let left = json!({"event": "participant_left", "id": format!("EV_left_{room}"), "created_at": "1790000100",
                          "room": {"sid": format!("sid-of-{room}"), "room_id": room},
                          "participant": {"sid": format!("PA_{room}"), "identity": room, "joined_at": "1790000000",
                                          "metadata": json!({"is_admin": *room == "principal"}).to_string()}});
        sender.post(&left.to_string()).await;
    }
    eventually(LIMIT, || async {
        let left = live_session_user::Entity::find().filter(live_session_user::Column::TotalSeconds.eq(100));
        let left = left.count(&installation.db).await.unwrap();
        if left == rooms.len() as u64 { Ok(()) } else { Err(format!("{left} have left")) }
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
}

async fn session_of(installation: &Installation, room: &str) -> i64 {
    let session = course_live_session::Entity::find().filter(course_live_session::Column::RoomId.eq(room));
    session.one(&installation.db).await.unwrap().unwrap().id
}

async fn who_became_staff_later_is_a_moderator_after_it(installation: Installation) {
    attended(&installation, &["teacher", "student", "imported", "principal"]).await;
    let before = rows(&installation).await;
    let roles = before.iter().map(|(person, row)| (person.as_str(), row.role.as_str()));
    let (someone, known) = ("participant", "moderator");
    let expected = [("imported", someone), ("principal", known), ("student", someone), ("teacher", someone)];
    assert_eq!(roles.collect::<Vec<_>>(), expected);
    execute(&installation, "INSERT INTO course (slug) VALUES ('algebra')").await;
    execute(&installation, "INSERT INTO course_staff SELECT id, 'teacher' FROM course").await;
    execute(&installation, "UPDATE course_live_session SET course_id = (SELECT id FROM course)").await;
    // A row of somebody else's making, with a total that nothing here tells of.
    execute(&installation, "DELETE FROM live_session_interval WHERE user_id = 'imported'").await;

    let left_alone = "Left alone: 1 row without any connection to derive from.\n";
    let says = format!("Derived the rows of 3 people in 4 sessions: 1 changed.\n{left_alone}");
    rebuilds(&installation, &["--course", "algebra"], &says).await;
    let after = rows(&installation).await;
    assert_eq!(after["teacher"].role, "moderator");
    assert!(after["teacher"].updated_at > before["teacher"].updated_at);
    assert_eq!(after["teacher"].created_at, before["teacher"].created_at);
    // Whoever looks for what has changed finds only that.
    for untouched in ["student", "imported", "principal"] {
        assert_eq!(after[untouched], before[untouched]);
    }

    let says = format!("Derived the rows of 3 people in 4 sessions: 0 changed.\n{left_alone}");
    rebuilds(&installation, &["--all"], &says).await;
    assert_eq!(rows(&installation).await, after);
    execute(&installation, "DELETE FROM course_staff").await;
    execute(&installation, "UPDATE live_session_user SET role = 'participant' WHERE user_id = 'principal'").await;
    let says = format!("Derived the rows of 3 people in 4 sessions: 2 changed.\n{left_alone}");
    rebuilds(&installation, &["--all"], &says).await;
    let after = rows(&installation).await;
    assert_eq!((after["teacher"].role.as_str(), after["principal"].role.as_str()), (someone, known));
}

async fn damaged_rows_of_captured_classes_are_healed(mut installation: Installation) {
    let (classes, expected) = (fixtures::classes(), fixtures::expected());
    for class in classes.keys() {
        installation.server(class, &format!("key-{class}"), &format!("secret-{class}"), "http://127.0.0.1:1");
    }
    let ingress = installation.ingress().await;
    let _workers = installation.attendance_and_rooms(1).await;
    for (class, webhooks) in &classes {
        let sender = Sender::new(&installation, class, ingress.address);
        for webhook in webhooks {
            sender.post(&webhook.body).await;
        }
    }
    for class in classes.keys() {
        eventually(LIMIT, || async {
            let found = fixtures::attendance(&installation.db, class).await;
            if found == expected[class]["whole"] { Ok(()) } else { Err(format!("{class}: {found:#}")) }
        })
        .await;
    }
    let before = all_rows(&installation).await;
    let damage = "UPDATE live_session_user SET total_seconds = total_seconds + 7, join_count = 0, role = 'nobody', \
                  entered_at = NULL, is_online = NOT is_online, exited_at = '2001-01-01 00:00:00+00:00'";
    execute(&installation, damage).await;
    execute(&installation, "DELETE FROM live_session_user WHERE id % 3 = 0").await;
    for class in classes.keys() {
        assert_ne!(fixtures::attendance(&installation.db, class).await, expected[class]["whole"]);
    }
    let Done { success, stdout, stderr } = rebuild(&installation, &["--all"]).await;
    assert!(success && stdout.starts_with("Derived the rows of "), "{stdout}{stderr}");
    for class in classes.keys() {
        assert_eq!(fixtures::attendance(&installation.db, class).await, expected[class]["whole"], "{class}");
    }
    // What the server said is in the row itself: where that is still there, so are name and role.
    let after = all_rows(&installation).await;
    let kept = before.iter().filter(|row| row.id % 3 != 0);
    for before in kept {
        let after = after.iter().find(|row| row.id == before.id).unwrap();
        assert_eq!((&after.role, &after.name), (&before.role, &before.name));
    }
}

/// Makes every total wrong, rebuilds, and expects this of the totals of these rooms to be right again.
async fn heals(installation: &Installation, arguments: &[&str], rooms: &[&str]) {
    execute(installation, "UPDATE live_session_user SET total_seconds = 5").await;
    let Done { success, stdout, stderr } = rebuild(installation, arguments).await;
    assert!(success, "{arguments:?}: {stderr}");
    let healed = rows(installation).await.into_values().filter(|row| row.total_seconds == 100);
    let healed: Vec<_> = healed.map(|row| row.user_id).collect();
    assert_eq!(healed, rooms, "{arguments:?}: {stdout}");
}

async fn only_what_is_selected_is_derived(installation: Installation) {
    attended(&installation, &["a", "b", "c", "d"]).await;
    execute(&installation, "INSERT INTO course (slug) VALUES ('algebra'), ('physics')").await;
    for (room, course) in [("a", "algebra"), ("b", "algebra"), ("c", "physics")] {
        let session = session_of(&installation, room).await;
        let sql = "UPDATE course_live_session SET course_id = (SELECT id FROM course WHERE slug =";
        execute(&installation, &format!("{sql} '{course}') WHERE id = {session}")).await;
    }
    // Begun: a in 2020, b three hours ago, c at no known time and so when its row was made, d as its join says: in 2026.
    execute(
        &installation,
        "UPDATE course_live_session SET started_at = '2020-01-01T10:00:00+00:00' WHERE room_id = 'a'",
    )
    .await;
    let three_hours_ago = (chrono::Utc::now() - chrono::TimeDelta::hours(3)).to_rfc3339();
    execute(
        &installation,
        &format!("UPDATE course_live_session SET started_at = '{three_hours_ago}' WHERE room_id = 'b'"),
    )
    .await;
    execute(&installation, "UPDATE course_live_session SET started_at = NULL WHERE room_id = 'c'").await;
    let [a, d] = [session_of(&installation, "a").await.to_string(), session_of(&installation, "d").await.to_string()];
    let physics = "SELECT id FROM course WHERE slug = 'physics'";
    let physics = sea_orm::Statement::from_string(installation.db.get_database_backend(), physics);
    let physics = installation.db.query_one_raw(physics).await.unwrap().unwrap();
    let physics: i64 = physics.try_get_by_index(0).unwrap();

    for (arguments, rooms) in [
        (vec!["--session", &a], &["a"][..]),
        (vec!["--session", &a, "--session", &d], &["a", "d"]),
        (vec!["--course", "algebra"], &["a", "b"]),
        (vec!["--course", &physics.to_string()], &["c"]),
        (vec!["--since", "1790000000"], &["b", "c", "d"]),
        (vec!["--since", "1790000001"], &["b", "c"]),
        (vec!["--since", "2026-09-21T14:13:20Z"], &["b", "c", "d"]),
        (vec!["--since", "2020-01-01T10:00:00Z"], &["a", "b", "c", "d"]),
        (vec!["--since", "2020-01-01T10:00:01Z"], &["b", "c", "d"]),
        (vec!["--since", "4h"], &["b", "c"]),
        (vec!["--since", "2h"], &["c"]),
        (vec!["--course", "algebra", "--since", "2days"], &["b"]),
        (vec!["--course", "algebra", "--session", &d], &[]),
        (vec!["--all"], &["a", "b", "c", "d"]),
    ] {
        heals(&installation, &arguments, rooms).await;
    }
}

async fn what_cannot_be_done_is_said(installation: Installation) {
    execute(&installation, "INSERT INTO course (slug) VALUES ('2'), ('algebra'), ('physics')").await;
    for (arguments, says) in [
        (&[][..], "which sessions? Say so with --session, --course or --since, or --all for every one"),
        (&["--session", "99"], "there is no session 99 in course_live_session"),
        (&["--course", "chemistry"], "there is no course with the slug or the id chemistry"),
        (&["--course", "2"], "2 is the slug of one course and the id of another"),
        (
            &["--since", "yesterday"],
            "it is RFC 3339 (2026-11-22T09:00:00Z), a day (2026-11-22, UTC), Unix seconds, or how long ago",
        ),
        (&["--all", "--course", "algebra"], "cannot be used with"),
    ] {
        let Done { success, stdout, stderr } = rebuild(&installation, arguments).await;
        assert!(!success && stdout.is_empty() && stderr.contains(says), "{arguments:?}: {stdout}{stderr}");
    }
    let Done { success, stdout, stderr } = rebuild(&installation, &["--course", "algebra"]).await;
    assert!(success && stdout.is_empty(), "{stdout}{stderr}");
    assert_eq!(stderr, "No session matches: nothing was done.\n");

    execute(&installation, "DROP TABLE seaql_migrations").await;
    let Done { success, stderr, .. } = rebuild(&installation, &["--all"]).await;
    assert!(!success && stderr.contains("run `rollcall migrate`"), "{stderr}");
}

/// So many sessions with people in them, the first with the most; one row in five is missing, and the others are wrong.
async fn damaged(installation: &Installation, sessions: usize) -> u64 {
    let numbers =
        |until: usize| format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {until})");
    let (begin, end) = ("'2026-11-22 09:00:00+00:00'", "'2026-11-22 10:00:00+00:00'");
    execute(
        installation,
        &format!(
            "{} INSERT INTO course_live_session (source, room_id, room_sid, started_at, ended_at) \
             SELECT 'main', 'room-' || i, 'sid-' || i, {begin}, {end} FROM n",
            numbers(sessions)
        ),
    )
    .await;
    let interval = "INSERT INTO live_session_interval (session_id, user_id, participant_sid, joined_at)";
    for (people, of) in [(1_200, "id = (SELECT min(id) FROM course_live_session)"), (6, "true")] {
        let people = numbers(people);
        let sql = format!(
            "{people} {interval} SELECT id, 'person-' || i, 'PA-{of}-' || i, {begin} FROM n, course_live_session WHERE {of}"
        );
        execute(installation, &sql).await;
    }
    execute(
        installation,
        "INSERT INTO live_session_user (session_id, user_id, role, is_online, total_seconds, join_count) \
         SELECT DISTINCT session_id, user_id, 'participant', true, 5, 1 FROM live_session_interval WHERE id % 5 > 0",
    )
    .await;
    1_200 + 6 * (sessions as u64 - 1)
}

async fn healed(installation: &Installation) -> u64 {
    let healed = live_session_user::Entity::find()
        .filter(live_session_user::Column::TotalSeconds.eq(3_600))
        .filter(live_session_user::Column::IsOnline.eq(false));
    healed.count(&installation.db).await.unwrap()
}

async fn killed_half_way_and_run_again_it_heals_everything(installation: Installation) {
    const SESSIONS: usize = 3_000;
    let people = damaged(&installation, SESSIONS).await;
    let killed = installation.spawn("rollcall", &["attendance", "rebuild", "--all"]);
    eventually(LIMIT, || async { if healed(&installation).await > 0 { Ok(()) } else { Err("none is healed".into()) } })
        .await;
    killed.kill().await;
    let before = healed(&installation).await;
    assert!((1..people).contains(&before), "{before} of {people}: nothing was interrupted");

    let says = format!("Derived the rows of {people} people in {SESSIONS} sessions: {} changed.\n", people - before);
    rebuilds(&installation, &["--all"], &says).await;
    assert_eq!(healed(&installation).await, people);
    let says = format!("Derived the rows of {people} people in {SESSIONS} sessions: 0 changed.\n");
    rebuilds(&installation, &["--all"], &says).await;
}

async fn beside_workers_under_load_nothing_is_lost_or_wrong(mut installation: Installation) {
    // Small batches of two processes each, so that all meet in the same sessions.
    installation.set("workers.batch_size", 20);
    let ingress = installation.ingress().await;
    let workers = installation.attendance_and_rooms(2).await;
    let load = Load::start(&installation, ingress.address);
    applied(&installation, 100, LIMIT).await;
    for round in 0..10 {
        let killed = installation.spawn("rollcall", &["attendance", "rebuild", "--all"]);
        execute(&installation, "UPDATE live_session_user SET total_seconds = 5, join_count = 7 WHERE id % 10 = 0")
            .await;
        execute(&installation, "DELETE FROM live_session_user WHERE id % 10 = 1").await;
        load.goes_on(20, LIMIT).await;
        killed.kill().await;
        let Done { success, stdout, stderr } = rebuild(&installation, &["--all"]).await;
        assert!(success, "round {round}: {stdout}{stderr}");
    }
    let accepted = load.stop().await;
    all_applied(&installation, &accepted, LIMIT).await;
    for worker in workers {
        worker.stop().await;
    }

    let people = all_rows(&installation).await;
    let intervals = live_session_interval::Entity::find().count(&installation.db).await.unwrap();
    assert_eq!(people.len() as u64, intervals);
    let wrong = people.iter().find(|row| !row.is_online || row.total_seconds != 0);
    assert!(wrong.is_none(), "{wrong:?}");
    let says = format!("Derived the rows of {intervals} people in 8 sessions: 0 changed.\n");
    rebuilds(&installation, &["--all"], &says).await;
}
