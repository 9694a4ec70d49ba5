//! The keys that seal, kept between starts in `seal.key` of the state directory: one a line, the first seals, all open.
//!
//! 1. Made once: written aside with mode 0600, flushed, linked into place, and the directory flushed. Of two processes
//!    that start together one link wins and the other reads the winner's key.
//! 2. A directory that can't be written is a warning: the key lives in memory and sessions end with the process.
//! 3. A key file that others may read, that is no regular file or that holds anything else is an error: replacing it
//!    silently would end every session, and using it might share them.
//! 4. It changes whole ([`atomic`]), by one command at a time, which holds the directory's lock from reading to writing.

use std::fmt::Write as _;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use super::seal::{Sealer, random_key};
use crate::config::SealKey;
use crate::store::atomic;

const NAME: &str = "seal.key";
/// Keys of a file.
pub const MAX_KEYS: usize = 8;
/// Base64 of 32 bytes and a line's end, which may be two characters, for each key.
const MAX_FILE: u64 = MAX_KEYS as u64 * 46;

/// Sealed sessions won't survive a restart.
#[derive(Debug, thiserror::Error)]
#[error("state.directory {}: {cause}; the seal key stays in memory and sessions end with this process", .directory.display())]
pub struct KeyFileWarning {
    pub directory: PathBuf,
    cause: io::Error,
}

impl KeyFileWarning {
    /// The same for who can't do without the file.
    pub fn unusable(&self) -> String {
        format!(
            "state.directory {}: {}; no key was changed; see to its owner and mode",
            self.directory.display(),
            self.cause
        )
    }
}

/// A key file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("{}: others may read it (mode {mode:04o}); `chmod 600` it, or remove it to have a new one made and to lose what was sealed", .path.display())]
    TooOpen { path: PathBuf, mode: u32 },
    #[error(
        "{}: not one to 8 seal keys (base64 of 32 bytes, one a line); restore it, or remove it to have a new one made and to lose what was sealed",
        .path.display()
    )]
    Malformed { path: PathBuf },
    #[error("{}: can't be read: {cause}", .path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
}

/// Where a state directory's keys are.
pub fn key_file(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// Reads the keys of `directory`, or makes one.
///
/// # Errors
/// The key file is there and can't be used.
pub fn load_or_create(directory: &Path) -> Result<(Sealer, Option<KeyFileWarning>), KeyFileError> {
    let path = directory.join(NAME);
    if let Some(sealer) = read_sealer(directory)? {
        return Ok((sealer, None));
    }
    let key = random_key();
    match create(directory, &path, &key) {
        Ok(()) => Ok((Sealer::of_file(&[key], directory), None)),
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => match read_sealer(directory)? {
            Some(winners) => Ok((winners, None)),
            None => Err(KeyFileError::Unreadable { path, cause }),
        },
        Err(cause) => Ok((
            Sealer::new(&[key]),
            Some(KeyFileWarning {
                directory: directory.to_owned(),
                cause,
            }),
        )),
    }
}

/// Reads the keys of `directory` as they are now. `None`: there is no such file.
///
/// # Errors
/// The key file is there and can't be used.
pub fn read_sealer(directory: &Path) -> Result<Option<Sealer>, KeyFileError> {
    let keys = read(&directory.join(NAME))?;
    Ok(keys.map(|keys| Sealer::of_file(&keys, directory)))
}

/// The key file, while nobody else changes it.
pub struct KeyFile {
    path: PathBuf,
    keys: Vec<SealKey>,
    /// Ends with it.
    _lock: File,
}

impl KeyFile {
    /// Waits for whoever else is changing it.
    ///
    /// # Errors
    /// It isn't there, or can't be used.
    pub fn change(directory: &Path) -> Result<Self, KeyFileError> {
        let path = directory.join(NAME);
        let unreadable = |cause| KeyFileError::Unreadable {
            path: path.clone(),
            cause,
        };
        let lock = File::open(directory).map_err(unreadable)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| unreadable(error.into()))?;
        let keys = read(&path)?.ok_or_else(|| unreadable(io::ErrorKind::NotFound.into()))?;
        Ok(Self {
            path,
            keys,
            _lock: lock,
        })
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// Since when the file has been as it is.
    ///
    /// # Errors
    /// It is gone.
    pub fn changed(&self) -> io::Result<std::time::SystemTime> {
        self.path.metadata()?.modified()
    }

    /// Puts a new key in front.
    ///
    /// # Errors
    /// There are [`MAX_KEYS`], or the file can't be written.
    pub fn renew(&mut self) -> io::Result<()> {
        if self.keys.len() >= MAX_KEYS {
            return Err(io::Error::other("it holds as many keys as it may"));
        }
        self.keys.insert(0, random_key());
        self.write()
    }

    /// Leaves the first key alone.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn forget(&mut self) -> io::Result<()> {
        self.keys.truncate(1);
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize));
        for key in &self.keys {
            text.push_str(&Zeroizing::new(STANDARD.encode(key.0.as_slice())));
            text.push('\n');
        }
        atomic::replace(&self.path, text.as_bytes())
    }
}

