//! The file itself: what it says, whether it changed, and how it is written so that nobody ever sees half of it.
//!
//! 1. Reading is bounded. JSON with `access_token`, or one bare token; anything else is no token and is left alone (r18).
//! 2. Writing is whole or not at all (r17): a new file of mode 0600, flushed, takes the old one's place, and the directory
//!    is flushed. What else stood in the JSON stays.
//! 3. Whoever refreshes holds a lock on a file beside it, over all processes that do so in this way.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::clock::UnixSeconds;
use crate::oauth::TokenSet;
use crate::secret::Secret;

const MAX_FILE: u64 = 64 * 1024;
const MAX_TOKEN: usize = 16 * 1024;
/// No other program calls what it writes aside so.
const ASIDE: &str = ".portcullis.new";
/// A file changed so lately may change again without its times telling.
const UNSETTLED: Duration = Duration::from_secs(2);

/// What tells one content of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::of_metadata(&fs::metadata(path)?))
    }

    fn of_metadata(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether an equal stamp will mean an equal content.
    fn is_settled(self) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let since = Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0));
        let changed = SystemTime::UNIX_EPOCH.checked_add(since);
        let age = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
        age.is_some_and(|age| age > UNSETTLED)
    }
}

/// Why a file holds no tokens; it may in a moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::credential) enum FileError {
    #[error("the token file can't be read: {0}")]
    Read(io::ErrorKind),
    #[error("the token file is no regular file")]
    NoFile,
    #[error("the token file is larger than 64 KiB")]
    Large,
    #[error("the token file holds neither a JSON object with access_token nor one bare token")]
    Unusable,
    #[error("the token file's token_type is not Bearer")]
    NoBearer,
}

/// What was read. Has no `Debug`: it holds tokens.
pub(super) struct Content {
    pub(super) tokens: TokenSet,
    /// When it was written.
    pub(super) modified: UnixSeconds,
    /// `None`: it is to be read again with the next request.
    pub(super) stamp: Option<Stamp>,
    /// All that stands in it, where it is JSON.
    members: Option<Map<String, Value>>,
    mode: u32,
}

/// A file that may hold tokens, whole: bounded, and never waited for.
pub(in crate::credential) fn bytes(path: &Path) -> Result<(Metadata, Zeroizing<Vec<u8>>), FileError> {
    let unreadable = |error: io::Error| FileError::Read(error.kind());
    // A pipe without a writer would be waited for.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(FileError::NoFile);
    }
    let mut bytes = Zeroizing::new(Vec::new());
    (&file).take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(FileError::Large);
    }
    Ok((metadata, bytes))
}

/// Reads a token file.
pub(super) fn read(path: &Path) -> Result<Content, FileError> {
    let (metadata, bytes) = bytes(path)?;
    let stamp = Stamp::of_metadata(&metadata);
    let modified = metadata.mtime().try_into().unwrap_or(0);
    let text = std::str::from_utf8(&bytes).map_err(|_| FileError::Unusable)?.trim();
    let (tokens, members) = match text.starts_with('{') {
        true => {
            let members = serde_json::from_str(text).map_err(|_| FileError::Unusable)?;
            (of_members(&members, modified)?, Some(members))
        }
        false => (bare(text)?, None),
    };
    Ok(Content {
        tokens,
        modified,
        stamp: stamp.is_settled().then_some(stamp),
        members,
        mode: metadata.permissions().mode(),
    })
}

/// Whether it can stand in a header.
pub(in crate::credential) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TOKEN && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn bare(text: &str) -> Result<TokenSet, FileError> {
    // Half a JSON object that lost its brace is no token either.
    if !is_token(text) || text.contains(['"', '{', '}', '[', ']']) {
        return Err(FileError::Unusable);
    }
    Ok(TokenSet {
        access_token: Secret::new(text),
        refresh_token: None,
        expires_at: None,
        scopes: None,
        id_token: None,
    })
}

