//! RabbitMQ's management plugin: what AMQP does not tell of the broker and of its queues. Its HTTP API, as RabbitMQ 3.10 to
//! 4.x have it (<https://www.rabbitmq.com/docs/http-api-reference>); nothing is changed by it.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{Response, StatusCode, redirect};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use super::amqp;
use crate::{config, tls};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take: the plugin asks every node of the cluster.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How many queues are asked for at once; the plugin gives 500 at most.
const PAGE: &str = "500";
/// What of a queue is asked for: all of it would be ten times as much.
const COLUMNS: &str = "name,messages_ready,messages_unacknowledged,consumers,message_stats,arguments,policy,\
    effective_policy_definition";

/// The management plugin of a broker, to be asked.
#[derive(Debug, Clone)]
pub struct Management {
    /// May hold a password: reqwest takes it out, and no error repeats it.
    url: Url,
    http: reqwest::Client,
    vhost: String,
    prefix: String,
}

/// One queue, as the plugin last saw it: it looks every five seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueState {
    /// How many messages wait; `None` as long as the plugin has not seen.
    pub ready: Option<u64>,
    /// How many messages consumers have and have not acknowledged.
    pub unacknowledged: Option<u64>,
    /// How many consumers it has.
    pub consumers: Option<u64>,
    /// How many messages a second come in.
    pub publish_rate: f64,
    /// How long a consumer may keep a message, where that was set for this queue. What the broker has for all queues
    /// (`consumer_timeout` in rabbitmq.conf, half an hour unless told) the plugin does not tell.
    pub consumer_timeout: Option<ConsumerTimeout>,
}

/// How long a consumer may keep a message unacknowledged before the broker closes its channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerTimeout {
    /// How long.
    pub limit: Duration,
    /// The policy that says so; `None` where the queue was declared like that.
    pub policy: Option<String>,
}

