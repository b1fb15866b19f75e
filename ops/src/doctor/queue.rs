//! The queue: the broker and all that is declared there, or the file; and what the management plugin tells.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::HumanBytes;
use rollcall_shared::config::Settings;
use rollcall_shared::event::{AnyWorker, WorkerName};
use rollcall_shared::queue::inspection::{Broker, File};
use rollcall_shared::queue::management::{ConsumerTimeout, Management, ManagementError, QueueState};
use rollcall_shared::queue::{Inspection, Queue, QueueError};
use rollcall_workers::program::longest_hold;

use super::finding::Finding;
use super::{LITTLE_ROOM, in_time};
use crate::causes;

/// The oldest RabbitMQ that has what is declared: at-least-once dead-lettering and time to live in quorum queues.
const OLDEST: (u32, u32) = (3, 10);
/// How many things of one kind are told.
const TOLD: usize = 5;

pub(super) async fn check(settings: &Settings) -> Vec<Finding> {
    let mut findings = in_time("queue", inspect(settings)).await;
    // Only now: it has not seen what was not declared.
    findings.extend(in_time("management", management(settings)).await);
    findings
}

async fn inspect(settings: &Settings) -> Vec<Finding> {
    let inspection = match Queue::open(&settings.queue, "rollcall doctor") {
        Ok(queue) => queue.inspect(settings).await,
        Err(error) => Err(error),
    };
    match inspection {
        Ok(Inspection::Broker(broker)) => on_broker(&settings.queue.prefix, &broker),
        Ok(Inspection::File(file)) => vec![in_file(&file)],
        Ok(Inspection::NoFile(path)) => vec![Finding::warning(
            "queue",
            format!("the file {} is not there yet", path.display()),
            "rollcall up makes it; if Rollcall runs already, run this in its folder",
        )],
        Err(error @ (QueueError::File { .. } | QueueError::Storage(_))) => vec![fault("queue", &error)],
        Err(error) => {
            let because = "the broker cannot be used";
            let others = ["queues", "unrouted", "consumers"].map(|check| Finding::not_made(check, because));
            [vec![fault("queue", &error)], others.to_vec()].concat()
        }
    }
}

fn in_file(file: &File) -> Finding {
    let found = format!("the file {} is whole; {} free", file.path.display(), HumanBytes(file.free_bytes));
    if file.free_bytes < file.needed_bytes {
        Finding::failed("queue", format!("{found}: events are refused"), "make room on its disk")
    } else if file.free_bytes < LITTLE_ROOM {
        Finding::warning("queue", found, "make room on its disk soon")
    } else {
        Finding::ok("queue", found)
    }
}

fn on_broker(prefix: &str, broker: &Broker) -> Vec<Finding> {
    let mut findings = vec![version(broker)];
    findings.extend(declared(broker));
    findings.push(unrouted(prefix, broker.unrouted));
    findings.extend(consumers(prefix, &broker.deserted));
    findings
}

fn version(broker: &Broker) -> Finding {
    let Some(version) = &broker.version else {
        let found = format!("the broker at {} does not say its version", broker.url);
        return Finding::warning("queue", found, "see that it is RabbitMQ 3.10 or later");
    };
    let found = format!("RabbitMQ {version} at {}", broker.url);
    if is_too_old(version) {
        return Finding::failed(
            "queue",
            found,
            "it is too old and may lose events: upgrade it to RabbitMQ 3.10 or later",
        );
    }
    Finding::ok("queue", found)
}

fn is_too_old(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).is_some_and(|version: (u32, u32)| version < OLDEST)
}

fn declared(broker: &Broker) -> Vec<Finding> {
    if broker.faults.is_empty() {
        let found = format!("{} exchanges, queues and bindings, each as it should be", broker.sound);
        return vec![Finding::ok("queues", found)];
    }
    let mut findings: Vec<_> = broker.faults.iter().take(TOLD).map(|error| fault("queues", error)).collect();
    if let Some(more) = broker.faults.len().checked_sub(TOLD).filter(|more| *more > 0) {
        findings.push(Finding::failed("queues", format!("and {more} more like that"), "as above"));
    }
    findings
}

