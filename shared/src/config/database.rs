//! `[database]`: the tables that integrators read.

use serde::Deserialize;

use super::{ConfigError, SecretUrl, check};

/// `[database]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// `postgres://user:password@host/name?sslmode=…`, or `sqlite://path`.
    pub url: SecretUrl,
}

impl Default for Database {
    fn default() -> Self {
        Self { url: SecretUrl::parse("sqlite://data/rollcall.db").expect("a constant URL parses") }
    }
}

impl Database {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check(
            self.url.starts_with(&["postgres://", "postgresql://"]) || self.url.is_file(),
            "database.url",
            &self.url,
            "it is sqlite:// and the path of a file on this machine, or postgres://user:password@host/name",
        )?;
        self.url.check_password("database.url")
    }
}