/// Why the plugin did not tell.
#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    /// The client cannot be made.
    #[error("the HTTP client cannot be set up")]
    Setup(#[source] reqwest::Error),
    /// No connection, or no answer in time.
    #[error("no answer, or not all of it")]
    Connection(#[source] reqwest::Error),
    /// It does not let us in.
    #[error("it refuses the user ({0})")]
    Refused(String),
    /// It has no such virtual host, or it is no management plugin.
    #[error("it answers {0}")]
    Status(StatusCode),
    /// Something else answers there.
    #[error("the answer is not that of a management plugin: {0}")]
    Unreadable(String),
}

impl Management {
    /// The plugin that the settings name; `None` where they name none, or the queue is a file. No connection is made yet.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(settings: &config::Queue) -> Result<Option<Self>, ManagementError> {
        let Some((url, vhost)) = settings.management_url.as_ref().zip(amqp::vhost(&settings.url)) else {
            return Ok(None);
        };
        tls::use_ring();
        let http = reqwest::Client::builder()
            .user_agent(concat!("rollcall/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            // The password is for nobody else.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(ManagementError::Setup)?;
        let url = Url::parse(url.expose()).expect("a SecretUrl is one");
        Ok(Some(Self { url, http, vhost, prefix: settings.prefix.clone() }))
    }

    /// The broker's version, such as `3.10.8`.
    ///
    /// # Errors
    /// See [`ManagementError`].
    pub async fn version(&self) -> Result<String, ManagementError> {
        #[derive(Deserialize)]
        struct Overview {
            rabbitmq_version: String,
        }
        let overview: Overview = self.get(self.path(&["overview"])).await?;
        Ok(overview.rabbitmq_version)
    }

    /// Every queue of the settings' prefix and virtual host, by its whole name.
    ///
    /// # Errors
    /// See [`ManagementError`].
    pub async fn queues(&self) -> Result<BTreeMap<String, QueueState>, ManagementError> {
        let mut queues = BTreeMap::new();
        let (mut page, mut pages) = (1, 1);
        while page <= pages {
            let answer: Page = self.get(self.queues_url(page)).await?;
            queues.extend(answer.items.into_iter().map(|queue| (queue.name.clone(), queue.into())));
            (page, pages) = (page + 1, answer.page_count);
        }
        Ok(queues)
    }

    fn queues_url(&self, page: u32) -> Url {
        let mut url = self.path(&["queues", &self.vhost]);
        url.query_pairs_mut()
            .append_pair("page", &page.to_string())
            .append_pair("page_size", PAGE)
            // A prefix has no character that means something in a pattern.
            .append_pair("name", &format!(r"^{}\.", self.prefix))
            .append_pair("use_regex", "true")
            .append_pair("columns", COLUMNS);
        url
    }

    /// The plugin's address, which may have a path of its own, and these segments of its API.
    fn path(&self, segments: &[&str]) -> Url {
        let mut url = self.url.clone();
        url.path_segments_mut()
            .expect("http and https URLs have segments, and the settings allow no others")
            .pop_if_empty()
            .push("api")
            .extend(segments);
        url
    }

    async fn get<A: DeserializeOwned>(&self, url: Url) -> Result<A, ManagementError> {
        let failed = |error: reqwest::Error| ManagementError::Connection(error.without_url());
        let response = self.http.get(url).send().await.map_err(failed)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(refused(response).await),
            status => return Err(ManagementError::Status(status)),
        }
        let body = response.bytes().await.map_err(failed)?;
        serde_json::from_slice(&body).map_err(|error| ManagementError::Unreadable(error.to_string()))
    }
}

/// The plugin says why: `Login failed`, `Not management user`, `User not authorised to access virtual host`.
async fn refused(response: Response) -> ManagementError {
    #[derive(Deserialize)]
    struct Refusal {
        reason: String,
    }
    let status = response.status();
    let refusal = response.json().await.map(|refusal: Refusal| refusal.reason);
    ManagementError::Refused(refusal.unwrap_or_else(|_| status.to_string()))
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Item>,
    page_count: u32,
}

#[derive(Deserialize)]
struct Item {
    name: String,
    messages_ready: Option<u64>,
    messages_unacknowledged: Option<u64>,
    consumers: Option<u64>,
    #[serde(default)]
    message_stats: MessageStats,
    // Of these, what is empty may be a list.
    #[serde(default)]
    arguments: Value,
    policy: Option<String>,
    #[serde(default)]
    effective_policy_definition: Value,
}

#[derive(Default, Deserialize)]
struct MessageStats {
    #[serde(default)]
    publish_details: Details,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    rate: f64,
}

impl From<Item> for QueueState {
    fn from(item: Item) -> Self {
        let consumer_timeout = item.consumer_timeout();
        Self {
            ready: item.messages_ready,
            unacknowledged: item.messages_unacknowledged,
            consumers: item.consumers,
            publish_rate: item.message_stats.publish_details.rate,
            consumer_timeout,
        }
    }
}

impl Item {
    /// In milliseconds, since RabbitMQ 3.12. Of the two, the broker takes the shorter.
    fn consumer_timeout(&self) -> Option<ConsumerTimeout> {
        let limit = |of: &Value, name: &str| of.get(name).and_then(Value::as_u64).map(Duration::from_millis);
        let by_argument = limit(&self.arguments, "x-consumer-timeout").map(|limit| (limit, None));
        let by_policy = limit(&self.effective_policy_definition, "consumer-timeout");
        let by_policy = by_policy.map(|limit| (limit, Some(self.policy.clone().unwrap_or_default())));
        let (limit, policy) = by_argument.into_iter().chain(by_policy).min_by_key(|(limit, _)| *limit)?;
        Some(ConsumerTimeout { limit, policy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SecretUrl;

    fn management(queue_url: &str, url: &str) -> Option<Management> {
        let settings = config::Queue {
            url: SecretUrl::parse(queue_url).unwrap(),
            management_url: Some(SecretUrl::parse(url).unwrap()),
            ..config::Queue::default()
        };
        Management::new(&settings).unwrap()
    }

    #[test]
    fn queues_are_asked_for_in_the_virtual_host_of_the_broker() {
        for (queue_url, url, expected) in [
            ("amqp://u:p@broker/%2f", "http://host:15672", "/api/queues/%2F"),
            ("amqp://u:p@broker/school", "https://host/rabbit/", "/rabbit/api/queues/school"),
        ] {
            let asked = management(queue_url, url).unwrap().queues_url(2);
            assert_eq!(asked.path(), expected);
            let query: BTreeMap<_, _> = asked.query_pairs().into_owned().collect();
            assert_eq!((query["page"].as_str(), query["name"].as_str()), ("2", r"^rollcall\."));
        }
        assert!(management("sqlite://data/queue.db", "http://host:15672").is_none());
    }

    /// As RabbitMQ 3.13 answers; 3.10 knows no such policy.
    #[test]
    fn the_shorter_consumer_timeout_is_the_one_that_counts() {
        let timeout = |arguments: &str, policy: &str| {
            let item = format!(
                r#"{{"name":"q","messages_ready":3,"message_stats":{{"publish":9,"publish_details":{{"rate":1.5}}}},
                "arguments":{arguments},"policy":"strict","effective_policy_definition":{policy}}}"#
            );
            let item: Item = serde_json::from_str(&item).unwrap();
            let state = QueueState::from(item);
            assert_eq!((state.ready, state.consumers, state.publish_rate), (Some(3), None, 1.5));
            state.consumer_timeout.map(|timeout| (timeout.limit.as_secs(), timeout.policy))
        };
        let strict = Some("strict".to_owned());
        assert_eq!(timeout("{}", "[]"), None);
        assert_eq!(timeout("{}", r#"{"consumer-timeout":60000}"#), Some((60, strict.clone())));
        let argument = r#"{"x-queue-type":"quorum","x-consumer-timeout":30000}"#;
        assert_eq!(timeout(argument, "{}"), Some((30, None)));
        assert_eq!(timeout(argument, r#"{"consumer-timeout":60000}"#), Some((30, None)));
        assert_eq!(timeout(argument, r#"{"consumer-timeout":20000}"#), Some((20, strict)));
    }
}
