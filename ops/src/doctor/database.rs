//! The database: there, of this version, and to be written to. Nothing in it is changed.

use indicatif::HumanBytes;
use rollcall_migrations::{Migrator, MigratorTrait as _};
use rollcall_shared::config::{SecretUrl, Settings};
use rollcall_shared::store::{self, ErrorKind};
use sea_orm::{DatabaseConnection, DbErr};

use super::LITTLE_ROOM;
use super::finding::Finding;
use crate::causes;

const CHECK: &str = "database";

pub(super) async fn check(settings: &Settings) -> Vec<Finding> {
    vec![look(&settings.database.url).await.unwrap_or_else(|finding| finding)]
}

/// What was found; as an error, what keeps it from being looked at any further.
async fn look(url: &SecretUrl) -> Result<Finding, Finding> {
    is_there(url)?;
    let db = store::connect(url, 1).await.map_err(|error| unreachable(url, error))?;
    let server = store::about(&db).await.map_err(|error| {
        Finding::failed(CHECK, format!("{url} does not answer: {}", causes(error)), "look into the database's log")
    })?;
    if server.is_read_only {
        let todo = "let database.url name the primary, or look for default_transaction_read_only";
        return Err(Finding::failed(CHECK, format!("{url} can only be read: it is a standby, or set so"), todo));
    }
    is_migrated(url, &db).await?;
    let found = format!("{url}, {}, migrated", server.version);
    let Some(path) = url.sqlite_path() else { return Ok(Finding::ok(CHECK, found)) };
    let disk = rustix::fs::statvfs(&path).map_err(|error| Finding::failed(CHECK, error, "look at its disk"))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let found = format!("{found}; {} free", HumanBytes(free));
    Ok(if free < LITTLE_ROOM {
        Finding::warning(CHECK, found, "make room on its disk")
    } else {
        Finding::ok(CHECK, found)
    })
}

/// Opening a file that is not there would make it.
fn is_there(url: &SecretUrl) -> Result<(), Finding> {
    let Some(path) = url.sqlite_path() else { return Ok(()) };
    let path = std::path::absolute(&path).unwrap_or(path);
    match path.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Finding::failed(
            CHECK,
            format!("the file {} is not there", path.display()),
            "rollcall up makes it, and so does rollcall migrate up; if Rollcall runs already, run this in its folder",
        )),
        Err(error) => {
            let found = format!("the file {} cannot be looked for ({error})", path.display());
            Err(Finding::failed(CHECK, found, "put database.url right"))
        }
    }
}

fn unreachable(url: &SecretUrl, error: DbErr) -> Finding {
    let (how, todo) = match store::kind_of(&error) {
        ErrorKind::Unreachable => (
            "cannot be reached",
            "see that it runs and can be reached, or put database.url right; meanwhile workers wait",
        ),
        _ if url.sqlite_path().is_some() => ("cannot be used", "let this user write there, or put database.url right"),
        _ => ("refuses us", "put user, password and name in database.url right, or make them on the server"),
    };
    Finding::failed(CHECK, format!("{url} {how}: {}", causes(error)), todo)
}

async fn is_migrated(url: &SecretUrl, db: &DatabaseConnection) -> Result<(), Finding> {
    let pending = match Migrator::get_pending_migrations_read_only(db).await {
        Ok(pending) => pending,
        // What sea-orm says of migrations that it does not know.
        Err(DbErr::Custom(_)) => {
            let found = format!("{url} was migrated by a newer Rollcall than this one ({})", env!("CARGO_PKG_VERSION"));
            return Err(Finding::failed(CHECK, found, "install that one here too"));
        }
        Err(error) => {
            let found = format!("cannot read which migrations {url} has: {}", causes(error));
            return Err(Finding::failed(CHECK, found, "let the user of database.url read the table seaql_migrations"));
        }
    };
    if pending.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = pending.iter().map(|migration| migration.name()).collect();
    let found = format!("{url} is not migrated: it lacks {}", names.join(", "));
    Err(Finding::failed(CHECK, found, "rollcall migrate up"))
}
