//! `[plugnmeet.<name>]`: the servers whose webhooks are taken in.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use url::Url;

use super::read::list;
use super::secret::check_secret;
use super::{ConfigError, NAME, check, is_name, without_password};
use crate::signature::Scheme;

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
    /// How its webhooks may be signed; in the environment with commas between them.
    #[serde(default = "both", deserialize_with = "schemes")]
    pub signatures: Vec<Scheme>,
}

/// What every server's settings must be, and those of all of them together.
pub(super) fn check_all(servers: &BTreeMap<String, PlugNMeet>) -> Result<(), ConfigError> {
    let mut seen = BTreeMap::new();
    for (name, server) in servers {
        check(is_name(name), "plugnmeet.<name>", name, NAME)?;
        server.check(name)?;
        for (setting, secret) in server.secrets() {
            check_secret(&format!("plugnmeet.{name}.{setting}"), secret.expose_secret())?;
            let twin = seen.insert(secret.expose_secret(), name);
            check(
                twin.is_none_or(|twin| twin == name),
                &format!("plugnmeet.{name}.{setting}"),
                &"that of another server",
                "a webhook's signature must tell which server sent it: give each server a secret of its own",
            )?;
        }
    }
    Ok(())
}

impl PlugNMeet {
    /// Every secret that is good now, the current one first, each with the name of its setting.
    pub(super) fn secrets(&self) -> impl Iterator<Item = (&'static str, &SecretString)> {
        let previous = self.previous_secret.iter().map(|secret| ("previous_secret", secret));
        std::iter::once(("api_secret", &self.api_secret)).chain(previous)
    }

    fn check(&self, name: &str) -> Result<(), ConfigError> {
        check(
            matches!(self.url.scheme(), "http" | "https"),
            &format!("plugnmeet.{name}.url"),
            &without_password(self.url.clone()),
            "it starts with http:// or https://",
        )?;
        check(
            !self.api_key.trim().is_empty(),
            &format!("plugnmeet.{name}.api_key"),
            &"empty",
            "it is client.api_key of the server's config.yaml, and api_secret is client.secret",
        )?;
        check(
            !self.signatures.is_empty(),
            &format!("plugnmeet.{name}.signatures"),
            &"empty",
            "it is one or both of \"token\" and \"hmac\"",
        )
    }
}

fn both() -> Vec<Scheme> {
    Scheme::ALL.into()
}

fn schemes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Scheme>, D::Error> {
    let scheme = |name: &String| {
        let unknown = || de::Error::custom(format!("{name:?} is neither \"token\" nor \"hmac\""));
        Scheme::ALL.into_iter().find(|scheme| scheme.as_str() == name).ok_or_else(unknown)
    };
    list(deserializer)?.iter().map(scheme).collect()
}
