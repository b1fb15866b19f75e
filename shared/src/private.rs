//! Nobody else on this machine reads, or locks, what Rollcall keeps on its disk: events, people's names, recordings. Folders are
//! 0700 and files 0600, whatever the umask; the storage may be shown to a group (`storage.group`). To be able to read
//! a queue's file would be enough to stop the queue: a lock on it needs no more.
//!
//! [`keep`] is what each program does first, and mends what an older version has left open. [`found_open`] is for those who only
//! look.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::{geteuid, umask};
use tracing::{info, warn};

use crate::config::Settings;

/// What a program may do with permissions of others than its own user.
const OTHERS: u32 = 0o077;
/// The bit that lets nobody delete another's files in a folder: such a folder is for many.
const STICKY: u32 = 0o1000;
/// What SQLite lays beside a file of its.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];
/// What a queue's file has beside that: a folder of locks.
const HOLDERS: &str = "-holders";

/// Who may read something besides Rollcall's own user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readers {
    Nobody,
    /// The group of this id.
    Group(u32),
}

impl Readers {
    /// What new files and folders are made without.
    fn umask(self) -> u32 {
        match self {
            Self::Nobody => 0o077,
            Self::Group(_) => 0o027,
        }
    }

    /// What is made in such a folder belongs to its group.
    fn folder_mode(self) -> u32 {
        match self {
            Self::Nobody => 0o700,
            Self::Group(_) => 0o2750,
        }
    }

    fn file_mode(self) -> u32 {
        match self {
            Self::Nobody => 0o600,
            Self::Group(_) => 0o640,
        }
    }

    fn mode(self, file: &Metadata) -> u32 {
        if file.is_dir() { self.folder_mode() } else { self.file_mode() }
    }

    fn is_kept_to(self, file: &Metadata) -> bool {
        let is_of_group = match self {
            Self::Nobody => true,
            Self::Group(group) => file.gid() == group,
        };
        is_of_group && file.mode() & OTHERS == self.mode(file) & OTHERS
    }
}

/// Why what is on the disk cannot be kept from others.
#[derive(Debug, thiserror::Error)]
pub enum PrivacyError {
    /// Nobody knows the group.
    #[error("setting storage.group is {0:?}: this machine has no such group (a name in /etc/group, or a number)")]
    Group(String),
    /// It is not ours to be given away.
    #[error("setting storage.group: {} cannot be given to that group ({error}): let this user be in it", path.display())]
    Give {
        /// What was to be given.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
}

/// Keeps what this program makes from now on to its user, and what older ones have made: first of all that a program does. With
/// `is_archiving` the storage's folders are made, and shown to `storage.group`.
///
/// What belongs to another user is left as it is.
///
/// # Errors
/// There is no such group, or the storage is not ours to give to it.
pub fn keep(settings: &Settings, is_archiving: bool) -> Result<(), PrivacyError> {
    let group = settings.storage.group.as_deref().filter(|_| is_archiving);
    let readers = group.map(group_id).transpose()?.map_or(Readers::Nobody, Readers::Group);
    umask(Mode::from_raw_mode(readers.umask()));
    let mut mended = 0;
    for path in ours(settings) {
        mended += mend_if_ours(&path, Readers::Nobody);
    }
    if is_archiving {
        for path in archive(settings) {
            // Where it cannot be made, whoever wants to write there says why.
            if make_folder(&path).is_ok() {
                mended += mend_tree(&path, readers)?;
            }
        }
    }
    if mended > 0 {
        info!(
            mended,
            "Files and folders that others could read, or storage.group could not, are as they should be now."
        );
    }
    Ok(())
}

/// For a program that has not read its settings yet, or has none: what it makes is its user's alone.
pub fn keep_new_files() {
    umask(Mode::from_raw_mode(Readers::Nobody.umask()));
}

/// Something that others can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundOpen {
    /// Where it is.
    pub path: PathBuf,
    /// The command that closes it.
    pub command: String,
}

