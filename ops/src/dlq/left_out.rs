//! Ids that a command was given and leaves out: there are no such dead letters, or it is not for what has become of them.

use anyhow::Result;
use rollcall_shared::dead_letters::{Filter, find};
use serde_json::{Value, json};

use super::Tool;
use crate::output;

/// Ids that a command leaves out.
#[derive(Debug)]
pub(super) struct LeftOut {
    /// There are no dead letters of these ids.
    missing: Vec<i64>,
    /// Those that are there.
    others: Vec<Other>,
}

/// A dead letter that a command leaves out.
#[derive(Debug)]
struct Other {
    id: i64,
    /// What has become of it.
    state: String,
    /// Whether the command is for what is in this state: other options do not fit it then.
    is_wanted_state: bool,
}

impl LeftOut {
    /// Those of the filter's ids that it does not choose.
    pub(super) async fn of(tool: &Tool, filter: &Filter) -> Result<Self> {
        let named = Filter { ids: filter.ids.clone(), ..Filter::default() };
        if named.ids.is_empty() {
            return Ok(Self { missing: Vec::new(), others: Vec::new() });
        }
        let there = find::states(&tool.db, &named).await?;
        let chosen = find::states(&tool.db, filter).await?;
        let missing = named.ids.into_iter().filter(|id| !there.contains_key(id)).collect();
        let is_wanted = |state: &str| filter.states.is_empty() || filter.states.iter().any(|one| one.as_str() == state);
        let left = there.into_iter().filter(|(id, _)| !chosen.contains_key(id));
        let others = left.map(|(id, state)| Other { id, is_wanted_state: is_wanted(&state), state }).collect();
        Ok(Self { missing, others })
    }

    /// How many there are in the database.
    pub(super) fn there(&self) -> u64 {
        self.others.len() as u64
    }

    pub(super) fn has_missing(&self) -> bool {
        !self.missing.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.others.is_empty()
    }

    /// A line each.
    pub(super) fn tell(&self) {
        for id in &self.missing {
            output::complain(format_args!("there is no dead letter {id}"));
        }
        for Other { id, state, is_wanted_state } in &self.others {
            let why = if *is_wanted_state { ", and the other options do not fit it" } else { "" };
            output::complain(format_args!("left as it is: {id} is {state}{why}"));
        }
    }

    /// Adds to what is told in JSON.
    pub(super) fn add_to(&self, json: &mut Value) {
        json["missing"] = json!(self.missing);
        json["left_out"] =
            self.others.iter().map(|Other { id, state, .. }| json!({ "id": id, "state": state })).collect();
    }
}
