//! `[log]`: what is told of what goes on, and to whom.

use serde::Deserialize;

use super::{ConfigError, check};

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What to log, a level and levels of parts: `info`, `info,rollcall_workers=debug`.
    pub filter: String,
    /// For people or for machines.
    pub format: LogFormat,
}

/// For people or for machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Auto }
    }
}

impl Log {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        // An empty one would say nothing but errors.
        let filter = &self.filter;
        check(!filter.trim().is_empty(), "log.filter", filter, "it is a level such as \"info\", or \"off\"")
    }
}

// The `config` crate's own error for an unknown variant does not say which there are.
impl TryFrom<String> for LogFormat {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is none of \"auto\", \"text\" and \"json\"")),
        }
    }
}
