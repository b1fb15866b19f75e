//! A hundred thousand dead letters: seen at once, sent back fast and in little memory, and each applied once although the
//! command is killed in the middle. `make soak` runs it.

#![allow(clippy::print_stdout, reason = "what was measured is told")]

use std::time::{Duration, Instant};

use rollcall_shared::store::entity::{dead_letter as letter, live_session_user};
use rollcall_tests::command::rollcall;
use rollcall_tests::eventually;
use rollcall_tests::installation::{Installation, Process};
use rollcall_tests::joins::{CapturedJoin, applied};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DbBackend, EntityTrait as _, PaginatorTrait as _, QueryFilter as _,
    Statement,
};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(600);
const LETTERS: u64 = 100_000;
/// How often to look how a replay is doing.
const LOOK: Duration = Duration::from_millis(100);
/// How long looking at them may take, from the shell's point of view.
const AT_ONCE: Duration = Duration::from_secs(1);
/// A second.
const FAST: f64 = 5_000.0;
const LITTLE_KIB: u64 = 64 * 1024;

#[tokio::test]
#[ignore = "it takes minutes, and wants a release build"]
async fn a_hundred_thousand_are_seen_at_once_and_replayed_fast_in_little_memory_each_once() {
    let installation = Installation::new().await;
    die(&installation).await;
    for arguments in
        [&["dlq", "groups"][..], &["dlq", "list"], &["dlq", "list", "--cause", "cause-3", "--since", "30days"]]
    {
        let began = Instant::now();
        let done = rollcall(&installation, arguments).await;
        let took = began.elapsed();
        println!("rollcall {}: {took:.0?}", arguments.join(" "));
        assert!(done.success && took < AT_ONCE, "{took:?} {done:?}");
    }

    // Killed half way.
    let (first, _) = replay(&installation, Some(LETTERS / 2)).await;
    let sent = confirmed(&installation).await;
    assert!((LETTERS / 2..LETTERS).contains(&sent), "{sent} were marked when it was killed");
    // Run again: the rest, and a page or two of the first half once more.
    let (second, memory) = replay(&installation, None).await;
    assert_eq!(confirmed(&installation).await, LETTERS);
    println!("replay: {first:.0}/s until it was killed at {sent}, {second:.0}/s for the rest, {memory} KiB at most");
    assert!(first > FAST && second > FAST, "{first:.0} and {second:.0} a second");
    assert!(memory < LITTLE_KIB, "{memory} KiB");

    let began = Instant::now();
    let worker = installation.worker("attendance").await;
    applied(&installation, LETTERS, LIMIT).await;
    eventually(LIMIT, || async {
        let left = letter::Entity::find().filter(letter::Column::State.ne("applied"));
        let left = left.count(&installation.db).await.unwrap();
        if left == 0 { Ok(()) } else { Err(format!("{left} are not applied")) }
    })
    .await;
    println!("applied by one worker after {:.1?}", began.elapsed());
    worker.stop().await;
    // Once in effect: nobody has joined twice, and nobody is missing.
    let people = live_session_user::Entity::find().filter(live_session_user::Column::JoinCount.eq(1));
    assert_eq!(people.count(&installation.db).await.unwrap(), LETTERS);
    assert_eq!(live_session_user::Entity::find().count(&installation.db).await.unwrap(), LETTERS);
}

/// Makes so many joins that have died, of four causes, each as long as a real one.
async fn die(installation: &Installation) {
    // A statement takes no longer than half a minute.
    const AT_ONCE: u64 = 10_000;
    let body = CapturedJoin::load().of("@ROOM@", "@PERSON@");
    for first in (1..=LETTERS).step_by(AT_ONCE as usize) {
        let insert = "INSERT INTO dead_letter (message_id, worker, event, event_id, source, room_id, user_id, received_at, \
            state, kind, cause, error, attempts, first_failed_at, last_failed_at, created_at, updated_at, headers, body) \
            SELECT gen_random_uuid()::text, 'attendance', 'participant_joined', 'EV_p' || n, 'main', 'room-' || n % 500, \
            'p' || n, now(), 'dead', 'exhausted', 'cause-' || n % 4, 'whatever it was, of person p' || n, 7, now(), \
            now() - n * interval '1 second', now(), now(), '{}', \
            convert_to(replace(replace($1, '@PERSON@', 'p' || n), '@ROOM@', 'room-' || n % 500), 'UTF8') \
            FROM generate_series($2, $2 + $3 - 1) n";
        let values = [body.as_str().into(), first.cast_signed().into(), AT_ONCE.cast_signed().into()];
        let insert = Statement::from_sql_and_values(DbBackend::Postgres, insert, values);
        installation.db.execute_raw(insert).await.unwrap();
    }
}

/// How many were sent back and confirmed.
async fn confirmed(installation: &Installation) -> u64 {
    letter::Entity::find().filter(letter::Column::Replays.gte(1)).count(&installation.db).await.unwrap()
}

/// Sends back all that are dead, or kills the command once so many were; how many a second, and how much memory it took at
/// most, in KiB.
async fn replay(installation: &Installation, kill_at: Option<u64>) -> (f64, u64) {
    let (before, began) = (confirmed(installation).await, Instant::now());
    let mut process = installation.spawn("rollcall", &["dlq", "replay", "--all", "--yes"]);
    let mut memory = 0;
    loop {
        match timeout(LOOK, process.ended()).await {
            Ok(status) => {
                assert!(status.success(), "{}", process.log());
                break;
            }
            Err(_) => memory = memory.max(peak_kib(&process).unwrap_or_default()),
        }
        if let Some(kill_at) = kill_at
            && confirmed(installation).await >= kill_at
        {
            process.kill().await;
            break;
        }
    }
    let took = began.elapsed();
    ((confirmed(installation).await - before) as f64 / took.as_secs_f64(), memory)
}

/// How much memory a process had resident at most, while it runs.
fn peak_kib(process: &Process) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
