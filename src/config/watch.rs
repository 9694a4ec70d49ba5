//! Whether the files that a configuration was read from are still what they were.
//!
//! They are looked at once a second, and not watched by the system: a few `stat`s cost nothing, and they see what
//! notifications miss, such as a symlink that an orchestrator swaps a directory up, or a change on another machine's share.
//! A file that is just being written is waited for: what changed is read once two looks in a row agree.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// What tells one state of a file from another; `None` when there is no file.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// Files and what they were.
#[derive(Debug)]
pub struct Watch {
    files: Vec<PathBuf>,
    stamps: Vec<Stamp>,
}

impl Watch {
    /// Takes note of how these files are now. Make it before they are read, or a change in between goes unseen.
    pub fn new(files: Vec<PathBuf>) -> Self {
        let stamps = look(&files);
        Self { files, stamps }
    }

    /// Takes these files into view too, as they are now.
    pub fn add(&mut self, files: &[PathBuf]) {
        for file in files {
            if !self.files.contains(file) {
                self.files.push(file.clone());
                self.stamps.push(stamp(file));
            }
        }
    }

    /// Returns when a file has changed, appeared or gone, and is no longer changing.
    pub async fn changed(&mut self) {
        loop {
            tokio::time::sleep(EVERY).await;
            let now = look(&self.files);
            if now == self.stamps {
                continue;
            }
            let mut settled = now;
            loop {
                tokio::time::sleep(EVERY).await;
                let again = look(&self.files);
                if again == settled {
                    break;
                }
                settled = again;
            }
            self.stamps = settled;
            return;
        }
    }
}

fn look(files: &[PathBuf]) -> Vec<Stamp> {
    files.iter().map(stamp).collect()
}

fn stamp(file: &PathBuf) -> Stamp {
    let metadata = fs::metadata(file).ok()?;
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn changes_are_seen_when_they_have_settled() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("f");
        let link = directory.path().join("link");
        fs::write(&file, "one").expect("a file");
        let mut watch = Watch::new(vec![file.clone(), link.clone()]);
        {
            let mut changed = std::pin::pin!(watch.changed());
            tokio::time::advance(EVERY * 3).await;
            assert!(changed.as_mut().now_or_never().is_none(), "nothing has changed");
            fs::write(&file, "three").expect("a write");
            changed.await;
        }
        {
            // A symlink that begins to lead somewhere, as orchestrators swap secrets.
            std::os::unix::fs::symlink(&file, &link).expect("a link");
            watch.changed().await;
        }
        fs::remove_file(&file).expect("gone");
        watch.changed().await;
    }
}
