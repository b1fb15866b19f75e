//! `[plugnmeet.<name>]`: the servers whose webhooks are taken in.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use super::{ConfigError, NAME, check, is_name, without_password};

/// `[plugnmeet.<name>]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlugNMeet {
    /// The server's own address, `https://meet.example.org`; recordings are fetched there.
    pub url: Url,
    /// Its API key.
    pub api_key: String,
    /// Its API secret.
    pub api_secret: SecretString,
    /// The secret before that, good as long as it stands here: for changing it without losing a webhook.
    pub previous_secret: Option<SecretString>,
}

/// What every server's settings must be, and those of all of them together.
pub(super) fn check_all(servers: &BTreeMap<String, PlugNMeet>) -> Result<(), ConfigError> {
    let mut seen = BTreeMap::new();
    for (name, server) in servers {
        check(is_name(name), "plugnmeet.<name>", name, NAME)?;
        server.check(name)?;
        for secret in server.secrets() {
            let twin = seen.insert(secret.expose_secret(), name);
            check(
                twin.is_none_or(|twin| twin == name),
                &format!("plugnmeet.{name}.api_secret"),
                &"that of another server",
                "a webhook's signature must tell which server sent it: give each server a secret of its own",
            )?;
        }
    }
    Ok(())
}

impl PlugNMeet {
    /// Every secret that is good now, the current one first.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &SecretString> {
        std::iter::once(&self.api_secret).chain(&self.previous_secret)
    }

    fn check(&self, name: &str) -> Result<(), ConfigError> {
        check(
            matches!(self.url.scheme(), "http" | "https"),
            &format!("plugnmeet.{name}.url"),
            &without_password(self.url.clone()),
            "it starts with http:// or https://",
        )?;
        check(
            !self.api_secret.expose_secret().is_empty() && !self.api_key.is_empty(),
            &format!("plugnmeet.{name}"),
            &"an empty api_key or api_secret",
            "both are those of the server's config.yaml, client.api_key and client.secret",
        )
    }
}
