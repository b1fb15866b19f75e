//! `[storage]`: where recordings are kept.

use serde::Deserialize;
use serde::de::{self, Deserializer};
use url::Url;

use super::{ConfigError, check};

const URL: &str = "it is file:// and an absolute folder, file:///var/lib/rollcall/media";

/// `[storage]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// `file:///absolute/folder`.
    #[serde(deserialize_with = "storage_url")]
    pub url: Url,
    /// The group that may read recordings, by its name or number; nobody but Rollcall's user unless told.
    pub group: Option<String>,
}

impl Default for Storage {
    fn default() -> Self {
        // Beside the queue and the database.
        let folder = std::path::absolute("data/media").unwrap_or_else(|_| "/var/lib/rollcall/media".into());
        Self { url: Url::from_file_path(folder).expect("the path is absolute"), group: None }
    }
}

impl Storage {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        // What begins with file:// and names nothing is the root of all.
        let is_folder = self.url.to_file_path().is_ok_and(|path| path.parent().is_some());
        check(self.url.scheme() == "file" && is_folder, "storage.url", &self.url, URL)?;
        let is_named = self.group.as_ref().is_none_or(|group| !group.trim().is_empty());
        check(is_named, "storage.group", &"empty", "it is a group's name or number; what has none is left out")
    }
}

/// The value is not repeated: what is no URL may be anything.
fn storage_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    Url::parse(&text).map_err(|error| de::Error::custom(format!("not a URL ({error}): {URL}")))
}
