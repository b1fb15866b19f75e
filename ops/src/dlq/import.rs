//! `rollcall dlq import`: dead letters from another installation, or from long ago.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rollcall_shared::dead_letters::By;
use rollcall_shared::dead_letters::transfer::{self, Imported, Record};

use super::{Tool, letters};
use crate::output;
use crate::who::Who;

/// How many lines are taken in at once, and how many bytes of them.
const BATCH: usize = 200;
const BATCH_BYTES: usize = 4 << 20;
/// How long a line may be beside its bodies, in bytes; and how many of JSON's bytes one of a body's takes at most, of the body and
/// of the original.
const BESIDE_BODIES: usize = 16 << 20;
const BYTES_FOR_ONE: usize = 2 * 6;

/// Take in dead letters that `export` has written: they are dead here, whatever they were there, with their history.
///
/// What is here already is left as it is, so that a file can be imported again. What no queue and no database would take (a body
/// longer than ingress.max_body_bytes, a name that is none, a number that cannot be) ends it, and the line is named.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall dlq import dead.jsonl --dry-run
  rollcall dlq import dead.jsonl --reason 'the old server is gone'
  gunzip < dead.jsonl.gz | rollcall dlq import -")]
pub(super) struct Args {
    /// The file; - is standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only say what would be taken in.
    #[arg(long)]
    dry_run: bool,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    who: Who,
}

pub(super) async fn run(tool: &Tool, args: Args) -> Result<ExitCode> {
    let Args { file, dry_run, reason, who } = args;
    let lines: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(&file).with_context(|| format!("cannot read {}", file.display()))?))
    };
    let by = (!dry_run).then(|| By { name: who.name(), reason });
    let mut importing = Importing { tool, by, done: Imported::default() };
    let outcome = importing.all(lines).await;
    let Imported { new, known, erased } = importing.done;
    if outcome.is_err() && !dry_run && new + known > 0 {
        output::complain(format_args!(
            "{} before that are taken in; import the file again once it is mended",
            letters(new + known)
        ));
    }
    outcome?;
    let json = if dry_run {
        serde_json::json!({ "would_import": new, "known": known, "erased": erased })
    } else {
        serde_json::json!({ "imported": new, "known": known, "erased": erased })
    };
    if !tool.printed_json(&json)? {
        let done = if dry_run { "would be imported" } else { "imported" };
        output::print(format_args!("{} {done}, {known} known already", letters(new)))?;
        if erased > 0 {
            output::print(format_args!("{} left out: they are about people who were erased here", letters(erased)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

struct Importing<'a> {
    tool: &'a Tool,
    /// Nobody, where nothing is to be changed.
    by: Option<By>,
    done: Imported,
}

impl Importing<'_> {
    /// Takes in everything before the first line that is bad.
    async fn all(&mut self, mut lines: impl BufRead) -> Result<()> {
        let max_body = self.tool.settings.ingress.max_body_bytes;
        let longest = max_body.saturating_mul(BYTES_FOR_ONE).saturating_add(BESIDE_BODIES);
        let mut batch = Vec::new();
        let mut bytes = 0;
        for number in 1.. {
            let line = match next_line(&mut lines, longest) {
                Ok(None) => break,
                line => line.map(Option::unwrap_or_default),
            };
            let read = line.and_then(|line| {
                bytes += line.len();
                if line.trim().is_empty() { Ok(None) } else { Ok(Some(Record::parse(&line, max_body)?)) }
            });
            match read.with_context(|| format!("line {number}")) {
                Ok(record) => batch.extend(record),
                Err(error) => {
                    self.take_in(&batch).await?;
                    return Err(error);
                }
            }
            if batch.len() >= BATCH || bytes >= BATCH_BYTES {
                self.take_in(&batch).await?;
                batch.clear();
                bytes = 0;
            }
        }
        self.take_in(&batch).await
    }

    async fn take_in(&mut self, batch: &[Record]) -> Result<()> {
        let Imported { new, known, erased } = match &self.by {
            Some(by) => transfer::import(&self.tool.db, batch, by).await?,
            None => transfer::would_import(&self.tool.db, batch).await?,
        };
        self.done.new += new;
        self.done.known += known;
        self.done.erased += erased;
        Ok(())
    }
}

/// The next line, of so many bytes at most; none at the end.
fn next_line(lines: &mut impl BufRead, longest: usize) -> Result<Option<String>> {
    let mut line = String::new();
    let read = lines.take(longest as u64 + 1).read_line(&mut line)?;
    if read > longest {
        bail!("it is longer than {longest} bytes: no dead letter is, with bodies of ingress.max_body_bytes at most");
    }
    Ok((read > 0).then_some(line))
}