/// What others than Rollcall's user (and `storage.group`) can read of what these settings name; `None` where nothing is there yet.
/// Nothing is changed.
pub fn found_open(settings: &Settings) -> Option<Vec<FoundOpen>> {
    let group = settings.storage.group.as_deref();
    let mut is_any = false;
    let mut open = Vec::new();
    for path in ours(settings) {
        let Ok(file) = fs::metadata(&path) else { continue };
        is_any = true;
        if file.mode() & OTHERS != 0 {
            let command = format!("chmod {:o} {}", Readers::Nobody.mode(&file), quoted(&path));
            open.push(FoundOpen { path, command });
        }
    }
    for path in archive(settings) {
        let Ok(folder) = fs::metadata(&path) else { continue };
        is_any = true;
        // What nobody can enter, nobody reads.
        let quoted = quoted(&path);
        let (allowed, command) = match group {
            None => (0o700, format!("chmod -R go-rwx {quoted}")),
            Some(group) => (0o750, format!("chgrp -R {group} {quoted} && chmod -R u=rwX,g=rX,o= {quoted}")),
        };
        if folder.mode() & OTHERS & !allowed != 0 {
            open.push(FoundOpen { path, command });
        }
    }
    is_any.then_some(open)
}

/// Whether everybody on this machine can read a file, or write to it: how, where it may be read by its group and no one else.
pub fn found_open_to_all(path: &Path) -> Option<FoundOpen> {
    let file = fs::metadata(path).ok()?;
    let command = format!("chmod o-rwx {}", quoted(path));
    (file.mode() & 0o007 != 0).then(|| FoundOpen { path: path.to_owned(), command })
}

/// Makes a folder, and those that it is to lie in: only this user enters them, and each is there after a power cut, too.
///
/// # Errors
/// What the operating system says.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let within = folder_of(folder);
    make_folder(within)?;
    match DirBuilder::new().mode(Readers::Nobody.folder_mode()).create(folder) {
        // By another process.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made?,
    }
    File::open(within)?.sync_all()
}

