//! The demo's directory: what one run leaves to look at, and the next one clears away.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Marks a directory as the demo's own, so that it may be emptied; held locked by the run that is in it.
const LOCK: &str = ".rollcall-demo";
const MEDIA: &str = "media";
const LOGS: &str = "logs";
const WORK: &str = "work";

/// A directory that no other run is in.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// The directory at `path`, or one of this user's for temporary files; emptied of what an earlier run left.
    pub(super) fn open(path: Option<&Path>) -> Result<Self> {
        let path = path.map_or_else(default_path, Path::to_path_buf);
        let failed = || format!("cannot use the directory {}", path.display());
        let is_new = !path.exists();
        // Nobody else's to read: it may be in a place that everybody can write to.
        DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(failed)?;
        let path = path.canonicalize().with_context(failed)?;
        let is_empty = is_new || fs::read_dir(&path).with_context(failed)?.next().is_none();
        if !is_empty && !path.join(LOCK).exists() {
            bail!("{} is not empty and no earlier demo's: choose another --dir", path.display());
        }
        let lock = File::create(path.join(LOCK)).with_context(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("a demo is running in {}: choose another --dir", path.display()),
            Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
        }
        let directory = Self { path, _lock: lock };
        for folder in [directory.media(), directory.logs(), directory.work()] {
            if folder.exists() {
                fs::remove_dir_all(&folder).with_context(failed)?;
            }
            fs::create_dir(&folder).with_context(failed)?;
        }
        Ok(directory)
    }

    /// The storage: what the recordings worker archives.
    pub(super) fn media(&self) -> PathBuf {
        self.path.join(MEDIA)
    }

    /// What the programs said.
    pub(super) fn logs(&self) -> PathBuf {
        self.path.join(LOGS)
    }

    /// What only this run needs.
    pub(super) fn work(&self) -> PathBuf {
        self.path.join(WORK)
    }

    /// Leaves the media, for people to look at.
    pub(super) fn tidy(&self) {
        for folder in [self.logs(), self.work()] {
            // What cannot be removed now is removed by the next run.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

fn default_path() -> PathBuf {
    std::env::temp_dir().join(format!("rollcall-demo-{}", rustix::process::getuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_run_clears_away_what_the_last_one_left_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("demo");
        let first = Directory::open(Some(&path)).unwrap();
        fs::write(first.media().join("a.mp4"), "video").unwrap();
        assert!(Directory::open(Some(&path)).unwrap_err().to_string().contains("a demo is running"));
        first.tidy();
        assert!(first.media().join("a.mp4").exists() && !first.logs().exists());
        drop(first);
        let second = Directory::open(Some(&path)).unwrap();
        assert!(!second.media().join("a.mp4").exists());

        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("thesis.txt"), "text").unwrap();
        assert!(Directory::open(Some(&other)).unwrap_err().to_string().contains("not empty"));
    }
}
