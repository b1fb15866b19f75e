//! Getting to the broker: one connection, made with a time-out, and errors that say what to do.
//!
//! Of a cluster there are several hosts, any of which will do: they are tried in turn, each for as long as one may take, and the first is
//! one by chance, so that many programs are spread over all of them.

use std::fmt;
use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};
use tokio::time::timeout;
use tracing::debug;
use url::Url;

use super::version;
use crate::config;
use crate::queue::QueueError;

/// How long a host may take to let us in; and where there are others, which a host that is cut off is not to keep us from.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(4);
/// Seconds between heartbeats: a broker that is frozen is noticed after two.
const HEARTBEAT: u16 = 10;
/// The reply code of a close that nothing went wrong before.
pub(super) const DONE: u16 = 200;
/// The first and the longest wait between two tries to connect.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// Where the broker is, and what we are called there.
#[derive(Clone)]
pub(super) struct Broker {
    /// One for each host, and one at least.
    uris: Vec<AMQPUri>,
    /// Without its password.
    url: String,
    prefix: String,
    name: String,
}

impl Broker {
    /// `name` is shown to the broker's operator.
    pub(super) fn new(settings: &config::Queue, name: &str) -> Result<Self, QueueError> {
        let mut uris = settings.url.each_host().iter().map(|url| parse(url)).collect::<Option<Vec<_>>>();
        for uri in uris.iter_mut().flatten() {
            uri.query.heartbeat.get_or_insert(HEARTBEAT);
        }
        let uris = uris.ok_or_else(|| QueueError::Url(settings.url.to_string()))?;
        Ok(Self { uris, url: settings.url.to_string(), prefix: settings.prefix.clone(), name: name.to_owned() })
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The broker's URL, without its password.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// A connection to one of the hosts.
    ///
    /// # Errors
    /// None lets us in. Where one of them may do so later, so that waiting helps, with what is wrong with each.
    pub(super) async fn connect(&self) -> Result<Connection, QueueError> {
        let mut errors = Vec::new();
        for uri in self.in_turn() {
            let within = if self.uris.len() == 1 { CONNECT_TIMEOUT } else { CONNECT_TIMEOUT_OF_SEVERAL };
            match self.connect_to(uri, within).await {
                Ok(connection) => return Ok(connection),
                Err(error) => errors.push((uri, error)),
            }
        }
        Err(self.none_lets_us_in(errors))
    }

    /// The hosts, beginning with any.
    fn in_turn(&self) -> impl Iterator<Item = &AMQPUri> {
        let first = rand::random_range(0..self.uris.len());
        self.uris.iter().cycle().skip(first).take(self.uris.len())
    }

    async fn connect_to(&self, uri: &AMQPUri, within: Duration) -> Result<Connection, QueueError> {
        let properties = ConnectionProperties::default().with_connection_name(self.name.as_str().into());
        match timeout(within, Connection::connect_uri(uri.clone(), properties)).await {
            Ok(connected) => connected.map_err(|error| self.error("the connection", &error)),
            Err(_) => Err(self.unavailable("no answer in time")),
        }
    }

    fn none_lets_us_in(&self, mut errors: Vec<(&AMQPUri, QueueError)>) -> QueueError {
        if errors.len() == 1 || errors.iter().all(|(_, error)| error.is_final()) {
            return errors.swap_remove(0).1;
        }
        errors.sort_by_key(|(uri, _)| name_of(uri));
        let of_each = errors.iter().map(|(uri, error)| match error {
            QueueError::Unavailable { reason, .. } | QueueError::Refused { reason, .. } => {
                format!("{}: {reason}", name_of(uri))
            }
            error => format!("{}: {error}", name_of(uri)),
        });
        self.unavailable(of_each.collect::<Vec<_>>().join("; "))
    }

    /// The version of one that is there, which it says before it asks who we are; `None` where it does not say so.
    pub(super) async fn version(&self) -> Option<String> {
        for uri in self.in_turn() {
            if let Ok(Some(version)) = timeout(CONNECT_TIMEOUT, version::of(uri)).await {
                return Some(version);
            }
        }
        None
    }

    pub(super) async fn channel(&self, connection: &Connection) -> Result<Channel, QueueError> {
        connection.create_channel().await.map_err(|error| self.error("a channel", &error))
    }

    /// Closes a connection on which something was looked at. What was seen is known, however it closes: a channel that was
    /// dropped may still be closing, and that fails it.
    pub(super) async fn close(&self, connection: &Connection) {
        if let Err(error) = connection.close(DONE, "done".into()).await {
            debug!(%error, "the connection to the broker did not close well");
        }
    }

    /// What went wrong with `name`, and whether waiting helps.
    pub(super) fn error(&self, name: &str, error: &lapin::Error) -> QueueError {
        let ErrorKind::ProtocolError(amqp) = error.kind() else { return self.unavailable(error) };
        let reason = amqp.get_message().to_string();
        match amqp.kind() {
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if is_full(&reason) => self.unavailable(reason),
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => {
                QueueError::Mismatch { name: name.to_owned(), reason }
            }
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) if is_about_a_thing(&reason) => {
                QueueError::Forbidden { url: self.url.clone(), name: name.to_owned(), reason }
            }
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                QueueError::Refused { url: self.url.clone(), reason }
            }
            _ => self.unavailable(error),
        }
    }

    pub(super) fn unavailable(&self, reason: impl fmt::Display) -> QueueError {
        QueueError::Unavailable { url: self.url.clone(), reason: reason.to_string() }
    }
}

