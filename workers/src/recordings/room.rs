//! How much of the disks recordings may take: what the queue, its spool and the database need stays free.
//!
//! In the default layout all of them lie on one disk, and an event that finds no room there is lost to PlugNMeet, while a recording
//! can wait. So whatever meets a full disk here, or would leave too little of it, is nobody's failure: the job removes what it has
//! and is done again when there may be room.

use std::io;
use std::path::{Path, PathBuf};

/// The disks of recordings.
#[derive(Debug, Clone)]
pub(super) struct Room {
    folders: Vec<PathBuf>,
    min_free_bytes: u64,
}

/// Why there is no room.
#[derive(Debug, thiserror::Error)]
#[error(
    "the disk of {} has {free} bytes free, {wanted} are wanted, and recordings.min_free_bytes says that {min_free} stay free",
    folder.display()
)]
struct Shortage {
    folder: PathBuf,
    free: u64,
    wanted: u64,
    min_free: u64,
}

impl Room {
    /// On the disks of these folders, each of which keeps so many bytes free.
    pub(super) fn new(folders: Vec<PathBuf>, min_free_bytes: u64) -> Self {
        Self { folders, min_free_bytes }
    }

    /// Whether there is room for so many bytes more.
    ///
    /// # Errors
    /// There is not: [`StorageFull`](io::ErrorKind::StorageFull). Or nobody can tell.
    pub(super) fn check(&self, wanted: u64) -> io::Result<()> {
        self.folders.iter().try_for_each(|folder| {
            let (free, min_free) = (free_bytes(folder)?, self.min_free_bytes);
            if free >= wanted.saturating_add(min_free) {
                return Ok(());
            }
            let shortage = Shortage { folder: folder.clone(), free, wanted, min_free };
            Err(io::Error::new(io::ErrorKind::StorageFull, shortage))
        })
    }

    /// How many bytes are free where there is least.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        self.folders.iter().try_fold(u64::MAX, |least, folder| Ok(least.min(free_bytes(folder)?)))
    }
}

fn free_bytes(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Whether it was for want of room, whoever has met with that: a look beforehand, or the disk itself.
pub(super) fn is_full(error: &anyhow::Error) -> bool {
    let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    error.chain().filter_map(|error| error.downcast_ref::<io::Error>()).any(|error| kinds.contains(&error.kind()))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn what_is_kept_free_is_not_given_away() {
        let folder = tempfile::tempdir().unwrap();
        let room = |min_free| Room::new(vec![folder.path().to_owned(), folder.path().to_owned()], min_free);
        let free = room(0).free_bytes().unwrap();
        room(0).check(free / 2).unwrap();
        room(free / 2).check(0).unwrap();
        for (min_free, wanted) in [(0, u64::MAX), (u64::MAX, u64::MAX), (free / 4 * 3, free / 2), (u64::MAX, 0)] {
            let error = room(min_free).check(wanted).context("downloading").unwrap_err();
            assert!(is_full(&error) && format!("{error:#}").contains("recordings.min_free_bytes"), "{error:#}");
        }
        assert!(!is_full(&Room::new(vec!["/nowhere".into()], 0).check(0).unwrap_err().into()));
    }

    #[test]
    fn a_disk_that_is_full_is_known_behind_whatever_is_said_around_it() {
        // ENOSPC, as a file system says it.
        let error = anyhow::Error::new(io::Error::from_raw_os_error(28)).context("cannot write to the disk");
        assert!(is_full(&error));
        assert!(!is_full(&anyhow::Error::new(io::Error::from_raw_os_error(5))));
    }
}
