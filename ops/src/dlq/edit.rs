//! `rollcall dlq edit`: another body for a dead letter, from an editor or from the command line.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

use anyhow::{Context, Result, anyhow, bail};
use rollcall_shared::dead_letters::change::{self, Edited};
use rollcall_shared::dead_letters::{By, Filter, find};
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::{Tool, difference, replay, show};
use crate::who::Who;
use crate::{confirm, output};

/// The most that the history says of what was edited, in bytes.
const MOST_SAID: usize = 2_000;

/// Edit the body of a dead letter: in $VISUAL or $EDITOR, or by --set and --unset.
///
/// The body as it came is kept, and --revert puts it back. Only what is dead or dropped can be edited.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall dlq edit 17
  rollcall dlq edit 17 --set /room/room_id=algebra --reason 'renamed in the LMS' --replay
  rollcall dlq edit 17 --unset /participant/metadata
  rollcall dlq edit 17 --revert")]
pub(super) struct Args {
    /// The dead letter.
    #[arg(value_name = "ID")]
    id: i64,
    /// Set what a JSON pointer names. VALUE is JSON; what is no JSON is a text.
    #[arg(long, value_name = "/POINTER=VALUE", value_parser = setting)]
    set: Vec<(String, Value)>,
    /// Remove what a JSON pointer names.
    #[arg(long, value_name = "/POINTER", value_parser = pointer)]
    unset: Vec<String>,
    /// Put the body back as it came.
    #[arg(long, conflicts_with_all = ["set", "unset"])]
    revert: bool,
    /// Send it back to its worker at once.
    #[arg(long)]
    replay: bool,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    who: Who,
}

fn setting(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("it is /POINTER=VALUE, such as /room/room_id=algebra")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((pointer(name)?, value))
}

fn pointer(text: &str) -> Result<String, String> {
    if text.len() > 1 && text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("a JSON pointer begins with a slash and names something, such as /room/room_id".to_owned())
    }
}

