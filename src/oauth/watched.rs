//! What files hold, read again when they change.
//!
//! 1. What can't be used at the start is an error with the file's name; later on the last good reading stays in use.
//! 2. A file counts as changed when its time, its length or the file itself does. It is looked at on every use, so that
//!    a changed one is used at once.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// What a file looks like from outside: time of change, length, inode.
type Stamp = (SystemTime, u64, u64);

/// A reading of some files.
pub(crate) struct Watched<T> {
    files: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    /// What the files looked like when they were last read, and what of them is in use.
    current: Mutex<(Vec<Stamp>, T)>,
}

impl<T: Clone> Watched<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// What `read` says, or a file that isn't there.
    pub(crate) fn new(
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let stamps = stamps(&files)?;
        let first = read()?;
        Ok(Self {
            files,
            read: Box::new(read),
            current: Mutex::new((stamps, first)),
        })
    }

    /// As the files are now, or were when they could last be used.
    pub(crate) fn current(&self) -> T {
        // Nothing under this lock can leave it half changed.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(stamps) = stamps(&self.files)
            && stamps != current.0
        {
            match (self.read)() {
                Ok(read) => current.1 = read,
                Err(error) => tracing::warn!(%error, "a changed file can't be used; what it held before stays in use"),
            }
            current.0 = stamps;
        }
        current.1.clone()
    }
}

fn stamps(files: &[PathBuf]) -> Result<Vec<Stamp>, String> {
    let stamp = |file: &PathBuf| {
        let seen = std::fs::metadata(file).and_then(|data| Ok((data.modified()?, data.len(), data.ino())));
        seen.map_err(|error| format!("can't read {}: {error}", file.display()))
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_at_once_and_a_bad_one_leaves_what_was() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("number");
        let path = file.clone();
        let read = move || {
            let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
            text.parse::<u32>().map_err(|error| error.to_string())
        };
        assert!(Watched::new(vec![file.clone()], read.clone()).is_err());
        std::fs::write(&file, "1").unwrap();
        let watched = Watched::new(vec![file.clone()], read).unwrap();
        assert_eq!(watched.current(), 1);
        let replace = |text: &str| {
            let new = directory.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(&new, &file).unwrap();
        };
        replace("2");
        assert_eq!(watched.current(), 2);
        replace("x");
        assert_eq!(watched.current(), 2);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(watched.current(), 2);
        replace("3");
        assert_eq!(watched.current(), 3);
    }
}
