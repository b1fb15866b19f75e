//! `[sessions]`: sessions that nobody announced.

use serde::Deserialize;

/// `[sessions]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// What becomes of a session that the LMS has not announced.
    pub unknown: UnknownSessions,
}

/// What becomes of a session that the LMS has not announced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum UnknownSessions {
    /// It gets a row of its own.
    #[default]
    Create,
    /// Its events wait for the LMS and die in the end.
    Reject,
}

// The `config` crate's own error for an unknown variant does not say which there are.
impl TryFrom<String> for UnknownSessions {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "create" => Ok(Self::Create),
            "reject" => Ok(Self::Reject),
            _ => Err(format!("{text:?} is neither \"create\" nor \"reject\"")),
        }
    }
}
