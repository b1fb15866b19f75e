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

/// Edit the body of a dead letter: in $VISUAL or $EDITOR, or by --set, --set-json and --unset.
///
/// The body as it came is kept, and --revert puts it back. Only what is dead or dropped can be edited. What its worker would not
/// understand is said at once, and not sent: it would only die again.
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
    /// Set what a JSON pointer names. VALUE becomes what stands there: a text stays one, a number has to be a number, true or
    /// false either; where nothing stands, it is a text.
    #[arg(long, value_name = "/POINTER=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// Set what a JSON pointer names, whatever stands there. VALUE is JSON, such as 5, null, "5", or {"sid":"PA_1"}.
    #[arg(long, value_name = "/POINTER=JSON", value_parser = json_setting)]
    set_json: Vec<(String, Value)>,
    /// Remove what a JSON pointer names.
    #[arg(long, value_name = "/POINTER", value_parser = pointer)]
    unset: Vec<String>,
    /// Put the body back as it came.
    #[arg(long, conflicts_with_all = ["set", "set_json", "unset"])]
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

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is /POINTER=VALUE, such as /room/room_id=algebra")?;
    Ok((pointer(name)?, value.to_owned()))
}

fn json_setting(text: &str) -> Result<(String, Value), String> {
    let (name, value) = setting(text)?;
    let value = serde_json::from_str(&value)
        .map_err(|error| format!("{value} is no JSON ({error}): a text has quotes there, or say --set"))?;
    Ok((name, value))
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
        let max_body = tool.settings.ingress.max_body_bytes;
        (change::edit(&tool.db, args.id, (&body, &edited), max_body, said, &by).await?, lines)
    };
    tell(tool, args.id, &edited, &differences)?;
    if args.replay && edited.problem.is_some() {
        output::complain("it is edited, and not sent: it would die again");
        return Ok(ExitCode::FAILURE);
    }
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
    let after = if args.set.is_empty() && args.set_json.is_empty() && args.unset.is_empty() {
        in_editor(body).await?
    } else {
        let before = before.as_ref().map_err(|error| anyhow!("the body is no JSON ({error}): edit it as a whole"))?;
        Some(with_settings(before.clone(), args)?)
    };
    let Some(after) = after else { return Ok(Differences { lines: Vec::new(), body: body.to_vec() }) };
    let lines = match &before {
        Ok(before) => difference::between(before, &after),
        Err(_) => vec!["the whole body".to_owned()],
    };
    Ok(Differences { lines, body: serde_json::to_vec(&after)? })
}

fn with_settings(mut body: Value, args: &Args) -> Result<Value> {
    for (pointer, text) in &args.set {
        let value = as_stands(&body, pointer, text)?;
        set_at(&mut body, pointer, value)?;
    }
    for (pointer, value) in &args.set_json {
        set_at(&mut body, pointer, value.clone())?;
    }
    for pointer in &args.unset {
        unset_at(&mut body, pointer)?;
    }
    Ok(body)
}

/// What was said, as what stands at the pointer: ids look like numbers, and are texts.
fn as_stands(body: &Value, pointer: &str, text: &str) -> Result<Value> {
    let another = |what: &str| anyhow!("at {pointer} stands {what}, which {text:?} is not: to have it so, --set-json");
    let json = || serde_json::from_str::<Value>(text).ok();
    match body.pointer(pointer) {
        Some(Value::Number(_)) => json().filter(Value::is_number).ok_or_else(|| another("a number")),
        Some(Value::Bool(_)) => json().filter(Value::is_boolean).ok_or_else(|| another("true or false")),
        Some(Value::Object(_)) => Err(another("an object")),
        Some(Value::Array(_)) => Err(another("a list")),
        Some(Value::String(_) | Value::Null) | None => Ok(Value::String(text.to_owned())),
    }
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

    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(arguments: &[&str]) -> Args {
        Cli::try_parse_from([&["edit", "1"], arguments].concat()).unwrap_or_else(|error| panic!("{error}")).args
    }

    #[test]
    fn a_setting_names_something_and_json_is_json() {
        assert_eq!(setting("/a=x=y").unwrap(), ("/a".into(), "x=y".into()));
        assert_eq!(setting("/a=").unwrap(), ("/a".into(), String::new()));
        assert_eq!(json_setting("/a/b=5").unwrap(), ("/a/b".into(), json!(5)));
        for wrong in ["/a", "a=5", "=5", "/=5"] {
            assert!(setting(wrong).is_err() && json_setting(wrong).is_err(), "{wrong}");
        }
        assert!(json_setting("/a=algebra").unwrap_err().contains("algebra is no JSON"));
    }

    #[test]
    fn what_stands_there_decides_what_it_becomes() {
        let body = json!({"text": "a", "number": 1, "yes": true, "nothing": null, "list": [1, "a"], "object": {}});
        let edited = |arguments: &[&str]| with_settings(body.clone(), &args(arguments));
        for text in ["4711", "true", "1e5", "null", "\"5\"", "{}", ""] {
            let at = |pointer: &str| format!("/{pointer}={text}");
            let set =
                edited(&["--set", &at("text"), "--set", &at("nothing"), "--set", &at("new"), "--set", &at("list/1")]);
            let set = set.unwrap();
            assert_eq!([&set["text"], &set["nothing"], &set["new"], &set["list"][1]], [&json!(text); 4]);
        }
        let set = edited(&[
            "--set",
            "/number=2.5",
            "--set",
            "/yes=false",
            "--set-json",
            "/text=5",
            "--set-json",
            "/object=[]",
        ]);
        let set = set.unwrap();
        assert_eq!(
            (&set["number"], &set["yes"], &set["text"], &set["object"]),
            (&json!(2.5), &json!(false), &json!(5), &json!([]))
        );
        for (setting, error) in [
            ("/number=many", "at /number stands a number"),
            ("/number=\"5\"", "at /number stands a number"),
            ("/yes=1", "at /yes stands true or false"),
            ("/object=5", "at /object stands an object"),
            ("/list=5", "at /list stands a list"),
        ] {
            let said = edited(&["--set", setting]).unwrap_err().to_string();
            assert!(said.contains(error) && said.ends_with("--set-json"), "{said}");
        }
    }

    #[test]
    fn the_last_key_may_be_new_and_its_parent_may_not() {
        let body = json!({"z": 1, "room": {"room_id": "a"}, "list": [1, 2], "a/b": 1});
        let edited =
            |arguments: &str| with_settings(body.clone(), &args(&arguments.split_whitespace().collect::<Vec<_>>()));
        let expected = r#"{"z":1,"room":{"room_id":"b","sid":"S"},"list":[1,3,4],"a/b":2}"#;
        let set = "--set /room/room_id=b --set /room/sid=S --set /list/1=3 --set-json /list/-=4 --set /a~1b=2";
        assert_eq!(edited(set).unwrap().to_string(), expected);
        assert_eq!(edited("--unset /room --unset /list/0 --unset /a~1b").unwrap(), json!({"z": 1, "list": [2]}));
        for (arguments, error) in [
            ("--set /rooms/room_id=b", "the body has no /rooms"),
            ("--set /list/2=3", "the body has no /list/2"),
            ("--set /z/y=1", "neither an object nor a list"),
            ("--unset /room/sid", "the body has no /room/sid"),
            ("--unset /z/y", "the body has no /z/y"),
        ] {
            let said = edited(arguments).unwrap_err().to_string();
            assert!(said.contains(error), "{said}");
        }
    }
}
