//! How many of the chosen dead letters a change has reached, and how that is told: by `drop` and by `restore`.

use std::process::ExitCode;

use anyhow::Result;
use rollcall_shared::dead_letters::Filter;
use serde_json::{Map, Value};

use super::left_out::LeftOut;
use super::{Tool, letters, none};
use crate::output;

/// What a change has come to.
pub(super) struct Outcome {
    /// What is done to them, in a word: "dropped".
    pub(super) done: &'static str,
    /// How to go on from there.
    pub(super) hint: &'static str,
    /// How many were found.
    pub(super) found: u64,
    /// How many were changed.
    pub(super) changed: u64,
}

impl Outcome {
    pub(super) async fn tell(&self, tool: &Tool, filter: &Filter, left_out: &LeftOut) -> Result<ExitCode> {
        let Self { done, changed, found, .. } = self;
        let meanwhile = found.saturating_sub(*changed);
        let numbers = [((*done).to_owned(), *changed), (format!("not_{done}"), meanwhile + left_out.there())];
        let mut json =
            Value::Object(numbers.map(|(name, number)| (name, number.into())).into_iter().collect::<Map<_, _>>());
        left_out.add_to(&mut json);
        if !tool.printed_json(&json)? {
            self.tell_people(tool, filter, meanwhile).await?;
        }
        left_out.tell();
        Ok(if left_out.has_missing() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    async fn tell_people(&self, tool: &Tool, filter: &Filter, meanwhile: u64) -> Result<()> {
        let Self { done, hint, changed, .. } = self;
        if *changed > 0 {
            output::print(format_args!("{} {done}; {hint}", letters(*changed)))?;
        } else {
            output::print(format_args!("{}: nothing was {done}", none(tool, filter).await?))?;
        }
        if meanwhile > 0 {
            output::print(format_args!("{} not: somebody has changed them meanwhile", letters(meanwhile)))?;
        }
        Ok(())
    }
}