/// Makes an empty file that only this user reads, where there is none. One that is there is not even opened: to close it would
/// end the locks that this process has on it.
///
/// # Errors
/// What the operating system says.
pub fn make_file(path: &Path) -> io::Result<()> {
    match new_file().create_new(true).open(path) {
        // An odd umask may have taken more than others' rights.
        Ok(file) => file.set_permissions(Permissions::from_mode(Readers::Nobody.file_mode())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// How to open for writing a file that only this user reads.
pub fn new_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(Readers::Nobody.file_mode());
    options
}

/// The folder that a path lies in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Everything that is for Rollcall's own user alone: the files, what lies beside each, and the folders with nothing else in
/// them.
fn ours(settings: &Settings) -> Vec<PathBuf> {
    let queues = [settings.queue.url.sqlite_path(), Some(settings.ingress.spool.path.clone())];
    let queues: Vec<_> = queues.into_iter().flatten().collect();
    let files: Vec<_> = queues.iter().cloned().chain(settings.database.url.sqlite_path()).collect();
    let holders: Vec<_> = queues.iter().map(|queue| beside(queue, HOLDERS)).collect();
    let folders: BTreeSet<_> = files.iter().map(|file| folder_of(file).to_owned()).collect();

    let mut paths: Vec<_> = files.iter().flat_map(|file| with_beside(file)).chain(holders.iter().cloned()).collect();
    let known =
        paths.iter().cloned().chain(archive(settings)).filter_map(|path| std::path::absolute(path).ok()).collect();
    paths.extend(folders.into_iter().filter(|folder| has_nothing_else(folder, &known)));
    paths.extend(holders.iter().flat_map(fs::read_dir).flatten().flatten().map(|lock| lock.path()));
    paths
}

fn with_beside(file: &Path) -> impl Iterator<Item = PathBuf> {
    let file = file.to_owned();
    std::iter::once(file.clone()).chain(BESIDE.map(|suffix| beside(&file, suffix)))
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(file);
    path.push(suffix);
    path.into()
}

/// Where recordings lie.
fn archive(settings: &Settings) -> Vec<PathBuf> {
    settings.storage.url.to_file_path().ok().into_iter().chain(settings.recordings.work_dir.clone()).collect()
}

/// Whether a folder is this user's, and all that is in it is ours: then it is ours, too.
fn has_nothing_else(folder: &Path, known: &HashSet<PathBuf>) -> bool {
    let is_his = fs::metadata(folder).is_ok_and(|it| it.uid() == geteuid().as_raw() && it.mode() & STICKY == 0);
    let Ok(absolute) = std::path::absolute(folder) else { return false };
    let is_known = |name: OsString| known.contains(&absolute.join(name));
    is_his
        && fs::read_dir(folder).is_ok_and(|mut entries| entries.all(|it| it.is_ok_and(|it| is_known(it.file_name()))))
}

/// Sets who reads a file or folder, where that is ours to set; how many were set.
fn mend_if_ours(path: &Path, readers: Readers) -> usize {
    let Ok(file) = fs::symlink_metadata(path) else { return 0 };
    if file.is_symlink() || readers.is_kept_to(&file) || !may_set(&file) {
        return 0;
    }
    // By its name: to open it and close it would end the locks that this process may have on it.
    match fs::set_permissions(path, Permissions::from_mode(readers.mode(&file))) {
        Ok(()) => 1,
        Err(error) => {
            warn!(path = %path.display(), %error, "Others can read what only Rollcall should.");
            0
        }
    }
}

fn may_set(file: &Metadata) -> bool {
    let user = geteuid();
    user.is_root() || file.uid() == user.as_raw()
}

/// Sets who reads a folder and all in it, where the folder itself is not as it should be; how many were set.
fn mend_tree(root: &Path, readers: Readers) -> Result<usize, PrivacyError> {
    // It may be a link to another disk.
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    if fs::metadata(&root).is_ok_and(|folder| readers.is_kept_to(&folder) || !may_set(&folder)) {
        return Ok(0);
    }
    let mut mended = 0;
    if readers == Readers::Nobody {
        // That alone keeps everybody out.
        mended += mend_if_ours(&root, readers);
    }
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            mended += give(&entry.path(), readers)?;
            if is_folder {
                folders.push(entry.path());
            }
        }
    }
    // Last: where this is interrupted, the next start does it again.
    Ok(mended + give(&root, readers)?)
}

/// Gives a file or folder to its group, and sets who reads it.
fn give(path: &Path, readers: Readers) -> Result<usize, PrivacyError> {
    let Ok(file) = fs::symlink_metadata(path) else { return Ok(0) };
    if let Readers::Group(group) = readers
        && file.gid() != group
        && !file.is_symlink()
        && may_set(&file)
    {
        chown(path, None, Some(group)).map_err(|error| PrivacyError::Give { path: path.to_owned(), error })?;
    }
    Ok(mend_if_ours(path, readers))
}

/// The id of a group by its name, or by itself.
fn group_id(group: &str) -> Result<u32, PrivacyError> {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let id = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok())?
    });
    id.or_else(|| group.parse().ok()).ok_or_else(|| PrivacyError::Group(group.to_owned()))
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,:@".contains(&byte);
    if path.bytes().all(is_plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_something_else_in_it_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("queue.db");
        fs::write(&file, "").unwrap();
        let known = HashSet::from([file]);
        assert!(has_nothing_else(folder.path(), &known));
        fs::write(folder.path().join("thesis.txt"), "").unwrap();
        assert!(!has_nothing_else(folder.path(), &known));
    }

    #[test]
    fn paths_are_quoted_as_a_shell_takes_them() {
        assert_eq!(quoted(Path::new("data/queue.db-wal")), "data/queue.db-wal");
        assert_eq!(quoted(Path::new("a b/it's")), r"'a b/it'\''s'");
    }

    #[test]
    fn a_group_is_known_by_its_name_and_by_its_number() {
        assert_eq!(group_id("root").unwrap(), 0);
        assert_eq!(group_id("4711").unwrap(), 4711);
        let error = group_id("nobody-has-this").unwrap_err().to_string();
        assert!(error.contains("storage.group") && error.contains("nobody-has-this"), "{error}");
    }
}