/// What is wrong, and what to do.
fn fault(check: &str, error: &QueueError) -> Finding {
    match error {
        QueueError::Mismatch { name, reason } => Finding::failed(
            check,
            format!("{name} exists with other arguments ({reason})"),
            format!("once it is empty, {}, then run this again; or choose another queue.prefix", deletion(name)),
        ),
        QueueError::Forbidden { name, reason, .. } => Finding::failed(
            check,
            format!("the broker does not let us use {name} ({reason})"),
            "rabbitmqctl set_permissions -p VHOST USER '^PREFIX' '^PREFIX' '^PREFIX', with those of queue.url and queue.prefix",
        ),
        QueueError::Refused { url, reason } => Finding::failed(
            check,
            format!("the broker at {url} refuses the connection ({reason})"),
            "put the user, password and virtual host of queue.url right, or make them on the broker",
        ),
        QueueError::Unavailable { url, reason } => Finding::failed(
            check,
            format!("the broker at {url} cannot be used: {reason}"),
            "see that it runs and can be reached, or put queue.url right; meanwhile webhooks are kept on the ingress's disk, and workers wait",
        ),
        QueueError::File { path, reason, way_out } => {
            Finding::failed(check, format!("the file {path} cannot be used: {reason}"), way_out)
        }
        QueueError::Url(_) | QueueError::Storage(_) => Finding::failed(check, error, "put queue.url right"),
    }
}

/// How to delete what `queue name` or `exchange name` says.
fn deletion(name: &str) -> String {
    match name.split_once(' ') {
        Some(("queue", name)) => format!("rabbitmqctl delete_queue {name}, with -p for a virtual host other than /"),
        _ => format!("delete {name} in the management plugin"),
    }
}

fn unrouted(prefix: &str, waiting: u64) -> Finding {
    match waiting {
        0 => Finding::ok("unrouted", format!("{prefix}.unrouted is empty")),
        waiting => Finding::failed(
            "unrouted",
            format!(
                "{waiting} events lie in {prefix}.unrouted: somebody had deleted a binding, which is there again now"
            ),
            format!("move them to the exchange {prefix}.events with their routing keys: docs/running.md says how"),
        ),
    }
}

fn consumers(prefix: &str, deserted: &[WorkerName]) -> Vec<Finding> {
    if deserted.is_empty() {
        return vec![Finding::ok("consumers", "every worker's queue has one")];
    }
    let warning = |worker: &WorkerName| {
        let found = format!("nobody takes from {prefix}.{worker}");
        Finding::warning("consumers", found, format!("start its worker: rollcall-worker {worker}, or rollcall up"))
    };
    deserted.iter().map(warning).collect()
}

async fn management(settings: &Settings) -> Vec<Finding> {
    let Some(url) = settings.queue.management_url.as_ref() else { return Vec::new() };
    match ask(settings).await {
        Ok(Some((version, queues))) => {
            let mut findings = vec![known(settings, &version, &queues)];
            let holds = AnyWorker::ALL.map(|worker| longest_hold(worker, settings));
            findings.push(consumer_timeout(holds.into_iter().max().unwrap_or_default(), &queues));
            findings
        }
        Ok(None) => vec![Finding::warning(
            "management",
            "queue.management_url is set, and the queue is a file",
            "remove the setting, or set queue.url to the broker",
        )],
        Err(error) => vec![unanswered(&url.to_string(), error)],
    }
}

async fn ask(settings: &Settings) -> Result<Option<(String, BTreeMap<String, QueueState>)>, ManagementError> {
    let Some(management) = Management::new(&settings.queue)? else { return Ok(None) };
    Ok(Some((management.version().await?, management.queues().await?)))
}

