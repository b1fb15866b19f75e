//! The schema goes up and down again, on both databases, by the operator's tool.

use std::collections::BTreeSet;

use rollcall_migrations::{Migrator, MigratorTrait as _};
use rollcall_shared::config::SecretUrl;
use rollcall_shared::store;
use rollcall_tests::installation::program_path;
use rollcall_tests::services;
use sea_orm::{ConnectionTrait as _, Statement};
use tokio::process::Command;
use uuid::Uuid;

const TABLES: [&str; 8] = [
    "course",
    "course_staff",
    "course_live_session",
    "live_session_start",
    "live_session_user",
    "live_session_interval",
    "live_session_recording",
    "dead_letter",
];

async fn migrate(database: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program_path("rollcall"))
        .arg("migrate")
        .args(arguments)
        .args(["--database", database])
        .current_dir(services::directory())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

async fn tables(database: &str) -> BTreeSet<String> {
    let db = store::connect(&SecretUrl::parse(database).unwrap(), 1).await.unwrap();
    let sql = if database.starts_with("sqlite") {
        "SELECT name FROM sqlite_master WHERE type = 'table'"
    } else {
        "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'public'"
    };
    let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await.unwrap();
    rows.into_iter().map(|row| row.try_get::<String>("", "name").unwrap()).collect()
}

async fn up_and_down(database: &str) {
    let (pending, text) = migrate(database, &["status"]).await;
    assert!(!pending, "{text}");
    let all = Migrator::migrations().len().to_string();
    for _ in 0..2 {
        let (done, text) = migrate(database, &["up"]).await;
        assert!(done, "{text}");
        let found = tables(database).await;
        assert!(TABLES.iter().all(|table| found.contains(*table)), "{found:?}");
        assert!(migrate(database, &["status"]).await.0);
        // What is up already stays.
        assert!(migrate(database, &["up"]).await.0);
        let (done, text) = migrate(database, &["down", &all, "--yes"]).await;
        assert!(done, "{text}");
        let found = tables(database).await;
        assert!(TABLES.iter().all(|table| !found.contains(*table)), "{found:?}");
    }
}

#[tokio::test]
async fn postgresql_goes_up_and_down() {
    let server = services::shared_postgres();
    let name = format!("m{}", Uuid::new_v4().simple());
    let db = store::connect(&SecretUrl::parse(&server).unwrap(), 1).await.unwrap();
    db.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
    let (before, _) = server.rsplit_once('/').unwrap();
    up_and_down(&format!("{before}/{name}")).await;
}

#[tokio::test]
async fn sqlite_goes_up_and_down() {
    let folder = services::directory().join(format!("m{}", Uuid::new_v4().simple()));
    std::fs::create_dir_all(&folder).unwrap();
    up_and_down(&format!("sqlite://{}/rollcall.db?mode=rwc", folder.display())).await;
}
