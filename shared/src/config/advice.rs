//! What works and should not stay so: short secrets, and what goes over the network for all to read. The programs say it when they
//! start, and `rollcall doctor` when it is asked.

use std::fmt;
use std::net::IpAddr;

use secrecy::SecretString;
use tracing::warn;
use url::Url;

use super::secret::{SHORTEST, is_published, is_short};
use super::{SecretUrl, Settings};

/// What should not stay as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// The setting's name.
    pub setting: String,
    /// What is the matter with it; no secret is in it.
    pub found: String,
    /// What to do.
    pub todo: &'static str,
}

fn weakness(secret: &SecretString) -> Option<String> {
    if is_published(secret) {
        return Some("it is that of PlugNMeet's sample configuration, which everybody knows".to_owned());
    }
    let short = format!("it is shorter than {SHORTEST} bytes: who has seen one webhook may find it out by trying");
    is_short(secret).then_some(short)
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "setting {}: {}; {}", self.setting, self.found, self.todo)
    }
}

impl Settings {
    /// Everything in these settings that should not stay so.
    pub fn advice(&self) -> Vec<Advice> {
        let mut advice = self.weak_secrets();
        advice.extend(self.plain_text());
        advice
    }

    /// Says it in the log.
    pub fn warn(&self) {
        for advice in self.advice() {
            warn!("{advice}");
        }
    }

    fn weak_secrets(&self) -> Vec<Advice> {
        let secrets = self.plugnmeet.iter().flat_map(|(name, server)| {
            server.secrets().map(move |(setting, secret)| (format!("plugnmeet.{name}.{setting}"), secret))
        });
        let weak = secrets.filter_map(|(setting, secret)| Some((setting, weakness(secret)?)));
        weak.map(|(setting, found)| Advice {
            setting,
            found,
            todo: "change it here and at PlugNMeet (client.secret of its config.yaml) to another: openssl rand -hex 32",
        })
        .collect()
    }

    fn plain_text(&self) -> Vec<Advice> {
        let Self { queue, database, plugnmeet, .. } = self;
        let of = |setting: &str, url: &SecretUrl, scheme: &str, todo| {
            let is_plain = url.each_host().iter().any(|url| is_plain(url, scheme));
            is_plain.then(|| plain(setting.to_owned(), url, todo))
        };
        let management = queue.management_url.as_ref();
        let mut advice = Vec::new();
        advice.extend(of("queue.url", &queue.url, "amqp", "let the broker speak TLS, and write amqps://"));
        advice.extend(management.and_then(|url| {
            of("queue.management_url", url, "http", "let the management plugin speak TLS, and write https://")
        }));
        let todo = "add ?sslmode=verify-full, or if nobody else is on that network ?sslmode=disable";
        if !database.url.expose().contains("sslmode=") {
            advice.extend(of("database.url", &database.url, "postgres", todo));
            advice.extend(of("database.url", &database.url, "postgresql", todo));
        }
        for (name, server) in plugnmeet.iter().filter(|(_, server)| is_plain(server.url.as_str(), "http")) {
            let url = super::without_password(server.url.clone());
            advice.push(plain(format!("plugnmeet.{name}.url"), &url, "let the server speak TLS, and write https://"));
        }
        advice
    }
}

fn plain(setting: String, url: &dyn fmt::Display, todo: &'static str) -> Advice {
    let found = format!("what goes to {url} and comes from there can be read and changed on the way");
    Advice { setting, found, todo }
}

/// Whether a URL is of this scheme, which does not encrypt, and leads to another machine.
fn is_plain(url: &str, scheme: &str) -> bool {
    Url::parse(url).is_ok_and(|url| url.scheme() == scheme && leaves_the_machine(&url))
}

fn leaves_the_machine(url: &Url) -> bool {
    // PostgreSQL's clients take a host or a socket's folder from there, too.
    let named = url.query_pairs().find(|(name, _)| name == "host").map(|(_, host)| host.into_owned());
    let host = named.or_else(|| url.host_str().map(str::to_owned)).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    if let Ok(address) = host.parse::<IpAddr>() {
        return !address.to_canonical().is_loopback();
    }
    let is_socket = host.starts_with('/') || host.starts_with("%2f");
    !(host.is_empty() || is_socket || host == "localhost" || host.ends_with(".localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_can_read_on_the_way_is_plain() {
        for url in ["amqp://u:p@broker/%2f", "amqp://u@10.0.0.7:5672", "amqp://[2001:db8::1]/%2f"] {
            assert!(is_plain(url, "amqp"), "{url}");
        }
        for url in [
            "amqp://u@localhost/%2f",
            "amqp://127.0.0.1:5672",
            "amqp://[::1]/%2f",
            "amqps://broker/%2f",
            "http://broker/",
            "amqp://broker.localhost",
        ] {
            assert!(!is_plain(url, "amqp"), "{url}");
        }
        for (url, expected) in [
            ("postgres://u@db/name", true),
            ("postgres:///name", false),
            ("postgres://u@%2Fvar%2Frun%2Fpostgresql/name", false),
            ("postgres:///name?host=/var/run/postgresql", false),
            ("postgres:///name?host=db", true),
        ] {
            assert_eq!(is_plain(url, "postgres"), expected, "{url}");
        }
    }
}
