//! `rollcall dlq note`: something to remember about a dead letter.

use std::process::ExitCode;

use anyhow::{Result, bail};
use rollcall_shared::dead_letters::{By, change};

use super::Tool;
use crate::output;
use crate::who::Who;

/// Write a note about a dead letter into its history.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall dlq note 17 'asked the vendor, ticket 4711'
  rollcall dlq note 17 'theirs to mend' --as sara")]
pub(super) struct Args {
    /// The dead letter.
    #[arg(value_name = "ID")]
    id: i64,
    /// The note.
    #[arg(value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    text: String,
    #[command(flatten)]
    who: Who,
}

pub(super) async fn run(tool: &Tool, args: Args) -> Result<ExitCode> {
    let Args { id, text, who } = args;
    if !change::note(&tool.db, id, &By { name: who.name(), reason: Some(text) }).await? {
        bail!("there is no dead letter {id}");
    }
    if !tool.printed_json(&serde_json::json!({ "noted": id }))? {
        output::print(format_args!("noted; `rollcall dlq show {id}` shows it"))?;
    }
    Ok(ExitCode::SUCCESS)
}
