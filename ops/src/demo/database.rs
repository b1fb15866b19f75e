//! A database of the demo's own, in a file or on the server it was given: its tables are made, filled and dropped without
//! touching a real installation's.

use std::path::Path;

use anyhow::{Context, Result};
use rollcall_shared::config::SecretUrl;
use rollcall_shared::store;
use sea_orm::{ConnectionTrait, DatabaseConnection};
use url::Url;

use crate::migrate;

#[derive(Debug)]
pub(super) struct OwnDatabase {
    url: SecretUrl,
    /// The server that has it, and its name there; an SQLite database is a file in the demo's directory.
    on_server: Option<(SecretUrl, String)>,
    may_exist: bool,
}

impl OwnDatabase {
    /// The database `rollcall_demo_<id>` on `server`, or without one an SQLite file in `folder`; it is not made yet.
    pub(super) fn new(server: Option<&SecretUrl>, id: &str, folder: &Path) -> Result<Self> {
        let Some(given) = server.filter(|server| server.sqlite_path().is_none()) else {
            let url = SecretUrl::parse(&format!("sqlite://{}/rollcall.db", folder.display()))?;
            return Ok(Self { url, on_server: None, may_exist: false });
        };
        let name = format!("rollcall_demo_{id}");
        let mut url = Url::parse(given.expose())?;
        url.set_path(&name);
        Ok(Self { url: SecretUrl::parse(url.as_str())?, on_server: Some((given.clone(), name)), may_exist: false })
    }

    /// Makes it, with its tables.
    pub(super) async fn create(&mut self) -> Result<()> {
        if let Some((server, name)) = &self.on_server {
            // Said before: whoever stops here must not leave it behind.
            self.may_exist = true;
            let made = run(server, &format!("CREATE DATABASE {name}")).await;
            self.may_exist = made.is_ok();
            made.with_context(|| format!("cannot make a database of the demo's own on {server}"))?;
        }
        migrate::up(&self.url).await?;
        Ok(())
    }

    pub(super) fn url(&self) -> &SecretUrl {
        &self.url
    }

    pub(super) async fn connect(&self) -> Result<DatabaseConnection> {
        store::connect(&self.url, 1).await.with_context(|| format!("cannot connect to {}", self.url))
    }

    /// Drops the database, whoever still is connected. An SQLite file goes with its folder.
    pub(super) async fn remove(&self) -> Result<()> {
        let Some((server, name)) = self.on_server.as_ref().filter(|_| self.may_exist) else { return Ok(()) };
        run(server, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            .await
            .with_context(|| format!("cannot drop the database {name} on {server}: drop it by hand"))
    }
}

async fn run(server: &SecretUrl, sql: &str) -> Result<()> {
    let db = store::connect(server, 1).await?;
    db.execute_unprepared(sql).await?;
    db.close().await?;
    Ok(())
}
