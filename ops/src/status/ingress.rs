//! What an ingress shows at its admin address: whether it can work, its counters, and what it refused last.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rollcall_shared::causes::in_one_line;
use rollcall_shared::telemetry::rejections::{self, RejectedRequest, Rejections};
use serde::Serialize;

/// How long it may take to answer.
const LIMIT: Duration = Duration::from_secs(3);
/// How many of the refused requests are shown.
const LAST: usize = 5;

/// An ingress, as it shows itself.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Ingress {
    pub(super) address: String,
    /// Why nothing is known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unreachable: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) shown: Option<Shown>,
}

/// What it shows.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Shown {
    pub(super) ready: bool,
    /// How it is ready, or why it is not.
    pub(super) readiness: String,
    pub(super) connections: u64,
    /// Events accepted since it started, by worker.
    pub(super) accepted: BTreeMap<String, u64>,
    /// Where events wait that the broker does not take; `None` where the queue is a file.
    pub(super) spool: Option<Spool>,
    /// Requests refused since it started, by reason.
    pub(super) rejected: BTreeMap<String, u64>,
    /// The latest of them.
    pub(super) rejections: Vec<RejectedRequest>,
}

/// The spool of an ingress.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Spool {
    pub(super) events: u64,
    pub(super) oldest_seconds: f64,
    pub(super) bytes: u64,
    /// Whether the broker is left alone for now.
    pub(super) is_open: bool,
}

impl Ingress {
    pub(super) async fn ask(http: &reqwest::Client, address: &str) -> Self {
        let shown = shown(http, address).await;
        Self { address: address.to_owned(), unreachable: shown.as_ref().err().map(in_one_line), shown: shown.ok() }
    }
}

async fn shown(http: &reqwest::Client, address: &str) -> Result<Shown> {
    let (ready, readiness) = get(http, address, "/readyz").await?;
    let (has_metrics, metrics) = get(http, address, "/metrics").await?;
    let (has_rejections, page) = get(http, address, rejections::PATH).await?;
    if !has_metrics || !has_rejections {
        bail!("what answers there is no ingress of this version");
    }
    let page: Rejections = serde_json::from_str(&page).context("what answers there is no ingress")?;
    let metrics = Metrics(&metrics);
    let spool = metrics.value("rollcall_spool_events").map(|events| Spool {
        events: count(events),
        oldest_seconds: metrics.value("rollcall_spool_oldest_seconds").unwrap_or_default(),
        bytes: count(metrics.value("rollcall_spool_bytes").unwrap_or_default()),
        is_open: metrics.value("rollcall_spool_open") == Some(1.0),
    });
    Ok(Shown {
        ready,
        readiness: readiness.trim().to_owned(),
        connections: count(metrics.value("rollcall_ingress_connections").unwrap_or_default()),
        accepted: metrics.by_label("rollcall_ingress_accepted_total", "worker"),
        spool,
        rejected: metrics.by_label("rollcall_ingress_rejections_total", "reason"),
        rejections: page.rejections.into_iter().take(LAST).collect(),
    })
}

/// Whether the answer was a success, and its text.
async fn get(http: &reqwest::Client, address: &str, path: &str) -> Result<(bool, String)> {
    let answer = http.get(format!("http://{address}{path}")).timeout(LIMIT).send().await;
    let answer = answer.map_err(reqwest::Error::without_url).context("it does not answer")?;
    let is_success = answer.status().is_success();
    Ok((is_success, answer.text().await.map_err(reqwest::Error::without_url).context("its answer broke off")?))
}

/// A page of metrics in Prometheus' text format, as our own exporter writes it.
struct Metrics<'a>(&'a str);

impl Metrics<'_> {
    /// A metric without labels.
    fn value(&self, name: &str) -> Option<f64> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// A counter, by the values of its one label.
    fn by_label(&self, name: &str, label: &str) -> BTreeMap<String, u64> {
        let of_line = |line: &str| {
            let (value_of_label, rest) = line
                .strip_prefix(name)?
                .strip_prefix('{')?
                .strip_prefix(label)?
                .strip_prefix("=\"")?
                .split_once('"')?;
            let value: f64 = rest.strip_prefix("} ")?.parse().ok()?;
            Some((value_of_label.to_owned(), count(value)))
        };
        self.0.lines().filter_map(of_line).collect()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter is a whole number from 0 on")]
fn count(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_by_name_and_label() {
        let metrics = Metrics(
            "# TYPE rollcall_ingress_accepted_total counter\n\
             rollcall_ingress_accepted_total{worker=\"attendance\"} 12\n\
             rollcall_ingress_accepted_total{worker=\"rooms\"} 3\n\n\
             rollcall_spool_events 7\nrollcall_spool_open 1\n",
        );
        assert_eq!(metrics.value("rollcall_spool_events"), Some(7.0));
        assert_eq!(metrics.value("rollcall_spool"), None);
        let accepted = metrics.by_label("rollcall_ingress_accepted_total", "worker");
        assert_eq!(accepted, BTreeMap::from([("attendance".to_owned(), 12), ("rooms".to_owned(), 3)]));
    }
}
