//! Durable messages between the ingress and the workers, over RabbitMQ. No AMQP type leaves this module.
//!
//! The ingress has a [`Publisher`]: what it says is published is confirmed by the broker. A worker has a [`Consumer`]:
//! it gives [`Delivery`]s, each of which is settled in one of a few ways: done, again later, to the dead letters.
//! Both keep their connection up by themselves. [`topology`] is which exchanges and queues there are, and why.

mod acks;
mod broker;
mod consumer;
mod message;
mod publisher;
mod topology;

pub use consumer::{Consumer, Delivery, Lane};
pub use message::{DeadKind, Message};
pub use publisher::{PublishError, Publisher};
pub use topology::delete_all;

/// Why the broker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// `queue.url` is a URL, but not one of a broker.
    #[error("setting queue.url is {0}: it is amqp://user:password@host:5672/%2f or amqps://…")]
    Url(String),
    /// The broker is there and does not let us in: waiting does not help.
    #[error(
        "the broker at {url} refuses the connection ({reason}): check the user, password and virtual host of queue.url"
    )]
    Refused {
        /// The broker's URL, without its password.
        url: String,
        /// What it said.
        reason: String,
    },
    /// A queue or exchange of ours exists and is different: waiting does not help.
    #[error(
        "{name} exists on the broker with other arguments ({reason}): \
         delete it there once it is empty, or choose another queue.prefix"
    )]
    Mismatch {
        /// The queue's or exchange's name.
        name: String,
        /// What the broker said.
        reason: String,
    },
    /// The broker is not there, went away, or has no room for us: it is tried again.
    #[error("the broker at {url} cannot be used now: {reason}")]
    Unavailable {
        /// The broker's URL, without its password.
        url: String,
        /// What went wrong.
        reason: String,
    },
}

impl QueueError {
    /// Whether it is no use to try again without changing something.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Unavailable { .. })
    }
}