pub(super) async fn run(tool: &Tool, args: &Args) -> Result<ExitCode> {
    let by = By { name: args.who.name(), reason: args.reason.clone() };
    let (edited, differences) = if args.revert {
        (change::revert(&tool.db, args.id, &by).await?, Vec::new())
    } else {
        let body = body(tool, args.id).await?;
        let differences = differences(&body, args).await?;
        if differences.lines.is_empty() {
            if !tool.printed_json(&serde_json::json!({ "id": args.id, "changed": false }))? {
                output::print("the body is as it was: nothing is changed")?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let Differences { lines, body: edited } = differences;
        let said = lines.join("; ");
        let said = &said[..said.floor_char_boundary(MOST_SAID)];
        (change::edit(&tool.db, args.id, (&body, &edited), said, &by).await?, lines)
    };
    tell(tool, args.id, &edited, &differences)?;
    if args.replay {
        return replay::now(tool, Filter { ids: vec![args.id], ..Filter::default() }, by).await;
    }
    Ok(ExitCode::SUCCESS)
}

async fn body(tool: &Tool, id: i64) -> Result<Vec<u8>> {
    let letter = find::letter(&tool.db, id).await?.with_context(|| format!("there is no dead letter {id}"))?;
    if !matches!(letter.row.state.as_str(), "dead" | "dropped") {
        // Before somebody has written for an hour.
        return Err(change::EditError::State(id, letter.row.state).into());
    }
    Ok(letter.row.body)
}

/// An edited body, and what is different in it.
struct Differences {
    lines: Vec<String>,
    body: Vec<u8>,
}

async fn differences(body: &[u8], args: &Args) -> Result<Differences> {
    let before = serde_json::from_slice::<Value>(body);
    let after = if args.set.is_empty() && args.unset.is_empty() {
        in_editor(body).await?
    } else {
        let before = before.as_ref().map_err(|error| anyhow!("the body is no JSON ({error}): edit it as a whole"))?;
        Some(with_settings(before.clone(), &args.set, &args.unset)?)
    };
    let Some(after) = after else { return Ok(Differences { lines: Vec::new(), body: body.to_vec() }) };
    let lines = match &before {
        Ok(before) => difference::between(before, &after),
        Err(_) => vec!["the whole body".to_owned()],
    };
    Ok(Differences { lines, body: serde_json::to_vec(&after)? })
}

fn with_settings(mut body: Value, set: &[(String, Value)], unset: &[String]) -> Result<Value> {
    for (pointer, value) in set {
        set_at(&mut body, pointer, value.clone())?;
    }
    for pointer in unset {
        unset_at(&mut body, pointer)?;
    }
    Ok(body)
}

/// The value that holds what `pointer` names, and by which key.
fn parent<'b>(body: &'b mut Value, pointer: &str) -> Result<(&'b mut Value, String)> {
    let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    let value = body.pointer_mut(parent).with_context(|| format!("the body has no {parent}"))?;
    Ok((value, key.replace("~1", "/").replace("~0", "~")))
}

fn set_at(body: &mut Value, pointer: &str, new: Value) -> Result<()> {
    match parent(body, pointer)? {
        (Value::Object(object), key) => {
            object.insert(key, new);
        }
        (Value::Array(array), key) if key == "-" => array.push(new),
        (Value::Array(array), key) => {
            let place = key.parse::<usize>().ok().and_then(|index| array.get_mut(index));
            *place.with_context(|| format!("the body has no {pointer}; /- is behind the last of a list"))? = new;
        }
        _ => bail!("what {pointer} is to be in has nothing in it: it is neither an object nor a list"),
    }
    Ok(())
}

fn unset_at(body: &mut Value, pointer: &str) -> Result<()> {
    let removed = match parent(body, pointer)? {
        (Value::Object(object), key) => object.shift_remove(&key).is_some(),
        (Value::Array(array), key) => match key.parse::<usize>() {
            Ok(index) if index < array.len() => {
                array.remove(index);
                true
            }
            _ => false,
        },
        _ => false,
    };
    if removed { Ok(()) } else { bail!("the body has no {pointer}") }
}

/// The body as somebody leaves it in their editor; `None` where they leave it as it was.
async fn in_editor(body: &[u8]) -> Result<Option<Value>> {
    std::str::from_utf8(body).context("the body is no text: it cannot be edited")?;
    let before = show::pretty(body);
    let mut file = tempfile::Builder::new().prefix("rollcall-").suffix(".json").tempfile()?;
    writeln!(file, "{before}").context("cannot write the file to edit")?;
    loop {
        edit(&file).await?;
        let text = std::fs::read_to_string(file.path()).context("cannot read what was edited")?;
        if text.trim_end() == before.trim_end() {
            return Ok(None);
        }
        let error = match serde_json::from_str(&text) {
            Ok(value) => return Ok(Some(value)),
            Err(error) => error,
        };
        if !io::stdin().is_terminal() {
            let path = kept(file)?;
            bail!(
                "what was edited is no JSON ({error}): nothing is changed, and the text is kept in {}",
                path.display()
            );
        }
        let question = format!("What was edited is no JSON ({error}). It can be edited again.");
        let interrupted = end_when_interrupted(file.path().to_owned())?;
        let answer = confirm::or_stop(&question);
        interrupted.abort();
        if answer.is_err() {
            bail!(unchanged(&kept(file)?));
        }
    }
}

/// Ends us at Ctrl-C, which would not after an editor has run.
fn end_when_interrupted(path: PathBuf) -> io::Result<JoinHandle<()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::spawn(async move {
        interrupt.recv().await;
        output::complain(format_args!("\nrollcall: {}", unchanged(&path)));
        process::exit(128 + SignalKind::interrupt().as_raw_value());
    }))
}

fn unchanged(path: &Path) -> String {
    format!("nothing is changed, and the text is kept in {}", path.display())
}

