//! `[queue]`: where events wait.

use serde::Deserialize;

use super::{ConfigError, NAME, SecretUrl, check, is_name};

/// `[queue]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// `sqlite://path` for a file on this machine, or RabbitMQ: `amqp://user:password@host:5672/vhost`, `amqps://…`; of a cluster
    /// any number of hosts, with commas between them.
    pub url: SecretUrl,
    /// What every exchange and queue is named after, so that two installations can share a broker.
    pub prefix: String,
    /// Where RabbitMQ's management plugin is, for what AMQP does not tell: `http://user:password@host:15672`.
    pub management_url: Option<SecretUrl>,
}

impl Default for Queue {
    fn default() -> Self {
        let url = SecretUrl::parse("sqlite://data/queue.db").expect("a constant URL parses");
        Self { url, prefix: "rollcall".into(), management_url: None }
    }
}

impl Queue {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check(
            self.url.starts_with(&["amqp://", "amqps://"]) || self.url.is_file(),
            "queue.url",
            &self.url,
            "it is sqlite:// and the path of a file on this machine, or amqp://user:password@host:5672/%2f or amqps://…, \
             with %2f for the virtual host /, and of a cluster several hosts: amqp://user:password@host1,host2:5672/%2f",
        )?;
        self.url.check_password("queue.url")?;
        check(is_name(&self.prefix), "queue.prefix", &self.prefix, NAME)?;
        let Some(management) = &self.management_url else { return Ok(()) };
        check(
            management.starts_with(&["http://", "https://"]),
            "queue.management_url",
            management,
            "it is where RabbitMQ's management plugin answers, http://user:password@host:15672",
        )?;
        management.check_password("queue.management_url")
    }
}