fn of_members(members: &Map<String, Value>, modified: UnixSeconds) -> Result<TokenSet, FileError> {
    let text = |name: &str| match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(FileError::Unusable),
    };
    let token = |name: &str| match text(name)? {
        Some(text) if !is_token(text) => Err(FileError::Unusable),
        token => Ok(token.map(Secret::new)),
    };
    if text("token_type")?.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err(FileError::NoBearer);
    }
    let expires_at = match members.get("expires_at") {
        None | Some(Value::Null) => match members.get("expires_in") {
            None | Some(Value::Null) => None,
            Some(seconds) => Some(modified.saturating_add(number(seconds)?)),
        },
        Some(seconds) => Some(number(seconds)?),
    };
    Ok(TokenSet {
        access_token: token("access_token")?.ok_or(FileError::Unusable)?,
        refresh_token: token("refresh_token")?,
        expires_at,
        scopes: text("scope")?.map(|scopes| scopes.split_ascii_whitespace().map(str::to_owned).collect()),
        id_token: None,
    })
}

/// Seconds; more than there are saturate (r16).
fn number(value: &Value) -> Result<u64, FileError> {
    let number = match value {
        Value::Number(number) => number
            .as_u64()
            .or_else(|| number.as_f64().map(|seconds| seconds as u64)),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.ok_or(FileError::Unusable)
}

impl Content {
    /// Writes new tokens in place of these, and leaves alone what else stands there.
    pub(super) fn replace(&self, path: &Path, tokens: &TokenSet) -> io::Result<()> {
        let mut members = self.members.clone().unwrap_or_default();
        let mut set = |name: &str, value: Value| members.insert(name.to_owned(), value);
        set("access_token", tokens.access_token.expose().into());
        if let Some(refresh) = &tokens.refresh_token {
            set("refresh_token", refresh.expose().into());
        }
        if let Some(scopes) = &tokens.scopes {
            set("scope", scopes.join(" ").into());
        }
        if let Some(end) = tokens.expires_at {
            set("expires_at", end.into());
        } else {
            members.remove("expires_at");
        }
        // Counted from when the file is written, which others would mistake for its last change.
        members.remove("expires_in");
        let text = Zeroizing::new(serde_json::to_vec_pretty(&members).expect("JSON can be written"));
        // Who could read it still can, but nobody else.
        write(path, &text, self.mode & 0o660)
    }
}

/// Writes the tokens of another login, and leaves alone what else stands in the file; makes it where there is none.
pub(super) fn begin(path: &Path, tokens: &TokenSet) -> io::Result<()> {
    let before = read(path).ok();
    let mut members = before
        .as_ref()
        .and_then(|before| before.members.clone())
        .unwrap_or_default();
    // These were the other login's.
    for name in ["refresh_token", "scope", "id_token", "token_type"] {
        members.remove(name);
    }
    let begun = Content {
        tokens: tokens.clone(),
        modified: 0,
        stamp: None,
        members: Some(members),
        mode: before.map_or(0o600, |before| before.mode),
    };
    begun.replace(path, tokens)
}

/// Makes an empty file where there is none: whoever reads it meanwhile finds no tokens, as before.
pub(super) fn make(path: &Path) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    Ok(())
}