/// `None`: there is no such file, or no such directory.
fn read(path: &Path) -> Result<Option<Vec<SealKey>>, KeyFileError> {
    let unreadable = |cause| KeyFileError::Unreadable {
        path: path.to_owned(),
        cause,
    };
    let link = match path.symlink_metadata() {
        Ok(link) => link,
        // Not even a look into the directory is allowed, so no key can be kept there: creating one will say why.
        Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(cause) => return Err(unreadable(cause)),
    };
    if !link.is_file() {
        return Err(KeyFileError::Malformed { path: path.to_owned() });
    }
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::TooOpen {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize + 1));
    if let Err(cause) = file.take(MAX_FILE + 1).read_to_string(&mut text)
        && cause.kind() != io::ErrorKind::InvalidData
    {
        return Err(unreadable(cause));
    }
    let keys: Option<Vec<SealKey>> = text.trim_end().lines().map(|line| decode(line.trim_end())).collect();
    match keys {
        Some(keys) if (1..=MAX_KEYS).contains(&keys.len()) => Ok(Some(keys)),
        _ => Err(KeyFileError::Malformed { path: path.to_owned() }),
    }
}

fn decode(text: &str) -> Option<SealKey> {
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    Some(SealKey(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
}

/// Fails with `AlreadyExists` when another process was first.
fn create(directory: &Path, path: &Path, key: &SealKey) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut aside = format!(".{NAME}.");
    for byte in &random_key().0[..8] {
        write!(aside, "{byte:02x}").expect("a String takes any text");
    }
    let aside = directory.join(aside);
    let written = write_new(&aside, key).and_then(|()| std::fs::hard_link(&aside, path));
    // Whether or not it was linked, the name aside has done its work; a leftover is harmless and 0600.
    let _ = std::fs::remove_file(&aside);
    written?;
    File::open(directory)?.sync_all()
}

fn write_new(path: &Path, key: &SealKey) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let text = Zeroizing::new(STANDARD.encode(key.0.as_slice()) + "\n");
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::seal::Purpose;
    use super::*;

    fn same(one: &Sealer, two: &Sealer) -> bool {
        one.hmac(Purpose::Session, b"") == two.hmac(Purpose::Session, b"")
    }

    #[test]
    fn a_key_is_made_once_and_found_again() {
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join("deep/state");
        let (first, warning) = load_or_create(&directory).unwrap();
        assert!(warning.is_none());
        let (second, _) = load_or_create(&directory).unwrap();
        assert!(same(&first, &second));
        let mode = directory.join(NAME).metadata().unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(directory.read_dir().unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn racers_agree_on_one_key() {
        let state = tempfile::tempdir().unwrap();
        let barrier = std::sync::Barrier::new(8);
        let sealers: Vec<Sealer> = std::thread::scope(|scope| {
            let race = || {
                barrier.wait();
                load_or_create(state.path()).unwrap().0
            };
            let racers: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        assert!(sealers.iter().all(|sealer| same(sealer, &sealers[0])));
        assert!(same(&sealers[0], &load_or_create(state.path()).unwrap().0));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_a_warning() {
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("file");
        std::fs::write(&file, "").unwrap();
        let (_, warning) = load_or_create(&file.join("state")).unwrap();
        assert!(warning.unwrap().to_string().contains("in memory"));
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let state = tempfile::tempdir().unwrap();
        load_or_create(state.path()).unwrap();
        let path = state.path().join(NAME);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = load_or_create(state.path()).err().unwrap();
        assert!(matches!(error, KeyFileError::TooOpen { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn a_malformed_key_is_refused_and_left_alone() {
        let good = STANDARD.encode([0; 32]);
        let nine = format!("{good}\n").repeat(9);
        let gap = format!("{good}\n\n{good}\n");
        for text in [
            "",
            "not base64",
            "AAAA",
            &"A".repeat(100),
            &STANDARD.encode([0; 33]),
            &nine,
            &gap,
        ] {
            let state = tempfile::tempdir().unwrap();
            let path = state.path().join(NAME);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            let error = load_or_create(state.path()).err().unwrap();
            assert!(matches!(error, KeyFileError::Malformed { .. }), "{text:?}: {error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_new_key_seals_and_the_old_ones_open_until_they_are_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let (first, _) = load_or_create(state.path()).unwrap();
        let old = first.seal(Purpose::Session, b"text").unwrap();
        for count in 2..=MAX_KEYS {
            let mut file = KeyFile::change(state.path()).unwrap();
            file.renew().unwrap();
            assert_eq!(file.count(), count);
            let now = read_sealer(state.path()).unwrap().unwrap();
            assert!(now.open(Purpose::Session, &old).is_ok());
            let new = now.seal(Purpose::Session, b"text").unwrap();
            assert!(first.open(Purpose::Session, &new).is_err());
        }
        let mut file = KeyFile::change(state.path()).unwrap();
        assert!(file.renew().is_err());
        let last = read_sealer(state.path()).unwrap().unwrap();
        file.forget().unwrap();
        let now = read_sealer(state.path()).unwrap().unwrap();
        assert!(same(&now, &last));
        assert!(now.open(Purpose::Session, &old).is_err());
        let mode = state.path().join(NAME).metadata().unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(state.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_symbolic_link_is_refused() {
        let state = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("elsewhere", state.path().join(NAME)).unwrap();
        assert!(matches!(
            load_or_create(state.path()),
            Err(KeyFileError::Malformed { .. })
        ));
    }
}
