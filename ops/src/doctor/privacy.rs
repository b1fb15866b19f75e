//! Who else on this machine can read what Rollcall keeps, and its secrets. Nothing is changed: the programs mend what is theirs when
//! they start.

use std::path::{Path, PathBuf};

use rollcall_shared::config::Settings;
use rollcall_shared::private::{FoundOpen, found_open, found_open_to_all};

use super::finding::Finding;

const CHECK: &str = "files";
/// Where container engines lay secrets that only the container sees, for everybody in it to read.
const SECRETS_OF_CONTAINERS: &str = "/run/secrets";

pub(super) fn check(settings: &Settings, config: Option<&Path>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let file = config.map_or_else(|| PathBuf::from("rollcall.toml"), Path::to_owned);
    // What cannot be read was told of by whoever has read the settings.
    let secrets = Settings::secrets_in(&file).unwrap_or_default();
    if let Some(open) = found_open_to_all(&file).filter(|_| !secrets.is_empty()) {
        let found = format!("everybody on this machine can read {} ({})", open.path.display(), secrets.join(", "));
        findings.push(Finding::warning(CHECK, found, open.command));
    }
    let files = settings.secret_files.iter().filter(|file| !file.starts_with(SECRETS_OF_CONTAINERS));
    for open in files.filter_map(|file| found_open_to_all(file)) {
        let found = format!("everybody on this machine can read the secret in {}", open.path.display());
        findings.push(Finding::warning(CHECK, found, open.command));
    }
    for open in settings.ingress.tls.iter().filter_map(|tls| found_open_to_all(&tls.key)) {
        let found = format!("everybody on this machine can read the key of ingress.tls, {}", open.path.display());
        findings.push(Finding::warning(CHECK, found, open.command));
    }
    match found_open(settings) {
        None if findings.is_empty() => findings.push(Finding::ok(CHECK, "there are none yet")),
        None => {}
        Some(open) if open.is_empty() && findings.is_empty() => {
            findings.push(Finding::ok(CHECK, "nobody else on this machine can read them"));
        }
        Some(open) => findings.extend(open.into_iter().map(of_data)),
    }
    findings
}

fn of_data(open: FoundOpen) -> Finding {
    let found = format!("others on this machine can read or lock {}", open.path.display());
    Finding::warning(CHECK, found, format!("start Rollcall as its owner, which mends it, or: {}", open.command))
}
