//! API keys: what one looks like, and the file that lists them.
//!
//! 1. A key is `pcl_`, 32 random bytes in base64url, and six characters of their SHA-256, so that scanners for leaked
//!    secrets recognise one and tell it from a made-up one.
//! 2. The file holds no key, only its SHA-256: `name:sha256-hex:[roles]:[RFC 3339 end]` a line, roles parted by commas.
//!    Blank lines and lines that begin with `#` are nothing. A key has 256 random bits, so that a fast hash without
//!    salt gives nothing away; who writes the hash of a password into the file has no such promise.
//! 3. One bad line spoils the file: who revokes a key must not be told later that the line was skipped. Errors name
//!    lines and never what stands on them.
//!
//! A name may stand on several lines: that is how a key is replaced without a break.

use std::collections::HashSet;
use std::fmt;

use aws_lc_rs::{digest, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::clock::UnixSeconds;
use crate::secret::Secret;

/// Every minted key begins so.
pub const PREFIX: &str = "pcl_";

/// Largest file of keys, in bytes: some ten thousand keys.
pub const MAX_FILE: usize = 1024 * 1024;

/// Longest name or role, in bytes.
const MAX_NAME: usize = 128;

/// Most roles of one key.
const MAX_ROLES: usize = 64;

const RANDOM: usize = 32;

/// Characters of the check sum.
const CHECK: usize = 6;

/// SHA-256 of a key.
pub type KeyHash = [u8; 32];

/// One line of the file.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Whose key it is: the principal's subject.
    pub name: String,
    pub hash: KeyHash,
    pub roles: Vec<String>,
    /// When it ends; `None` never.
    pub expires: Option<UnixSeconds>,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct LineError {
    /// Counted from 1.
    pub line: usize,
    pub what: &'static str,
}

/// The keys of a file.
///
/// # Errors
/// Every line that can't be read.
pub fn parse(text: &str) -> Result<Vec<ApiKey>, Vec<LineError>> {
    let mut keys: Vec<ApiKey> = Vec::new();
    let mut errors = Vec::new();
    let mut hashes = HashSet::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let read = ApiKey::parse(line).and_then(|key| {
            if hashes.insert(key.hash) {
                Ok(key)
            } else {
                Err("the same key stands further up")
            }
        });
        match read {
            Ok(key) => keys.push(key),
            Err(what) => errors.push(LineError { line: index + 1, what }),
        }
    }
    if errors.is_empty() { Ok(keys) } else { Err(errors) }
}

impl ApiKey {
    fn parse(line: &str) -> Result<Self, &'static str> {
        let mut parts = line.splitn(4, ':');
        let name = parts.next().unwrap_or_default();
        if !is_name(name) {
            return Err("the name is not 1 to 128 letters, digits or -_.@");
        }
        let hash = parts.next().and_then(unhex).ok_or("the hash is not 64 hex digits")?;
        let roles = parts.next().unwrap_or_default();
        // The brackets of the notation are taken as what they are meant for.
        let roles = roles
            .strip_prefix('[')
            .and_then(|roles| roles.strip_suffix(']'))
            .unwrap_or(roles);
        let expires = match parts.next().unwrap_or_default() {
            "" => None,
            end => Some(end_of(end).ok_or("the end is not a time such as 2027-01-31T00:00:00Z")?),
        };
        Ok(Self {
            name: name.to_owned(),
            hash,
            roles: roles_of(roles).ok_or("a role is not 1 to 128 letters, digits or -_.@, or there are over 64")?,
            expires,
        })
    }
}

/// The line, without a line feed.
impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.name)?;
        for byte in self.hash {
            write!(f, "{byte:02x}")?;
        }
        write!(f, ":{}:", self.roles.join(","))?;
        let end = self.expires.and_then(|end| i64::try_from(end).ok());
        match end.and_then(|end| jiff::Timestamp::from_second(end).ok()) {
            Some(end) => write!(f, "{end}"),
            None => Ok(()),
        }
    }
}

/// Whether this can be a key's name.
pub fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte))
}

/// Roles parted by commas; none for the empty text.
pub fn roles_of(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let roles: Vec<String> = text.split(',').map(|role| role.trim().to_owned()).collect();
    (roles.len() <= MAX_ROLES && roles.iter().all(|role| is_name(role))).then_some(roles)
}

