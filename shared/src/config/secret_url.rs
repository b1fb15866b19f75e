//! URLs that may hold a password, and of a broker several hosts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretBox};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use url::Url;

use super::ConfigError;
use super::secret::check_secret;

/// A URL that may hold a password: it prints without it.
#[derive(Clone)]
pub struct SecretUrl(Arc<SecretBox<String>>);

impl SecretUrl {
    /// A URL of any scheme; with several hosts, if it is one of a broker.
    ///
    /// # Errors
    /// The text is not a URL.
    pub fn parse(text: &str) -> Result<Self, url::ParseError> {
        for url in each_host(text) {
            Url::parse(&url)?;
        }
        Ok(Self(Arc::new(SecretBox::new(Box::new(text.to_owned())))))
    }

    /// The URL as it was written, password and all.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The same URL for each of its hosts, password and all.
    pub fn each_host(&self) -> Vec<String> {
        each_host(self.expose())
    }

    /// The file that a `sqlite://` URL names: `sqlite://data/queue.db` is in the working directory, `sqlite:///srv/queue.db` is
    /// not.
    pub fn sqlite_path(&self) -> Option<PathBuf> {
        let path = self.expose().strip_prefix("sqlite://")?;
        Some(path.split('?').next().unwrap_or(path).into())
    }

    /// Whether a password in it, if there is one, is a secret.
    pub(super) fn check_password(&self, name: &str) -> Result<(), ConfigError> {
        password(self.expose()).map_or(Ok(()), |password| check_secret(&format!("{name} (its password)"), password))
    }

    pub(super) fn is_file(&self) -> bool {
        self.sqlite_path().is_some_and(|path| is_file(&path))
    }

    pub(super) fn starts_with(&self, schemes: &[&str]) -> bool {
        schemes.iter().any(|scheme| self.expose().starts_with(scheme))
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_host = self.each_host().swap_remove(0);
        let Ok(url) = Url::parse(&one_host) else { return f.write_str("[not a URL]") };
        let shown = without_password(url);
        match (around_hosts(self.expose()), around_hosts(&shown)) {
            (Some((_, hosts, _)), Some((before, _, after))) if hosts.contains(',') => {
                write!(f, "{before}{hosts}{after}")
            }
            _ => f.write_str(&shown),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for SecretUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The value is not repeated: it may hold a password even where it does not parse.
        Self::parse(&text).map_err(|error| {
            de::Error::custom(format!("not a URL: {error} (in a user or password, write # / : @ as %23 %2F %3A %40)"))
        })
    }
}

/// A URL to show. One that has no `//` may be a user and a password whose scheme was forgotten.
pub(super) fn without_password(mut url: Url) -> String {
    if !url.has_authority() {
        return "***".to_owned();
    }
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return "***".to_owned();
    }
    // `sslpassword` and its like; what else stands there helps nobody enough to risk it.
    url.set_query(None);
    url.into()
}

/// Whether SQLite takes it for a file: some names it takes for a database in memory, or one that it deletes in the end.
pub(super) fn is_file(path: &Path) -> bool {
    let is_special = path.to_str().is_some_and(|path| path.starts_with(':') || path.starts_with("file:"));
    path.file_name().is_some() && !is_special
}

/// What stands as the password in a URL of any number of hosts, as it is written; an empty one is one.
pub(super) fn password(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let (user, _) = authority.rsplit_once('@')?;
    user.split_once(':').map(|(_, password)| password)
}

/// What stands before the hosts of a broker's URL, the hosts, and what stands after them.
fn around_hosts(url: &str) -> Option<(&str, &str, &str)> {
    if !["amqp://", "amqps://"].iter().any(|scheme| url.starts_with(scheme)) {
        return None;
    }
    let authority = url.find("://")? + 3;
    let end = url[authority..].find(['/', '?', '#']).map_or(url.len(), |end| authority + end);
    let hosts = url[authority..end].rfind('@').map_or(authority, |at| authority + at + 1);
    Some((&url[..hosts], &url[hosts..end], &url[end..]))
}

/// A URL for each host of a broker's; any other URL as it is.
fn each_host(url: &str) -> Vec<String> {
    match around_hosts(url) {
        Some((before, hosts, after)) => hosts.split(',').map(|host| format!("{before}{host}{after}")).collect(),
        None => vec![url.to_owned()],
    }
}
