//! `rollcall migrate`: brings the database's tables to this version, or back.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use rollcall_migrations::{Migrator, MigratorTrait};
use rollcall_shared::config::{SecretUrl, Settings};
use rollcall_shared::store::entity::{
    course, course_live_session, course_staff, dead_letter, live_session_interval, live_session_recording,
    live_session_start, live_session_user,
};
use rollcall_shared::{private, store};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, EntityName, Statement};

use crate::{confirm, output};

/// The key of the PostgreSQL advisory lock that one migration at a time holds: "rollcall" in ASCII.
const LOCK: i64 = i64::from_be_bytes(*b"rollcall");

/// Bring the database's tables to this version, or back.
///
/// Two of them at once are safe: the second waits, and finds nothing left to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The database, postgres://user:password@host/name or sqlite://path; without it, the setting database.url.
    #[arg(long, global = true, value_name = "URL", value_parser = SecretUrl::parse)]
    database: Option<SecretUrl>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Apply what is not applied yet (what `rollcall migrate` alone does); makes the file of an SQLite database.
    Up,
    /// Take back the latest migration, or the latest N; the rows in its tables are lost.
    Down {
        /// How many.
        #[arg(value_name = "N", default_value_t = 1)]
        steps: u32,
        /// Do not ask, even where rows will be lost.
        #[arg(long)]
        yes: bool,
    },
    /// Say which migrations are applied; exits with 1 where some are not.
    Status,
}