/// tmp -> flush -> rename -> flush the directory. Of who has the lock.
fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // What a link points to is replaced, not the link.
    let path = fs::canonicalize(path)?;
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let new = beside(&path, ASIDE);
    let written = (|| {
        // What a writer left behind that died may hold tokens.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode | 0o600))?;
        file.sync_all()?;
        fs::rename(&new, &path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&new);
        return written;
    }
    File::open(directory)?.sync_all()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Held by the one who refreshes; given back when dropped, also by a process that dies.
pub(super) struct Lock(#[expect(dead_code, reason = "it is held for its lock")] File);

impl Lock {
    /// `None`: somebody else has it.
    pub(super) fn take(path: &Path) -> io::Result<Option<Self>> {
        let path = fs::canonicalize(path)?;
        let lock = beside(&path, ".lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(lock)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<TokenSet, FileError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        fs::write(&path, text).unwrap();
        read(&path).map(|content| content.tokens)
    }

    #[test]
    fn json_and_bare_tokens_are_read() {
        let bare = parsed("the-token\n").unwrap();
        assert!(bare.access_token.expose() == "the-token" && bare.refresh_token.is_none() && bare.expires_at.is_none());
        let all = r#"{"access_token":"a","refresh_token":"r","expires_at":17,"token_type":"bearer","scope":"x y","else":[1]}"#;
        let all = parsed(all).unwrap();
        assert!(all.access_token.expose() == "a" && all.refresh_token.unwrap().expose() == "r");
        assert_eq!(
            (all.expires_at, all.scopes.unwrap()),
            (Some(17), vec!["x".to_owned(), "y".to_owned()])
        );
        let now = crate::clock::Clock::system().now();
        let relative = parsed(r#"{"access_token":"a","expires_in":"60"}"#)
            .unwrap()
            .expires_at
            .unwrap();
        assert!(
            (now + 50..=now + 70).contains(&relative),
            "counted from when it was written: {relative}"
        );
        for endless in ["18446744073709551615", "1e300"] {
            let text = format!(r#"{{"access_token":"a","expires_in":{endless}}}"#);
            assert_eq!(parsed(&text).unwrap().expires_at, Some(u64::MAX), "r16");
        }
    }

    #[test]
    fn what_holds_no_token_is_told_apart_from_one() {
        for text in [
            "",
            "\n",
            "two words",
            "{",
            "{}",
            "[]",
            r#"{"access_token":"a""#,
            r#""access_token":"a"}"#,
            r#"{"access_token":""}"#,
            r#"{"access_token":"a b"}"#,
            r#"{"access_token":7}"#,
            r#"{"access_token":"a","refresh_token":7}"#,
            r#"{"access_token":"a","expires_at":"soon"}"#,
            "é",
        ] {
            assert_eq!(parsed(text).err(), Some(FileError::Unusable), "{text}");
        }
        assert_eq!(
            parsed(r#"{"access_token":"a","token_type":"DPoP"}"#).err(),
            Some(FileError::NoBearer)
        );
        assert_eq!(parsed(&"x".repeat(MAX_FILE as usize + 1)).err(), Some(FileError::Large));
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).err(), Some(FileError::NoFile));
        let missing = read(&directory.path().join("none")).err();
        assert_eq!(missing, Some(FileError::Read(io::ErrorKind::NotFound)));
    }

    #[test]
    fn r17_writing_is_whole_keeps_the_rest_and_lets_nobody_else_read() {
        let directory = tempfile::tempdir().unwrap();
        let (real, path) = (directory.path().join("real"), directory.path().join("tokens"));
        fs::write(
            &real,
            r#"{"access_token":"a","refresh_token":"r","expires_in":1,"account":"ops"}"#,
        )
        .unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink(&real, &path).unwrap();
        // A process left this behind that died between writing and renaming.
        fs::write(beside(&real, ASIDE), "{\"access_tok").unwrap();
        let content = read(&path).unwrap();
        let mut tokens = content.tokens.clone();
        (tokens.access_token, tokens.expires_at) = (Secret::new("b"), Some(99));
        content.replace(&path, &tokens).unwrap();
        let written: Value = serde_json::from_slice(&fs::read(&real).unwrap()).unwrap();
        let expected =
            serde_json::json!({"access_token": "b", "refresh_token": "r", "expires_at": 99, "account": "ops"});
        assert_eq!(written, expected);
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        assert!(read(&path).unwrap().tokens == tokens);
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 2, "no file of ours is left over");
    }

    #[test]
    fn a_pipe_in_its_place_holds_up_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let (done, waiting) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(read(&path).err()));
        let error = waiting.recv_timeout(Duration::from_secs(5)).expect("it doesn't wait");
        assert_eq!(error, Some(FileError::NoFile));
    }

    #[test]
    fn one_has_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        fs::write(&path, "t").unwrap();
        let held = Lock::take(&path).unwrap().expect("free");
        assert!(Lock::take(&path).unwrap().is_none());
        drop(held);
        assert!(Lock::take(&path).unwrap().is_some());
    }
}