fn known(settings: &Settings, version: &str, queues: &BTreeMap<String, QueueState>) -> Finding {
    let prefix = &settings.queue.prefix;
    if queues.is_empty() {
        return Finding::warning(
            "management",
            format!(
                "it is RabbitMQ {version}, and has no queue of the prefix {prefix} in the virtual host of queue.url"
            ),
            "let queue.management_url name the broker of queue.url",
        );
    }
    Finding::ok("management", format!("RabbitMQ {version}, {} queues of the prefix {prefix}", queues.len()))
}

/// What a queue has of its own; what the broker has for all, half an hour unless somebody set it, the plugin does not tell.
fn consumer_timeout(needed: Duration, queues: &BTreeMap<String, QueueState>) -> Finding {
    let needs = humantime::format_duration(needed);
    let limits = queues.iter().filter_map(|(name, queue)| queue.consumer_timeout.as_ref().map(|limit| (name, limit)));
    let Some((name, ConsumerTimeout { limit, policy })) = limits.min_by_key(|(_, timeout)| timeout.limit) else {
        let found =
            format!("no queue has one of its own; consumer_timeout of rabbitmq.conf must be {needs} or more, if set");
        return Finding::ok("consumer timeout", found);
    };
    let is = humantime::format_duration(*limit);
    if *limit >= needed {
        return Finding::ok("consumer timeout", format!("{is} on {name}; a worker needs {needs} at most"));
    }
    let found = format!("{name} takes a message away from a worker after {is}, and a worker may need {needs}");
    let milliseconds = needed.as_millis();
    match policy {
        Some(policy) => Finding::failed(
            "consumer timeout",
            found,
            format!("raise consumer-timeout of the policy {policy:?} to {milliseconds} or more, or remove it"),
        ),
        None => Finding::failed(
            "consumer timeout",
            found,
            format!(
                "it was declared with x-consumer-timeout: once it is empty, rabbitmqctl delete_queue {name}, then run this again"
            ),
        ),
    }
}

fn unanswered(url: &str, error: ManagementError) -> Finding {
    let todo = match &error {
        ManagementError::Refused(_) => {
            "put its user and password right; the user needs the tag management (rabbitmqctl set_user_tags USER management) \
             and permissions in the virtual host of queue.url"
        }
        ManagementError::Connection(_) => {
            "put queue.management_url right; on the broker, rabbitmq-plugins enable rabbitmq_management"
        }
        ManagementError::Setup(_) | ManagementError::Status(_) | ManagementError::Unreadable(_) => {
            "put queue.management_url right: it is http://user:password@host:15672 of RabbitMQ's management plugin"
        }
    };
    Finding::failed("management", format!("{url}: {}", causes(error)), todo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_3_10_are_too_old() {
        for (version, too_old) in
            [("3.9.29", true), ("3.10.0", false), ("3.13.7", false), ("4.1.0-rc.1", false), ("2.8", true), ("x", false)]
        {
            assert_eq!(is_too_old(version), too_old, "{version}");
        }
    }

    #[test]
    fn the_shortest_consumer_timeout_is_held_against_what_a_worker_needs() {
        let queue = |seconds, policy: Option<&str>| QueueState {
            ready: Some(0),
            unacknowledged: Some(0),
            consumers: Some(1),
            publish_rate: 0.0,
            consumer_timeout: Some(ConsumerTimeout {
                limit: Duration::from_secs(seconds),
                policy: policy.map(str::to_owned),
            }),
        };
        let queues = BTreeMap::from([
            ("r.rooms".to_owned(), queue(3600, Some("long"))),
            ("r.recordings".to_owned(), queue(60, Some("strict"))),
        ]);
        let of = |needed| consumer_timeout(Duration::from_secs(needed), &queues);
        assert!(!of(60).is_failure());
        let finding = of(480);
        assert!(finding.is_failure());
        let line = finding.to_string();
        for part in ["r.recordings takes", "after 1m", "need 8m", "policy \"strict\" to 480000"] {
            assert!(line.contains(part), "no {part:?} in {line}");
        }
    }
}