pub(crate) async fn run(args: Args, config: Option<&Path>) -> Result<ExitCode> {
    let url = match args.database {
        Some(url) => url,
        None => Settings::load(config)?.database.url,
    };
    match args.action.unwrap_or(Action::Up) {
        Action::Up => {
            let applied = up(&url).await?;
            for name in &applied {
                output::print(format_args!("applied {name}"))?;
            }
            if applied.is_empty() {
                output::print("nothing to do: the database is up to date")?;
            }
        }
        Action::Down { steps, yes } => {
            let db = connect(&url).await?;
            if !yes {
                may_be_lost(&rows(&db).await?)?;
            }
            for name in down(&db, steps).await? {
                output::print(format_args!("took back {name}"))?;
            }
        }
        Action::Status => return status(&connect(&url).await?).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// Applies what is not applied yet to the database at `url`; the names of what it applied.
pub(crate) async fn up(url: &SecretUrl) -> Result<Vec<String>> {
    let db = connect(&to_be_created(url)?).await?;
    let transaction = begin(&db).await?;
    let pending = Migrator::get_pending_migrations(&transaction).await.map_err(|error| unreadable(url, error))?;
    let names = pending.iter().map(|migration| migration.name().to_owned()).collect();
    Migrator::up(&transaction, None).await.context("a migration failed; the database is as it was before")?;
    transaction.commit().await?;
    Ok(names)
}

fn unreadable(url: &SecretUrl, error: DbErr) -> anyhow::Error {
    let what = match error {
        // What sea-orm says of migrations that it does not know.
        DbErr::Custom(_) => format!("the database {url} was migrated by a newer Rollcall: run that one"),
        _ => format!("cannot read which migrations the database {url} has"),
    };
    anyhow::Error::new(error).context(what)
}

async fn down(db: &DatabaseConnection, steps: u32) -> Result<Vec<String>> {
    let transaction = begin(db).await?;
    let applied = Migrator::get_applied_migrations(&transaction).await?;
    let names = applied.iter().rev().take(steps as usize).map(|migration| migration.name().to_owned()).collect();
    Migrator::down(&transaction, Some(steps)).await.context("a migration failed; the database is as it was before")?;
    transaction.commit().await?;
    Ok(names)
}

async fn status(db: &DatabaseConnection) -> Result<ExitCode> {
    let pending = Migrator::get_pending_migrations_read_only(db).await?;
    let is_pending = |name: &str| pending.iter().any(|migration| migration.name() == name);
    for migration in Migrator::migrations() {
        let name = migration.name();
        output::print(format_args!("{:8} {name}", if is_pending(name) { "pending" } else { "applied" }))?;
    }
    Ok(if pending.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn connect(url: &SecretUrl) -> Result<DatabaseConnection> {
    store::connect(url, 1).await.with_context(|| cannot_connect(url))
}

fn cannot_connect(url: &SecretUrl) -> String {
    format!("cannot connect to the database {url}")
}

/// The database at `url`, for a command that works on its tables, with at most so many connections.
///
/// # Errors
/// It is not there, cannot be reached, or its tables are not of this version.
pub(crate) async fn migrated(url: &SecretUrl, connections: u32) -> Result<DatabaseConnection> {
    if let Some(path) = missing_file(url) {
        bail!(
            "the database {} is not there: rollcall up makes it, and so does rollcall migrate; if Rollcall runs already, run \
             this in its folder, or name its settings with --config",
            path.display()
        );
    }
    let db = store::connect(url, connections).await.with_context(|| cannot_connect(url))?;
    let pending = Migrator::get_pending_migrations_read_only(&db).await.map_err(|error| unreadable(url, error))?;
    if !pending.is_empty() {
        bail!("the database {url} is not migrated ({} to go): run `rollcall migrate`", pending.len());
    }
    Ok(db)
}

/// The whole path of an SQLite database's file that is not there.
fn missing_file(url: &SecretUrl) -> Option<PathBuf> {
    let path = url.sqlite_path()?;
    let path = std::path::absolute(&path).unwrap_or(path);
    matches!(path.try_exists(), Ok(false)).then_some(path)
}

/// One transaction for everything, which only one process at a time can have: sea-orm takes no lock of its own, so two
/// would both find a migration pending. Both databases can take table definitions back.
async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let transaction = store::begin(db).await?;
    if db.get_database_backend() == DbBackend::Postgres {
        transaction.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({LOCK})")).await?;
    }
    Ok(transaction)
}

/// The URL of an SQLite database that is made when it is not there, with the folder it lies in; any other as it is.
pub(crate) fn to_be_created(url: &SecretUrl) -> Result<SecretUrl> {
    let Some(path) = url.expose().strip_prefix("sqlite:") else { return Ok(url.clone()) };
    let path = path.trim_start_matches("//");
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if query.contains("mode=") {
        return Ok(url.clone());
    }
    let (path, folder) = (Path::new(path), private::folder_of(Path::new(path)));
    private::make_folder(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    // Where it cannot be made, it cannot be opened either, and that says whether waiting helps.
    let _ = private::make_file(path);
    let separator = if query.is_empty() { '?' } else { '&' };
    Ok(SecretUrl::parse(&format!("{}{separator}mode=rwc", url.expose().trim_end_matches('?')))?)
}

/// How many rows each table has that has any.
async fn rows(db: &DatabaseConnection) -> Result<Vec<(String, i64)>> {
    let tables = [
        course::Entity.table_name(),
        course_staff::Entity.table_name(),
        course_live_session::Entity.table_name(),
        live_session_start::Entity.table_name(),
        live_session_user::Entity.table_name(),
        live_session_interval::Entity.table_name(),
        live_session_recording::Entity.table_name(),
        dead_letter::Entity.table_name(),
    ];
    let mut rows = Vec::new();
    for table in tables {
        let count = Statement::from_string(db.get_database_backend(), format!("SELECT count(*) AS n FROM {table}"));
        // A table that is not there has none.
        let Ok(Some(row)) = db.query_one_raw(count).await else { continue };
        let count: i64 = row.try_get("", "n")?;
        if count > 0 {
            rows.push((table.to_owned(), count));
        }
    }
    Ok(rows)
}

/// Asks whether these rows may be lost, if there are any.
fn may_be_lost(rows: &[(String, i64)]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = rows.iter().map(|(table, count)| format!("{table} ({count})")).collect();
    confirm::or_stop(&format!("These tables hold rows that may be lost: {}.", list.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A URL of an SQLite database in a folder that is not there yet.
    fn database(folder: &tempfile::TempDir) -> SecretUrl {
        SecretUrl::parse(&format!("sqlite://{}/data/rollcall.db", folder.path().display())).unwrap()
    }

    #[tokio::test]
    async fn up_and_down_and_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let url = database(&folder);
        let all = Migrator::migrations().len();
        assert_eq!(up(&url).await.unwrap().len(), all);
        assert_eq!(up(&url).await.unwrap(), Vec::<String>::new());
        let db = connect(&url).await.unwrap();
        assert_eq!(down(&db, 99).await.unwrap().len(), all);
        db.close().await.unwrap();
        assert_eq!(up(&url).await.unwrap().len(), all);
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_is_named_with_what_makes_it_and_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let url = database(&folder);
        let error = migrated(&url, 1).await.unwrap_err().to_string();
        let file = folder.path().join("data/rollcall.db");
        assert!(error.starts_with(&format!("the database {} is not there: rollcall up", file.display())), "{error}");
        assert!(!file.exists());
        up(&url).await.unwrap();
        migrated(&url, 1).await.unwrap();
    }

    #[tokio::test]
    async fn of_many_at_once_one_does_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let url = database(&folder);
        let runs = (0..8).map(|_| {
            tokio::spawn({
                let url = url.clone();
                async move { up(&url).await.unwrap().len() }
            })
        });
        let mut applied = 0;
        for run in runs.collect::<Vec<_>>() {
            applied += run.await.unwrap();
        }
        assert_eq!(applied, Migrator::migrations().len());
    }

    #[tokio::test]
    async fn rows_are_counted_where_there_are_any() {
        let folder = tempfile::tempdir().unwrap();
        let url = database(&folder);
        up(&url).await.unwrap();
        let db = connect(&url).await.unwrap();
        assert_eq!(rows(&db).await.unwrap(), []);
        db.execute_unprepared("INSERT INTO course (slug) VALUES ('algebra')").await.unwrap();
        assert_eq!(rows(&db).await.unwrap(), [("course".to_owned(), 1)]);
    }
}