/// An RFC 3339 time.
pub fn end_of(text: &str) -> Option<UnixSeconds> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_second()).ok()
}

/// A new key.
///
/// # Panics
/// When the system has no randomness to give.
pub fn mint() -> Secret {
    let mut random = Zeroizing::new([0; RANDOM]);
    rand::fill(&mut *random).expect("the system gives randomness");
    let body = Zeroizing::new(URL_SAFE_NO_PAD.encode(*random));
    Secret::new(format!("{PREFIX}{}{}", *body, check(&body)))
}

/// Whether a text begins like a minted key: such a text is never shown to anybody else, whole or not.
pub fn is_minted(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// Whether the check sum of a minted key fits, so that it is worth looking for.
pub fn is_whole(text: &str) -> bool {
    text.strip_prefix(PREFIX)
        .filter(|rest| rest.is_ascii() && rest.len() > CHECK)
        .map(|rest| rest.split_at(rest.len() - CHECK))
        .is_some_and(|(body, sum)| check(body) == sum)
}

/// SHA-256 of a key, as the file has it.
pub fn hash(key: &str) -> KeyHash {
    digest::digest(&digest::SHA256, key.as_bytes())
        .as_ref()
        .try_into()
        .expect("SHA-256 has 32 bytes")
}

fn check(body: &str) -> String {
    let mut sum = URL_SAFE_NO_PAD.encode(hash(body));
    sum.truncate(CHECK);
    sum
}

fn unhex(text: &str) -> Option<KeyHash> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn one(line: &str) -> ApiKey {
        parse(line).expect("a good line").pop().expect("a key")
    }

    #[test]
    fn a_line_is_read_and_written() {
        assert_eq!(hash("test"), one(&format!("ci:{HASH}")).hash);
        for line in [
            format!("ci:{HASH}::"),
            format!("ci.bot@x-1_2:{HASH}:reader,editor:"),
            format!("ci:{HASH}:reader:2027-01-31T00:00:00Z"),
        ] {
            assert_eq!(one(&line).to_string(), line);
        }
        let key = one(&format!(
            "ci:{}:[reader, editor]:2027-01-31T01:00:00+01:00",
            HASH.to_uppercase()
        ));
        assert_eq!(key.to_string(), format!("ci:{HASH}:reader,editor:2027-01-31T00:00:00Z"));
    }

    #[test]
    fn errors_name_every_bad_line_and_nothing_on_it() {
        let text = format!(
            "# keys\n\nci:{HASH}\n:{HASH}\nc i:{HASH}\nci:abc\nci\nci:{HASH}:a b\nci:{HASH}:a,:\nci:{HASH}::soon\n\
             ci:{HASH}::1960-01-01T00:00:00Z\nx:{HASH}\nci:{HASH}:[a]:2027-01-31T00:00:00Z:more"
        );
        let errors = parse(&text).err().expect("errors");
        let lines: Vec<usize> = errors.iter().map(|error| error.line).collect();
        assert_eq!(lines, [4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
        for error in &errors {
            let said = error.to_string();
            assert!(
                !said.contains(HASH) && !said.contains("abc") && !said.contains("soon"),
                "{said}"
            );
        }
        assert!(parse("").ok().is_some_and(|keys| keys.is_empty()));
    }

    #[test]
    fn a_minted_key_is_known_by_its_looks() {
        let (one, two) = (mint(), mint());
        assert_ne!(one.expose(), two.expose());
        assert_eq!(one.expose().len(), PREFIX.len() + 43 + CHECK);
        assert!(is_minted(one.expose()) && is_whole(one.expose()));
        let mut wrong = one.expose().to_owned();
        let last = if wrong.ends_with('A') { "B" } else { "A" };
        wrong.replace_range(wrong.len() - 1.., last);
        for damaged in [
            wrong.as_str(),
            &one.expose()[..40],
            "pcl_",
            "pcl_abcdef",
            "pcl_äöüäöüäöü",
        ] {
            assert!(is_minted(damaged) && !is_whole(damaged), "{damaged}");
        }
        assert!(!is_minted("ghp_abc") && !is_whole("ghp_abc"));
    }
}
