use super::*;
use crate::recordings::tests::{Database, insert_recording};

const LONG: Duration = Duration::from_secs(600);
/// Has run out before anybody can ask.
const NONE: Duration = Duration::ZERO;

async fn ask(db: &DatabaseConnection, id: i64, length: Duration) -> Asked {
    Lease::ask(db, id, length).await.unwrap()
}

async fn ours(db: &DatabaseConnection, id: i64, length: Duration) -> Lease {
    match ask(db, id, length).await {
        Asked::Ours(lease) => lease,
        other => panic!("{other:?}"),
    }
}

async fn ends(lease: &Lease, failure: Option<&Failure>) -> bool {
    let end = transaction(&lease.db, |tx| async move {
        Ok(match failure {
            Some(failure) => lease.end_with(&tx, failure).await?,
            None => lease.end(&tx).await?,
        })
    });
    end.await.unwrap()
}

#[tokio::test]
async fn one_job_has_it_until_it_runs_out_or_is_given_back() {
    for database in Database::each().await {
        let db = &database.connection;
        let id = insert_recording(db, "r-1").await;
        let first = ours(db, id, LONG).await;
        assert!(matches!(ask(db, id, LONG).await, Asked::Held));
        assert_eq!(holders(db).await.unwrap(), [first.holder()]);
        assert!(ends(&first, None).await);

        let second = ours(db, id, NONE).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        // It has run out, and nobody took it: its files are not to be swept away yet.
        assert_eq!(holders(db).await.unwrap(), [second.holder()]);
        assert!(second.renew().await.unwrap());
        tokio::time::sleep(Duration::from_millis(5)).await;
        let third = ours(db, id, LONG).await;
        assert!(!second.renew().await.unwrap());
        assert!(!ends(&second, None).await);
        assert!(third.renew().await.unwrap());
    }
}

#[tokio::test]
async fn a_failure_is_told_once() {
    for database in Database::each().await {
        let db = &database.connection;
        let id = insert_recording(db, "r-1").await;
        let failure = Failure::permanent(anyhow::anyhow!("gone"));
        assert!(ends(&ours(db, id, LONG).await, Some(&failure)).await);
        match ask(db, id, LONG).await {
            Asked::Failed(Failure::Permanent(error)) => assert_eq!(error.to_string(), "gone"),
            other => panic!("{other:?}"),
        }
        ours(db, id, LONG).await;
    }
}

#[tokio::test]
async fn many_ask_and_one_gets_it() {
    for database in Database::each().await {
        let db = &database.connection;
        let id = insert_recording(db, "r-1").await;
        let asked = futures_util::future::join_all((0..8).map(|_| ask(db, id, LONG))).await;
        assert_eq!(asked.iter().filter(|asked| matches!(asked, Asked::Ours(_))).count(), 1);
    }
}

#[tokio::test]
async fn a_holder_that_was_replaced_finds_out() {
    for database in Database::each().await {
        let db = &database.connection;
        let id = insert_recording(db, "r-1").await;
        let first = Lease { length: Duration::from_millis(60), ..ours(db, id, NONE).await };
        tokio::time::sleep(Duration::from_millis(5)).await;
        let _second = ours(db, id, LONG).await;
        first.keep().await;
    }
}

/// A holder that has been taken for dead.
async fn dead(db: &DatabaseConnection, id: i64) -> Lease {
    let lease = ours(db, id, NONE).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    lease
}

#[tokio::test]
async fn who_dies_of_a_recording_is_counted_until_somebody_does_not() {
    for database in Database::each().await {
        let db = &database.connection;
        let id = insert_recording(db, "r-1").await;
        for _ in 1..MOST_DEATHS {
            dead(db, id).await;
        }
        assert!(ends(&ours(db, id, LONG).await, None).await);
        for _ in 0..MOST_DEATHS {
            dead(db, id).await;
        }
        for _ in 0..2 {
            assert!(matches!(ask(db, id, LONG).await, Asked::Poison));
        }
        transaction(db, |tx| async move { Ok(begin_anew(&tx, id).await?) }).await.unwrap();
        for _ in 0..MOST_DEATHS {
            dead(db, id).await;
        }
        assert!(matches!(ask(db, id, LONG).await, Asked::Poison));
    }
}

/// It finds that its lease is another's.
async fn lives(lease: &Lease) {
    transaction(&lease.db, |tx| async move { Ok(lease.take_death_back(&tx).await?) }).await.unwrap();
}

#[tokio::test]
async fn who_was_taken_for_dead_and_lives_has_not_died() {
    for database in Database::each().await {
        let db = &database.connection;
        let id = insert_recording(db, "r-1").await;
        // One after the other is without its database for too long, and comes back once another has its lease.
        let mut before = dead(db, id).await;
        for _ in 0..2 * MOST_DEATHS {
            let next = dead(db, id).await;
            lives(&before).await;
            before = next;
        }
        let last = ours(db, id, LONG).await;
        lives(&before).await;
        assert!(ends(&last, None).await);
        // Nothing is left to take back.
        lives(&before).await;
        for _ in 0..MOST_DEATHS {
            dead(db, id).await;
        }
        assert!(matches!(ask(db, id, LONG).await, Asked::Poison));
    }
}

#[tokio::test]
async fn a_lease_that_a_clock_has_given_that_was_ahead_has_run_out() {
    for database in Database::each().await {
        let db = &database.connection;
        let id = insert_recording(db, "r-1").await;
        ours(db, id, LONG).await;
        for (ahead, has_run_out) in [(LONG, false), (3 * LONG, true), (100 * LONG, true)] {
            let until = Clock::of(db).after(ahead);
            let sql = format!("UPDATE recording_lease SET expires_at = {until}");
            db.execute_unprepared(&sql).await.unwrap();
            let running = rollcall_shared::oversight::recordings_in_progress(db).await.unwrap().len();
            assert_eq!(running, usize::from(!has_run_out), "{ahead:?}");
            assert_eq!(matches!(ask(db, id, LONG).await, Asked::Ours(_)), has_run_out, "{ahead:?}");
        }
    }
}
