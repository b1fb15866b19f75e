//! Where recordings are kept, and where they lie until they are whole.
//!
//! A recording is fetched into a work folder, by default inside the storage's own, and published by renaming: no second
//! copy, and nobody ever sees half a file. A work folder elsewhere costs a copy into the storage's own first. Names in either
//! say whose they are, so that what a killed process left can be told from what is being fetched.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow, ensure};
use chrono::{DateTime, Utc};
use object_store::local::LocalFileSystem;
use object_store::{ObjectStoreExt as _, path::Path as Key};
use rollcall_shared::config::Settings;
use rollcall_shared::display::is_order;
use sea_orm::DatabaseConnection;
use uuid::Uuid;

use super::lease::{self, Lease};
use super::room::Room;

/// The work folder's name in the storage: hidden.
const INCOMING: &str = ".incoming";
/// How many digits of its hash a key has: enough that two contents of one recording never meet.
const HASH_DIGITS: usize = 16;
/// The longest title and record id in a file's name, in bytes: file systems allow 255 for all of it.
const MAX_TITLE: usize = 120;
const MAX_RECORD_ID: usize = 80;

/// The storage and its work folder.
#[derive(Debug)]
pub(super) struct Archive {
    store: Arc<LocalFileSystem>,
    /// The storage's own work folder, from which one can rename.
    own: PathBuf,
    /// Where recordings are fetched into: the same, unless the settings name another.
    work: PathBuf,
    room: Room,
}

impl Archive {
    /// Opens the storage, making its folders where they are not there.
    pub(super) fn open(settings: &Settings) -> anyhow::Result<Self> {
        let root = root(settings)?;
        let own = root.join(INCOMING);
        let work = settings.recordings.work_dir.clone().unwrap_or_else(|| own.clone());
        for (folder, setting) in [(&root, "storage.url"), (&own, "storage.url"), (&work, "recordings.work_dir")] {
            fs::create_dir_all(folder)
                .with_context(|| format!("setting {setting}: cannot make {}", folder.display()))?;
        }
        let store = LocalFileSystem::new_with_prefix(&root)
            .with_context(|| format!("setting storage.url: cannot open {}", root.display()))?
            .with_fsync(true);
        let (own, work) = (fs::canonicalize(&own)?, fs::canonicalize(&work)?);
        let room = Room::new(vec![own.clone(), work.clone()], settings.recordings.min_free_bytes);
        Ok(Self { store: Arc::new(store), own, work, room })
    }

    /// Opens the storage if its folder is there. A work folder that is made in it belongs to whom the storage belongs to, and not
    /// to an operator who only looks: the worker is to write there.
    pub(super) fn find(settings: &Settings) -> anyhow::Result<Option<Self>> {
        let root = root(settings)?;
        let looking = || format!("setting storage.url: cannot look for {}", root.display());
        if !root.try_exists().with_context(looking)? {
            return Ok(None);
        }
        let had_work_folder = root.join(INCOMING).exists();
        let archive = Self::open(settings)?;
        if !had_work_folder {
            let (owner, made) = (fs::metadata(&root)?, fs::metadata(&archive.own)?);
            if owner.uid() != made.uid() {
                std::os::unix::fs::chown(&archive.own, Some(owner.uid()), Some(owner.gid()))?;
            }
        }
        Ok(Some(archive))
    }

    /// A name for a file that this job will make, and remove unless it is published.
    pub(super) fn work_file(&self, recording_id: i64, lease: &Lease, suffix: &str) -> WorkFile {
        let name = format!("{recording_id}.{}.{suffix}", lease.holder());
        WorkFile { path: self.work.join(&name), name }
    }

    /// Moves a finished file to where others find it; it is on the disk under that name when this returns.
    pub(super) async fn publish(&self, file: &WorkFile, key: &str) -> anyhow::Result<()> {
        let key = Key::parse(key)?;
        if self.is_inside() {
            return self.rename(file, &key).await;
        }
        self.room.check(tokio::fs::metadata(file).await?.len())?;
        let copy = WorkFile { path: self.own.join(&file.name), name: file.name.clone() };
        tokio::fs::copy(file, &copy).await?;
        self.rename(&copy, &key).await
    }

    async fn rename(&self, file: &WorkFile, key: &Key) -> anyhow::Result<()> {
        file.sync().await?;
        Ok(self.store.rename(&Key::from_iter([INCOMING, &file.name]), key).await?)
    }

    /// Whether recordings are fetched into the storage's own work folder.
    fn is_inside(&self) -> bool {
        self.own == self.work
    }

