//! `portcullis token issue`: an API key, shown once.
//!
//! 1. The key goes to stdout and nowhere else; what is kept is its hash, on stderr or in the file.
//! 2. The line is in the file before the key is shown: a key that was shown works.
//! 3. The file is written aside (mode 0600, flushed) and renamed, so that the gate reads the old file or the new one,
//!    and a crash leaves the old. Two who issue at once take turns, by a lock on the directory, which leaves nothing
//!    behind. The file keeps its owner; a file with a line that can't be read is left alone.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write, stdout};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aws_lc_rs::rand;
use clap::Args;

use crate::authn::api_key::{self, ApiKey};
use crate::clock::{Clock, UnixSeconds};

/// Make an API key: the key on stdout, once, and its hash for the file of keys on stderr or into the file
#[derive(Debug, Args)]
pub struct Issue {
    /// Whose key it is: the caller's subject
    #[arg(long, value_parser = name)]
    name: String,
    /// Roles parted by commas, for `role:` lines of the configuration
    #[arg(long, value_parser = roles, default_value = "")]
    roles: Roles,
    /// When it ends: 90d, 12h, or an RFC 3339 time; never, if absent
    #[arg(long, value_parser = end)]
    expires: Option<UnixSeconds>,
    /// Append the line to this file instead of printing it
    #[arg(long)]
    file: Option<PathBuf>,
}

/// A list is one argument here, not several.
#[derive(Clone, Debug)]
struct Roles(Vec<String>);

impl Issue {
    /// Makes the key.
    pub fn run(self) -> ExitCode {
        let secret = api_key::mint();
        let key = ApiKey {
            name: self.name,
            hash: api_key::hash(secret.expose()),
            roles: self.roles.0,
            expires: self.expires,
        };
        match &self.file {
            None => eprintln!("add this line to the file of keys:\n{key}"),
            Some(file) => match append(file, &key) {
                Ok(()) => eprintln!(
                    "added to {}; a gate that reads it knows the key within a second",
                    file.display()
                ),
                Err(error) => {
                    eprintln!("cannot add to {}: {error}; no key was made", file.display());
                    return ExitCode::FAILURE;
                }
            },
        }
        match writeln!(stdout(), "{}", secret.expose()).and_then(|()| stdout().flush()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("cannot write the key: {error}; remove the line of {} again", key.name);
                ExitCode::FAILURE
            }
        }
    }
}

fn name(text: &str) -> Result<String, &'static str> {
    match api_key::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("use 1 to 128 letters, digits or -_.@"),
    }
}

fn roles(text: &str) -> Result<Roles, &'static str> {
    let roles = api_key::roles_of(text).ok_or("use at most 64 names of letters, digits or -_.@, parted by commas")?;
    Ok(Roles(roles))
}

fn end(text: &str) -> Result<UnixSeconds, &'static str> {
    end_after(text, Clock::system().now())
}

fn end_after(text: &str, now: UnixSeconds) -> Result<UnixSeconds, &'static str> {
    let seconds = |number: &str, unit: UnixSeconds| number.parse::<UnixSeconds>().ok()?.checked_mul(unit);
    let lifetime = match (text.strip_suffix('d'), text.strip_suffix('h')) {
        (Some(days), _) => seconds(days, 86_400),
        (_, Some(hours)) => seconds(hours, 3600),
        _ => None,
    };
    let end = lifetime
        .and_then(|lifetime| now.checked_add(lifetime))
        .or_else(|| api_key::end_of(text))
        // What can't be written down would be read as no end at all.
        .filter(|end| i64::try_from(*end).is_ok_and(|end| jiff::Timestamp::from_second(end).is_ok()))
        .ok_or("use 90d, 12h, or a time such as 2027-01-31T00:00:00Z")?;
    if end > now { Ok(end) } else { Err("that time is over") }
}

/// Appends a line.
fn append(file: &Path, key: &ApiKey) -> io::Result<()> {
    // A link stays one: what it leads to is replaced.
    let file = match file.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.is_symlink() => file.to_owned(),
        found => found?,
    };
    let directory = match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let lock = File::open(&directory)?;
    lock.lock()?;
    let (mut text, owner) = match File::open(&file) {
        Ok(old) => {
            let about = old.metadata()?;
            if !about.is_file() {
                return Err(io::Error::other("it is no file"));
            }
            let mut text = String::new();
            old.take(api_key::MAX_FILE as u64 + 1).read_to_string(&mut text)?;
            (text, Some((about.uid(), about.gid())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (String::new(), None),
        Err(error) => return Err(error),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    writeln!(text, "{key}").expect("a String takes any text");
    if text.len() > api_key::MAX_FILE {
        return Err(io::Error::other("it would be over 1 MiB"));
    }
    // The gate would keep the old keys, and nobody would know why the new one doesn't work.
    api_key::parse(&text).map_err(|errors| io::Error::other(errors[0]))?;
    let aside = aside(&file)?;
    let written = write_new(&aside, &text, owner).and_then(|()| std::fs::rename(&aside, &file));
    if written.is_err() {
        // It may not have been made at all.
        let _ = std::fs::remove_file(&aside);
    }
    written?;
    lock.sync_all()
}

fn aside(file: &Path) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    rand::fill(&mut random).map_err(|_| io::Error::other("the system gives no randomness"))?;
    let mut name = String::from(".");
    name.push_str(&file.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy());
    for byte in random {
        write!(name, ".{byte:02x}").expect("a String takes any text");
    }
    Ok(file.with_file_name(name))
}

fn write_new(path: &Path, text: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    if let Some((user, group)) = owner {
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (user, group) {
            fchown(&file, Some(user), Some(group))?;
        }
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_days_hours_or_times() {
        let now = 1_800_000_000;
        assert_eq!(end_after("90d", now), Ok(now + 90 * 86_400));
        assert_eq!(end_after("12h", now), Ok(now + 12 * 3600));
        assert_eq!(end_after("2027-01-31T00:00:00Z", now), Ok(1_801_353_600));
        for bad in [
            "",
            "0d",
            "d",
            "90",
            "90m",
            "-1d",
            "2020-01-01T00:00:00Z",
            "99999999999999999999d",
            "999999999999d",
        ] {
            assert!(end_after(bad, now).is_err(), "{bad}");
        }
    }

    #[test]
    fn many_who_append_at_once_lose_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let file = &file;
                scope.spawn(move || {
                    let key = ApiKey {
                        name: format!("ci-{number}"),
                        hash: api_key::hash(&number.to_string()),
                        roles: Vec::new(),
                        expires: None,
                    };
                    append(file, &key).unwrap();
                });
            }
        });
        let keys = api_key::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(keys.len(), 8);
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            std::fs::read_dir(directory.path()).unwrap().count(),
            1,
            "nothing aside is left"
        );
    }
}
