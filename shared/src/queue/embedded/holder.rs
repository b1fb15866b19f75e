//! Who is alive. Whoever takes deliveries holds a lock on a file of its own for as long as it lives: the kernel lets it go
//! whichever way it dies, at once, and never while it is merely slow.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::private;

/// One that takes deliveries: as long as it is not dropped, what it has is its own.
#[derive(Debug)]
pub(in crate::queue) struct Holder {
    pub(in crate::queue) name: String,
    path: PathBuf,
    _lock: File,
}

/// What the names of those begin with who only take messages out, and do nothing with them that could kill anybody.
const DRAIN: &str = "drain-";

impl Holder {
    /// Makes a lock file in `folder`, for a worker.
    ///
    /// # Errors
    /// What the operating system says.
    pub(in crate::queue) fn worker(folder: &Path) -> io::Result<Self> {
        Self::new(folder, "")
    }

    /// Makes a lock file in `folder`, for one that only takes messages out.
    ///
    /// # Errors
    /// What the operating system says.
    pub(in crate::queue) fn drain(folder: &Path) -> io::Result<Self> {
        Self::new(folder, DRAIN)
    }

    fn new(folder: &Path, prefix: &str) -> io::Result<Self> {
        private::make_folder(folder)?;
        let name = format!("{prefix}{}", Uuid::now_v7());
        let path = folder.join(&name);
        let unlocked = folder.join(format!("{name}.new"));
        let lock = private::new_file().create_new(true).open(&unlocked)?;
        lock.lock()?;
        // Nobody may find it before it is locked, and so take its holder for dead.
        fs::rename(unlocked, &path)?;
        Ok(Self { name, path, _lock: lock })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Left where it is, it would be found unlocked, which means the same.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a holder of this name only takes messages out.
pub(in crate::queue) fn is_drain(name: &str) -> bool {
    name.starts_with(DRAIN)
}

/// Whether the holder of this name is gone. Where that cannot be told, it is not.
pub(in crate::queue) fn is_gone(folder: &Path, name: &str) -> bool {
    match File::open(folder.join(name)) {
        Ok(file) => !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Removes what is left of all that are gone.
pub(in crate::queue) fn forget_the_gone(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_str().filter(|name| Uuid::parse_str(name.strip_prefix(DRAIN).unwrap_or(name)).is_ok());
        if let Some(name) = name.filter(|name| is_gone(folder, name)) {
            forget(folder, name);
        }
    }
}

/// Removes what is left of one that is gone.
pub(in crate::queue) fn forget(folder: &Path, name: &str) {
    // Somebody else may have been quicker.
    let _ = fs::remove_file(folder.join(name));
}
