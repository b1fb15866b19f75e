//! What a check says: one line for people, one object for machines.

use std::fmt::{self, Display};

use serde::Serialize;

/// How wide the names of checks are.
const WIDTH: usize = 16;

/// What a check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    check: String,
    status: Status,
    found: String,
    todo: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warning,
    Failed,
}

impl Finding {
    /// All is well.
    pub(super) fn ok(check: impl Into<String>, found: impl Display) -> Self {
        Self { check: check.into(), status: Status::Ok, found: found.to_string(), todo: None }
    }

    /// It works, and deserves a look.
    pub(super) fn warning(check: impl Into<String>, found: impl Display, todo: impl Display) -> Self {
        let (found, todo) = (found.to_string(), Some(todo.to_string()));
        Self { check: check.into(), status: Status::Warning, found, todo }
    }

    /// It does not work.
    pub(super) fn failed(check: impl Into<String>, found: impl Display, todo: impl Display) -> Self {
        let (found, todo) = (found.to_string(), Some(todo.to_string()));
        Self { check: check.into(), status: Status::Failed, found, todo }
    }

    /// It could not be looked at, because of something that is told elsewhere.
    pub(super) fn not_made(check: impl Into<String>, because: &str) -> Self {
        Self { check: check.into(), status: Status::Warning, found: format!("not checked: {because}"), todo: None }
    }

    pub(super) fn is_failure(&self) -> bool {
        self.status == Status::Failed
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.status {
            Status::Ok => '✓',
            Status::Warning => '!',
            Status::Failed => '✗',
        };
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        write!(f, "{mark} {:WIDTH$} {}", self.check, one_line(&self.found))?;
        self.todo.iter().try_for_each(|todo| write!(f, " → {}", one_line(todo)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_and_one_object() {
        let failed = Finding::failed("database", "it\n  is away", "start it");
        assert_eq!(failed.to_string(), "✗ database         it is away → start it");
        let json = r#"{"check":"storage","status":"warning","found":"little room","todo":"make some"}"#;
        assert_eq!(serde_json::to_string(&Finding::warning("storage", "little room", "make some")).unwrap(), json);
        let ok = Finding::ok("queue", "there");
        let json = r#"{"check":"queue","status":"ok","found":"there","todo":null}"#;
        assert_eq!(serde_json::to_string(&ok).unwrap(), json);
        assert!(failed.is_failure() && !ok.is_failure());
    }
}
