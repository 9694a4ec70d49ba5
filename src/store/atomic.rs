//! Replacing a file whole: whoever reads it, and whenever the writer dies, finds all of the old or all of the new.
//!
//! 1. Written beside it as `.NAME.new`, flushed, renamed over it, and the directory flushed: when this returns, the new
//!    content also outlives a power cut.
//! 2. A writer that died leaves `.NAME.new` behind, which nobody reads and the next one uses again. Two writers at once
//!    don't mix: one holds its lock, the other is told [`io::ErrorKind::WouldBlock`].
//! 3. The mode stays what it was, and is 0600 for a new file. A symbolic link stays one, and what it leads to is replaced.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};

/// Replaces the file, or makes it. Blocks while the disk writes.
///
/// # Errors
/// The directory can't be written, the disk is full, or another writer is at it; the file is as it was then.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let path = match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => &path.canonicalize()?,
        _ => path,
    };
    let mode = match path.metadata() {
        Ok(found) => found.mode() & 0o777,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0o600,
        Err(error) => return Err(error),
    };
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // Of a bare file name the parent is empty.
    let directory = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    let mut aside = std::ffi::OsString::from(".");
    aside.push(name);
    aside.push(".new");
    let aside = directory.join(aside);
    let mut file = own(&aside)?;
    file.set_len(0)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    File::open(directory)?.sync_all()
}

/// The file aside, locked. It is kept until the rename, and not made anew, so that only one writer has it.
fn own(aside: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(aside)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    // Locked may be what another writer has just renamed away: then it is the file itself by now.
    let (opened, there) = (file.metadata()?, aside.symlink_metadata());
    if there.is_ok_and(|there| (there.dev(), there.ino()) == (opened.dev(), opened.ino())) {
        return Ok(file);
    }
    Err(io::ErrorKind::WouldBlock.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_and_replaced_and_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        replace(&path, b"one").unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        replace(&path, b"other").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
        assert_eq!(
            path.metadata().unwrap().mode() & 0o777,
            0o640,
            "others may go on reading it"
        );
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn r17_what_a_dead_writer_left_is_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        replace(&path, b"old").unwrap();
        // Killed between write and rename.
        std::fs::write(directory.path().join(".token.new"), b"half of a much longer text").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        replace(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_second_writer_is_told_and_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        replace(&path, b"old").unwrap();
        let other = own(&directory.path().join(".token.new")).unwrap();
        let error = replace(&path, b"new").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(other);
        replace(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_symbolic_link_stays_and_its_target_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (link, target) = (directory.path().join("link"), directory.path().join("target"));
        replace(&target, b"old").unwrap();
        std::os::unix::fs::symlink("target", &link).unwrap();
        replace(&link, b"new").unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
    }

    #[test]
    fn what_lies_in_the_way_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let elsewhere = directory.path().join("elsewhere");
        std::fs::write(&elsewhere, "precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, directory.path().join(".token.new")).unwrap();
        assert!(replace(&path, b"new").is_err());
        assert_eq!(std::fs::read(&elsewhere).unwrap(), b"precious");
    }

    #[test]
    fn readers_beside_many_writers_see_only_whole_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        replace(&path, &[b'0'; 9000]).unwrap();
        std::thread::scope(|scope| {
            for writer in b'1'..=b'4' {
                let path = &path;
                scope.spawn(move || {
                    let mut written = 0;
                    while written < 20 {
                        match replace(path, &[writer; 9000]) {
                            Ok(()) => written += 1,
                            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                        }
                    }
                });
            }
            for _ in 0..200 {
                let read = std::fs::read(&path).unwrap();
                assert!(read.len() == 9000 && read.iter().all(|byte| *byte == read[0]));
            }
        });
    }
}
