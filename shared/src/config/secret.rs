//! What a secret must be, so that it is one; and secrets that stand in files of their own.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use config::{Map, Value, ValueKind};
use secrecy::{ExposeSecret, SecretString};

use super::secret_url::password;
use super::{ConfigError, check};

/// Who has seen a body and its signature tries keys as fast as hardware can: with fewer bytes than this they may get through
/// them all.
pub(super) const SHORTEST: usize = 16;

/// What stands where a secret is to be put, letters and digits only.
const PLACEHOLDERS: [&str; 22] = [
    "apisecret",
    "changeit",
    "changeme",
    "changethis",
    "clientsecret",
    "example",
    "insertsecret",
    "mysecret",
    "none",
    "null",
    "password",
    "placeholder",
    "previoussecret",
    "replaceme",
    "replacethis",
    "secrethere",
    "supersecret",
    "tbd",
    "todo",
    "yourapisecret",
    "yoursecret",
    "yoursecrethere",
];
/// `client.secret` in PlugNMeet's own config_sample.yaml, its documentation, and on its demonstration server.
const PUBLISHED: &str = "zumyyYWqv7KR2kUqvYdq4z4sXg7XTBD2ljT6";

/// Why a text is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    Empty,
    /// HMAC fills a key up with NULs: one of nothing else is the empty one.
    Blank,
    Placeholder,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::Blank => "nothing but white space or NULs",
            Self::Placeholder => "a placeholder",
        })
    }
}

fn flaw(secret: &str) -> Option<Flaw> {
    if secret.is_empty() {
        return Some(Flaw::Empty);
    }
    if secret.chars().all(|character| character.is_whitespace() || character.is_control()) {
        return Some(Flaw::Blank);
    }
    is_placeholder(secret).then_some(Flaw::Placeholder)
}

fn is_placeholder(secret: &str) -> bool {
    let text = secret.trim();
    let bracketed = [("<", ">"), ("${", "}"), ("{{", "}}")];
    let is_bracketed = bracketed.iter().any(|(open, close)| text.starts_with(open) && text.ends_with(close));
    let first = text.chars().next();
    // "s" is merely short.
    let is_one_character = text.chars().count() > 2 && text.chars().all(|character| Some(character) == first);
    let letters: String = text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    is_bracketed || is_one_character || text == "…" || PLACEHOLDERS.contains(&letters.as_str())
}

/// An error that names the setting, unless its value is a secret.
pub(super) fn check_secret(name: &str, secret: &str) -> Result<(), ConfigError> {
    let Some(flaw) = flaw(secret) else { return Ok(()) };
    let allowed = "it is a secret that nobody can guess; what has none is left out, in the environment too";
    check(false, name, &flaw, allowed)
}

/// Whether a secret is one that everybody knows, though it looks as good as any: a PlugNMeet that was set up to be tried out has it.
pub(super) fn is_published(secret: &SecretString) -> bool {
    secret.expose_secret().trim() == PUBLISHED
}

/// Whether a secret is good, and should be longer all the same.
pub(super) fn is_short(secret: &SecretString) -> bool {
    secret.expose_secret().len() < SHORTEST
}

/// The settings that hold a secret, and may stand in a file instead, `<name>_file`; `*` is any name.
const SECRETS: [&str; 5] =
    ["queue.url", "queue.management_url", "database.url", "plugnmeet.*.api_secret", "plugnmeet.*.previous_secret"];

/// Puts what stands in the files of `<name>_file` where `<name>` would be; which files these are.
///
/// # Errors
/// A file cannot be read, or the setting is there as well.
pub(super) fn read_files(settings: &mut Value) -> Result<Vec<PathBuf>, ConfigError> {
    let mut files = Vec::new();
    for Place { table, name } in places(settings) {
        let setting = full_name(&table, &format!("{name}_file"));
        // What is no table here is told as that, when the settings are read.
        let Some(table) = table_at(settings, &table) else { continue };
        let Some(file) = table.remove(&format!("{name}_file")) else { continue };
        let file = file.into_string()?;
        check(!table.contains_key(name), &setting, &file, "either this is set or what is to stand in it, not both")?;
        check(!file.is_empty(), &setting, &"empty", "it is the path of a file; what has none is left out")?;
        let secret = fs::read_to_string(&file)
            .map_err(|error| ConfigError::Read(format!("setting {setting}: {file} cannot be read: {error}")))?;
        // An editor ends the last line, too.
        table.insert(name.to_owned(), Value::new(None, secret.trim_end_matches(['\r', '\n'])));
        files.push(file.into());
    }
    Ok(files)
}

/// Which of these settings are secrets themselves: those that name a file, or a URL without a password, are not.
pub(super) fn held(settings: &mut Value) -> Vec<String> {
    let is_secret = |name: &str, text: &str| !name.ends_with("url") || password(text).is_some();
    let mut held = Vec::new();
    for Place { table, name } in places(settings) {
        let value = table_at(settings, &table).and_then(|table| table.get(name)?.clone().into_string().ok());
        if value.is_some_and(|text| is_secret(name, &text)) {
            held.push(full_name(&table, name));
        }
    }
    held
}

/// Where a secret may stand: the tables that lead there, and its name in the last of them.
struct Place {
    table: Vec<String>,
    name: &'static str,
}

fn full_name(table: &[String], name: &str) -> String {
    format!("{}.{name}", table.join("."))
}

/// Every place for a secret in these settings: [`SECRETS`], with the names that are there for `*`.
fn places(settings: &mut Value) -> Vec<Place> {
    let mut places = Vec::new();
    for (path, name) in SECRETS.iter().filter_map(|secret| secret.rsplit_once('.')) {
        match path.strip_suffix(".*") {
            Some(path) => {
                let names = table_at(settings, &[path.to_owned()]).into_iter().flat_map(|table| table.keys());
                places.extend(names.map(|of| Place { table: vec![path.to_owned(), of.clone()], name }));
            }
            None => places.push(Place { table: vec![path.to_owned()], name }),
        }
    }
    places
}

fn table_at<'a>(settings: &'a mut Value, path: &[String]) -> Option<&'a mut Map<String, Value>> {
    path.iter().try_fold(settings, |value, name| table_in(value)?.get_mut(name)).and_then(table_in)
}

fn table_in(value: &mut Value) -> Option<&mut Map<String, Value>> {
    match &mut value.kind {
        ValueKind::Table(table) => Some(table),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_anybody_can_guess_is_no_secret() {
        for (secret, expected) in [
            ("", Flaw::Empty),
            (" ", Flaw::Blank),
            ("\t\r\n\u{a0}", Flaw::Blank),
            ("\0\0", Flaw::Blank),
            (" \0", Flaw::Blank),
            ("changeme", Flaw::Placeholder),
            ("Change-Me!", Flaw::Placeholder),
            ("YOUR_API_SECRET", Flaw::Placeholder),
            ("<secret>", Flaw::Placeholder),
            ("${PLUGNMEET_SECRET}", Flaw::Placeholder),
            ("…", Flaw::Placeholder),
            ("...", Flaw::Placeholder),
            ("xxxxxxxxxxxxxxxx", Flaw::Placeholder),
        ] {
            assert_eq!(flaw(secret), Some(expected), "{secret:?}");
        }
        for secret in ["s", "hunter2", "xyxyxyxy", "a secret of mine", "ключ-от-квартиры-1", "changeme-2f6c0d"]
        {
            assert_eq!(flaw(secret), None, "{secret:?}");
        }
        assert!(is_short(&"fifteen letters".into()) && !is_short(&"sixteen letters.".into()));
    }
}
