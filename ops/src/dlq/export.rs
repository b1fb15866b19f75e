//! `rollcall dlq export`: dead letters as lines of JSON.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rollcall_shared::dead_letters::transfer::Export;
use rollcall_shared::dead_letters::{Filter, State, find};
use tempfile::NamedTempFile;

use super::select::Select;
use super::{Tool, letters};
use crate::output;
use crate::progress::Progress;

/// Write dead letters as lines of JSON, with everything there is to each: for another installation, or to keep.
///
/// They stay here as they are. `drop` those that shall live on elsewhere.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall dlq export dead.jsonl
  rollcall dlq export --room algebra --state all | ssh elsewhere rollcall dlq import -
  rollcall dlq export --cause body-unreadable | jq -r .body")]
pub(super) struct Args {
    /// The file, which must not be there yet; - is standard output.
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    select: Select,
}

pub(super) async fn run(tool: &Tool, args: &Args) -> Result<ExitCode> {
    let filter = args.select.filter(State::Dead);
    if args.file.as_os_str() == "-" {
        let count = write(tool, &filter, BufWriter::new(io::stdout().lock()), output::cannot_write).await?;
        output::complain(format_args!("{} exported", letters(count)));
        return Ok(ExitCode::SUCCESS);
    }
    let count = write_file(tool, &filter, &args.file).await?;
    let file = args.file.display();
    if !tool.printed_json(&serde_json::json!({ "exported": count, "file": args.file }))? {
        output::print(format_args!(
            "{} exported to {file}; `rollcall dlq import {file}` takes them in",
            letters(count)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Under its name there is the whole file or none. It is for its owner only: it tells who was where.
async fn write_file(tool: &Tool, filter: &Filter, path: &Path) -> Result<u64> {
    if path.exists() {
        bail!("{} is there already: name another file", path.display());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let in_folder = || format!("cannot write a file in {}", folder.display());
    let file = NamedTempFile::new_in(folder).with_context(in_folder)?;
    let cannot_write = |error| anyhow::Error::new(error).context(in_folder());
    let count = write(tool, filter, BufWriter::new(file.as_file()), cannot_write).await?;
    file.as_file().sync_all().with_context(in_folder)?;
    file.persist_noclobber(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(count)
}

/// How many were written.
async fn write(
    tool: &Tool,
    filter: &Filter,
    mut to: impl Write,
    cannot_write: impl Fn(io::Error) -> anyhow::Error,
) -> Result<u64> {
    let progress = Progress::new("exporting", find::count(&tool.db, filter).await?);
    let mut export = Export::new(&tool.db, filter).await?;
    let mut count = 0;
    loop {
        let records = export.next().await?;
        if records.is_empty() {
            to.flush().map_err(cannot_write)?;
            return Ok(count);
        }
        for record in &records {
            let line = output::json_line(record)?;
            writeln!(to, "{line}").map_err(&cannot_write)?;
        }
        count += records.len() as u64;
        progress.set(count);
    }
}