    /// Takes a small object all the way of a recording: into the work folder, to where it stays, back, and away.
    pub(super) async fn try_out(&self) -> anyhow::Result<()> {
        let name = format!("rollcall-doctor-{}", Uuid::new_v4());
        let (file, key) = (WorkFile { path: self.work.join(&name), name: name.clone() }, format!(".{name}"));
        let written = name.as_bytes();
        tokio::fs::write(&file, written).await.with_context(|| format!("cannot write to {}", self.work.display()))?;
        self.publish(&file, &key).await.context("cannot write to the storage")?;
        let key = Key::parse(&key)?;
        let read = async { self.store.get(&key).await?.bytes().await }.await;
        // Whatever was read, it shall not stay.
        self.store.delete(&key).await.context("cannot delete from the storage")?;
        let read = read.context("cannot read from the storage")?;
        ensure!(read == written, "the storage gave back something else than was written");
        Ok(())
    }

    /// How much of the disks recordings may take: of the storage's, and of the work folder's.
    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// Removes what killed processes left behind: files of ours that no lease is held for.
    pub(super) async fn sweep(&self, db: &DatabaseConnection) -> anyhow::Result<()> {
        let mut left = Vec::new();
        // Before the leases: a file made in between is not on this list.
        for folder in [&self.own, &self.work] {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                left.extend(
                    entry.file_name().to_str().and_then(holder_of).map(|holder| (entry.path(), holder.to_owned())),
                );
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        let live = lease::holders(db).await?;
        for (file, _) in left.iter().filter(|(_, holder)| !live.contains(holder)) {
            tracing::info!(?file, "removing what a job that died has left");
            // Somebody else may have been quicker.
            let _ = fs::remove_file(file);
        }
        Ok(())
    }
}

fn root(settings: &Settings) -> anyhow::Result<PathBuf> {
    let url = &settings.storage.url;
    url.to_file_path().map_err(|()| anyhow!("setting storage.url is {url}: it is no folder"))
}

/// The job that made a work file, if it is one.
fn holder_of(name: &str) -> Option<&str> {
    let mut parts = name.split('.');
    let (id, holder, suffix) = (parts.next()?, parts.next()?, parts.next()?);
    let ours = id.parse::<i64>().is_ok() && holder.len() == 36 && [RECORDING, THUMBNAIL].contains(&suffix);
    (ours && parts.next().is_none()).then_some(holder)
}

/// The suffix of a work file that is a recording.
pub(super) const RECORDING: &str = "part";
/// The suffix of a work file that is a thumbnail.
pub(super) const THUMBNAIL: &str = "jpg";

/// A file in the work folder. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct WorkFile {
    pub(super) path: PathBuf,
    name: String,
}

impl WorkFile {
    /// Waits until the disk has it.
    pub(super) async fn sync(&self) -> std::io::Result<()> {
        tokio::fs::File::open(&self.path).await?.sync_all().await
    }
}

impl AsRef<Path> for WorkFile {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkFile {
    fn drop(&mut self) {
        // Not there: published, or never made.
        let _ = fs::remove_file(&self.path);
    }
}

/// Where a recording and its thumbnail lie in the storage, without their extensions.
///
/// The same content has the same key, so a job that is done again overwrites its own file and leaves none behind; another
/// content has another key, so a job that lost its lease without noticing never replaces what its successor has published.
pub(super) fn key(source: &str, recorded_at: DateTime<Utc>, recording_id: i64, sha256: &str) -> String {
    let hash = &sha256[..HASH_DIGITS.min(sha256.len())];
    format!("{source}/{}/{recording_id}-{hash}", recorded_at.format("%Y/%m"))
}

/// What to call a recording for people, on any system: its title, its day and its id.
pub(super) fn file_name(title: Option<&str>, recorded_at: DateTime<Utc>, record_id: &str, extension: &str) -> String {
    let day = recorded_at.format("%Y-%m-%d").to_string();
    let record_id: String = record_id
        .chars()
        .filter(|char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_'))
        .take(MAX_RECORD_ID)
        .collect();
    let parts = [safe(title.unwrap_or_default()), day, record_id];
    let stem = parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join(" ");
    format!("{stem}.{extension}")
}

/// A title without what a file system, a shell or a reader's eye trips over.
fn safe(title: &str) -> String {
    let spaced = title.replace(|char: char| char.is_control() || r#"/\:*?"<>|"#.contains(char), " ");
    let visible: String = spaced.chars().filter(|char| char.is_whitespace() || !is_order(*char)).collect();
    let mut name = visible.split_whitespace().collect::<Vec<_>>().join(" ");
    name.truncate(name.floor_char_boundary(MAX_TITLE));
    // A leading dot hides a file, a leading dash looks like an option.
    name.trim_matches(|char: char| char.is_whitespace() || matches!(char, '.' | '-')).to_owned()
}

#[cfg(test)]
mod tests;