/// A host, as people call it.
fn name_of(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

/// The parts of a broker's URL. The parser of lapin takes an IPv6 address for no host at all, and then says `localhost`.
fn parse(url: &str) -> Option<AMQPUri> {
    let mut uri: AMQPUri = url.parse().ok()?;
    if let Some(url::Host::Ipv6(address)) = Url::parse(url).ok()?.host() {
        // Without brackets, as the resolver and TLS want it.
        uri.authority.host = address.to_string();
    }
    Some(uri)
}

/// The virtual host that a broker's URL names; `None` if it is none of a broker.
#[cfg(feature = "management")]
pub(in crate::queue) fn vhost(url: &config::SecretUrl) -> Option<String> {
    url.expose().starts_with("amqp").then(|| parse(url.each_host().first()?))?.map(|uri| uri.vhost)
}

/// Whether ACCESS_REFUSED means a queue or an exchange, and not that we may not come in at all: `access to queue 'x' in vhost
/// '/' refused for user 'u'`, in newer ones `configure access to …`.
fn is_about_a_thing(reason: &str) -> bool {
    ["access to queue ", "access to exchange ", "access to topic "].iter().any(|words| reason.contains(words))
}

/// Whether NOT_ALLOWED means that the broker has as many connections as it may have, and not that we may never have one:
/// `connection limit (5) is reached`, `maximum allowed limit of (5)`.
fn is_full(reason: &str) -> bool {
    reason.contains(" limit (") || reason.contains(" limit of (")
}

/// How long to wait before trying to connect again: longer each time, and never the same for two of us.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(FIRST_BACKOFF)
    }

    pub(super) fn next(&mut self) -> Duration {
        let wait = self.0.mul_f64(rand::random_range(0.5..1.0));
        self.0 = (self.0 * 2).min(LONGEST_BACKOFF);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::protocol::AMQPError;

    #[test]
    fn a_host_is_the_one_of_the_url() {
        for (host, expected) in
            [("[::1]", "::1"), ("[2001:db8::7]", "2001:db8::7"), ("127.0.0.1", "127.0.0.1"), ("broker", "broker")]
        {
            let uri = parse(&format!("amqp://user:p%40ss@{host}:5673/%2f")).unwrap();
            assert_eq!((uri.authority.host.as_str(), uri.authority.port), (expected, 5673));
            assert_eq!((uri.authority.userinfo.password.as_str(), uri.vhost.as_str()), ("p@ss", "/"));
        }
        assert_eq!(parse("amqp://broker/%ff"), None);
    }

    #[test]
    fn what_is_wrong_with_each_host_is_told_unless_all_refuse_us() {
        let url = config::SecretUrl::parse("amqp://user:password@b:1,a,b:2/%2f").unwrap();
        let broker = Broker::new(&config::Queue { url, ..config::Queue::default() }, "test").unwrap();
        let mut hosts: Vec<_> = broker.in_turn().map(name_of).collect();
        hosts.sort();
        assert_eq!(hosts, ["a:5672", "b:1", "b:2"]);

        let refused = || QueueError::Refused { url: broker.url().to_owned(), reason: "no such user".into() };
        let errors = |last| broker.uris.iter().zip([refused(), broker.unavailable("gone"), last]).collect();
        let error = broker.none_lets_us_in(errors(broker.unavailable("away")));
        let told = "the broker at amqp://user:***@b:1,a,b:2/%2f cannot be used now: a:5672: gone; b:1: no such user; b:2: away";
        assert_eq!((error.to_string().as_str(), error.is_final()), (told, false));
        let all = broker.uris.iter().map(|uri| (uri, refused())).collect();
        assert!(broker.none_lets_us_in(all).is_final());
    }

    #[test]
    fn a_broker_that_is_full_is_waited_for_and_one_that_refuses_is_not() {
        let url = config::SecretUrl::parse("amqp://user:password@broker/%2f").unwrap();
        let broker = Broker::new(&config::Queue { url, ..config::Queue::default() }, "test").unwrap();
        for (kind, reason, is_final) in [
            (AMQPHardError::NOTALLOWED, "NOT_ALLOWED - vhost x not found", true),
            (AMQPHardError::NOTALLOWED, "NOT_ALLOWED - access to vhost 'x' refused for user 'u'", true),
            (
                AMQPHardError::NOTALLOWED,
                "NOT_ALLOWED - access to vhost 'x' refused for user 'u': connection limit (5) is reached",
                false,
            ),
            (
                AMQPHardError::NOTALLOWED,
                "NOT_ALLOWED - connection refused: node connection limit (5) is reached",
                false,
            ),
            (
                AMQPHardError::NOTALLOWED,
                "NOT_ALLOWED - number of channels opened on node has reached the maximum allowed limit of (5)",
                false,
            ),
            (AMQPHardError::CONNECTIONFORCED, "CONNECTION_FORCED - broker forced connection closure", false),
        ] {
            let error = lapin::Error::from(ErrorKind::ProtocolError(AMQPError::new(kind.into(), reason.into())));
            let error = broker.error("the connection", &error);
            assert_eq!(error.is_final(), is_final, "{error}");
            assert!(error.to_string().contains(reason), "{error}");
            assert_eq!(error.to_string().contains("check the user, password"), is_final, "{error}");
        }
    }

    #[test]
    fn who_may_come_in_and_not_declare_is_told_which_permissions_are_missing() {
        let url = config::SecretUrl::parse("amqp://user:password@broker/%2f").unwrap();
        let broker = Broker::new(&config::Queue { url, ..config::Queue::default() }, "test").unwrap();
        for (reason, expected) in [
            ("ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'u'", "does not let us use queue q"),
            (
                "ACCESS_REFUSED - write access to exchange 'q' in vhost '/' refused for user 'u'",
                "configure, write and read",
            ),
            ("ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.", "check the user, password"),
        ] {
            let error = AMQPError::new(AMQPSoftError::ACCESSREFUSED.into(), reason.into());
            let error = broker.error("queue q", &lapin::Error::from(ErrorKind::ProtocolError(error)));
            assert!(error.is_final());
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
