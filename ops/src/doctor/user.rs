//! Who asks: what root may do says nothing about the user that Rollcall runs as.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rollcall_shared::config::Settings;

use super::finding::Finding;

/// A word of warning where root asks about what is another user's; nothing is said otherwise.
pub(super) fn check(settings: &Settings) -> Option<Finding> {
    let is_root = rustix::process::geteuid().is_root();
    let paths = [
        settings.queue.url.sqlite_path(),
        settings.database.url.sqlite_path(),
        settings.storage.url.to_file_path().ok(),
    ];
    let owners = paths.into_iter().flatten().filter_map(|path| owner(&path).map(|owner| (path, owner)));
    is_root.then(|| of_another(owners)).flatten()
}

fn owner(path: &Path) -> Option<u32> {
    path.metadata().ok().map(|file| file.uid())
}

fn of_another(mut owners: impl Iterator<Item = (PathBuf, u32)>) -> Option<Finding> {
    let (path, owner) = owners.find(|(_, owner)| *owner != 0)?;
    let found =
        format!("this is root, and {} belongs to user {owner}: that root may write says nothing", path.display());
    Some(Finding::warning("user", found, format!("run it as Rollcall's user: sudo -u '#{owner}' rollcall doctor")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_told_whose_files_they_are() {
        let owners = |owners: &[(&str, u32)]| {
            let owners: Vec<_> = owners.iter().map(|(path, owner)| (PathBuf::from(path), *owner)).collect();
            of_another(owners.into_iter()).map(|finding| finding.to_string())
        };
        assert_eq!(owners(&[("queue.db", 0), ("media", 0)]), None);
        let warning = owners(&[("queue.db", 0), ("media", 999)]).unwrap();
        assert!(warning.starts_with("! user") && warning.contains("media belongs to user 999"), "{warning}");
        assert!(warning.contains("sudo -u '#999'"), "{warning}");
    }
}
