//! The page `/rejections` at an ingress's admin address: what it wrote there last, for whoever reads it.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::client::ClientAddress;

/// Where the page is.
pub const PATH: &str = "/rejections";

/// The page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejections {
    /// How many requests were refused since the program began, of the kinds that are listed.
    pub total: u64,
    /// The last of them, the newest first.
    pub rejections: Vec<RejectedRequest>,
}

/// A request that was refused, and all before it that came from the same address (of IPv6, the same /64) for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedRequest {
    /// When the last of them came, to the millisecond.
    pub at: DateTime<Utc>,
    /// When the first of them came.
    pub since: DateTime<Utc>,
    /// How many they are.
    pub count: u64,
    /// From where: the other end of the connection, or what a trusted proxy there says.
    pub address: ClientAddress,
    /// Why, as the label `reason` of `rollcall_ingress_rejections_total` has it.
    pub reason: Cow<'static, str>,
    /// How long its body is in bytes, as announced or as far as it was read, whichever is more.
    pub size: u64,
}