fn kept(file: NamedTempFile) -> Result<PathBuf> {
    let (_, path) = file.keep().context("cannot keep what was edited")?;
    Ok(path)
}

/// Runs the editor on a file as git does: it may have options, or be a line of shell; and Ctrl-C and Ctrl-\\ are for the editor
/// alone, though the terminal sends them to us too.
async fn edit(file: &NamedTempFile) -> Result<()> {
    let of = |name| std::env::var(name).ok().filter(|editor| !editor.trim().is_empty());
    let editor = of("VISUAL").or_else(|| of("EDITOR")).unwrap_or_else(|| "vi".to_owned());
    // Who listens for a signal is not ended by it, and hands none of that on to the programs it starts.
    let _listening = (signal(SignalKind::interrupt())?, signal(SignalKind::quit())?);
    let status = Command::new("sh").arg("-c").arg(format!("{editor} \"$@\"")).arg(&editor).arg(file.path()).status();
    let status = status.await.with_context(|| format!("cannot start the editor {editor}"))?;
    if !status.success() {
        bail!("the editor {editor} has failed ({status}): nothing is changed; $VISUAL or $EDITOR say which one to use");
    }
    Ok(())
}

fn tell(tool: &Tool, id: i64, edited: &Edited, differences: &[String]) -> Result<()> {
    let Edited { worker, event, problem } = edited;
    let problem = problem.as_ref().map(ToString::to_string);
    let worker = worker.as_str();
    let json = serde_json::json!({
        "id": id, "changed": true, "worker": worker, "event": event, "differences": differences, "problem": problem,
    });
    if tool.printed_json(&json)? {
        return Ok(());
    }
    for line in differences {
        output::print(line)?;
    }
    if differences.is_empty() {
        output::print("the body is as it came")?;
    }
    if let Some(problem) = problem {
        output::complain(format_args!("warning: the worker {worker} will not understand this body: {problem}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_setting_is_json_or_else_a_text() {
        assert_eq!(setting("/a/b=5").unwrap(), ("/a/b".into(), json!(5)));
        assert_eq!(setting("/a=x=y").unwrap(), ("/a".into(), json!("x=y")));
        assert_eq!(setting(r#"/a="5""#).unwrap(), ("/a".into(), json!("5")));
        assert_eq!(setting("/a=").unwrap(), ("/a".into(), json!("")));
        for wrong in ["/a", "a=5", "=5", "/=5"] {
            assert!(setting(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_last_key_may_be_new_and_its_parent_may_not() {
        let body = json!({"z": 1, "room": {"room_id": "a"}, "list": [1, 2], "a/b": 1});
        let edited = |set: &[&str], unset: &[&str]| {
            let set: Vec<_> = set.iter().map(|text| setting(text).unwrap()).collect();
            let unset: Vec<_> = unset.iter().map(|text| pointer(text).unwrap()).collect();
            with_settings(body.clone(), &set, &unset)
        };
        let expected = r#"{"z":1,"room":{"room_id":"b","sid":"S"},"list":[1,3,4],"a/b":2}"#;
        let set = ["/room/room_id=b", "/room/sid=S", "/list/1=3", "/list/-=4", "/a~1b=2"];
        assert_eq!(edited(&set, &[]).unwrap().to_string(), expected);
        assert_eq!(edited(&[], &["/room", "/list/0", "/a~1b"]).unwrap(), json!({"z": 1, "list": [2]}));
        for (set, unset, error) in [
            (vec!["/rooms/room_id=b"], vec![], "the body has no /rooms"),
            (vec!["/list/2=3"], vec![], "the body has no /list/2"),
            (vec!["/z/y=1"], vec![], "neither an object nor a list"),
            (vec![], vec!["/room/sid"], "the body has no /room/sid"),
            (vec![], vec!["/z/y"], "the body has no /z/y"),
        ] {
            let said = edited(&set, &unset).unwrap_err().to_string();
            assert!(said.contains(error), "{said}");
        }
    }
}
