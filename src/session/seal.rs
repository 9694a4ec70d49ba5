//! Seals: what the gateway hands to a client and must recognise, whole and its own, when it comes back.
//!
//! 1. A sealed text is `version | key id | nonce | ciphertext and tag` in base64url without padding, at most 1,024
//!    characters. The head and the purpose are authenticated too: a session never opens as a task id.
//! 2. Each purpose has its own subkeys (HKDF-SHA256, RFC 5869), so one configured key serves them all.
//! 3. AES-256-GCM-SIV (RFC 8452) with a random nonce: a repeated nonce, however unlikely, reveals only equality.
//! 4. Whatever is wrong with a text, the answer is one and the same [`SealError::Invalid`].
//! 5. A row of the store is sealed likewise, in bytes, of any length, and bound to its place: what says where it stands is
//!    authenticated with it, so whoever can write to the database can't give one person another's row.
//! 6. The first key seals, all open: rotation is to put a new key in front and drop the old one when sessions are gone.

use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::{hkdf, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::config::SealKey;

const VERSION: u8 = 1;
const KEY_ID_LEN: usize = 4;
const TAG_LEN: usize = 16;
const HEAD_LEN: usize = 1 + KEY_ID_LEN + NONCE_LEN;
/// Characters of a sealed text.
pub const MAX_SEALED: usize = 1024;
/// Bytes that fit into a sealed text.
pub const MAX_PLAINTEXT: usize = MAX_SEALED / 4 * 3 - HEAD_LEN - TAG_LEN;

/// What a sealed text is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `Mcp-Session-Id`.
    Session,
    /// `session_id` of an HTTP+SSE endpoint event.
    SseSession,
    /// A task's id.
    Task,
    /// HMAC of arguments in the audit log.
    AuditArguments,
    /// `DPoP-Nonce`.
    DpopNonce,
    /// `requestState` of a call that waits for its caller's input.
    RequestState,
    /// Who is signed in to the gateway's pages.
    Visitor,
    /// A sign-in to them under way.
    SignIn,
    /// A row of the store.
    StoredRow,
    /// The gateway's own keys that sign assertions.
    SigningKey,
}

impl Purpose {
    const ALL: [Self; 10] = [
        Self::Session,
        Self::SseSession,
        Self::Task,
        Self::AuditArguments,
        Self::DpopNonce,
        Self::RequestState,
        Self::Visitor,
        Self::SignIn,
        Self::StoredRow,
        Self::SigningKey,
    ];

    fn label(self) -> &'static [u8] {
        match self {
            Self::Session => b"session",
            Self::SseSession => b"sse-session",
            Self::Task => b"task",
            Self::AuditArguments => b"audit-arguments",
            Self::DpopNonce => b"dpop-nonce",
            Self::RequestState => b"request-state",
            Self::Visitor => b"visitor",
            Self::SignIn => b"sign-in",
            Self::StoredRow => b"stored-row",
            Self::SigningKey => b"signing-key",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Forged, damaged, of another purpose, or sealed with a key that is gone; nobody is told which.
    #[error("not a seal of this gateway")]
    Invalid,
    /// More than fits a sealed text of 1024 characters.
    #[error("too long to be sealed")]
    TooLong,
}

/// Seals and opens. Has no `Debug`: it holds keys.
pub struct Sealer {
    /// Never empty; the first seals.
    keys: Vec<Keys>,
    /// The state directory whose key file they are of.
    directory: Option<Box<Path>>,
}

/// One configured key's subkeys.
struct Keys {
    id: [u8; KEY_ID_LEN],
    /// By `Purpose as usize`.
    ciphers: [RandomizedNonceKey; Purpose::ALL.len()],
    macs: [hmac::Key; Purpose::ALL.len()],
}

impl Sealer {
    /// Derives the subkeys of each key. Without any key a fresh one is made, which ends with the process.
    pub fn new(keys: &[SealKey]) -> Self {
        if keys.is_empty() {
            return Self::new(&[random_key()]);
        }
        Self {
            keys: keys.iter().map(Keys::derive).collect(),
            directory: None,
        }
    }

    /// With the keys of that state directory's key file.
    pub(super) fn of_file(keys: &[SealKey], directory: &Path) -> Self {
        Self {
            directory: Some(directory.into()),
            ..Self::new(keys)
        }
    }

    /// The state directory whose key file the keys are of, so that it can be read again; `None` for keys of the
    /// configuration or of this process alone.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// Seals what fits a sealed text of 1024 characters with the first key.
    ///
    /// # Errors
    /// [`SealError::TooLong`].
    pub fn seal(&self, purpose: Purpose, plaintext: &[u8]) -> Result<String, SealError> {
        if plaintext.len() > MAX_PLAINTEXT {
            return Err(SealError::TooLong);
        }
        Ok(URL_SAFE_NO_PAD.encode(self.seal_row(purpose, &[], plaintext)))
    }

    /// Seals `plaintext`, of any length, together with what it must be found with, using the first key.
    pub fn seal_row(&self, purpose: Purpose, place: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let keys = &self.keys[0];
        // The text is sealed where it lies, so nothing of it is left in memory.
        let mut body = Vec::with_capacity(plaintext.len() + TAG_LEN);
        body.extend_from_slice(plaintext);
        let nonce = keys.ciphers[purpose as usize]
            .seal_in_place_append_tag(Aad::from(associated(&keys.id, purpose, place)), &mut body)
            .expect("AES-GCM-SIV seals up to 2^36 bytes");
        let mut sealed = Vec::with_capacity(HEAD_LEN + body.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&keys.id);
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&body);
        sealed
    }

    /// Opens what [`Sealer::seal`] made for the same purpose.
    ///
    /// # Errors
    /// [`SealError::Invalid`], whatever the fault.
    pub fn open(&self, purpose: Purpose, sealed: &str) -> Result<Vec<u8>, SealError> {
        if sealed.len() > MAX_SEALED {
            return Err(SealError::Invalid);
        }
        let sealed = URL_SAFE_NO_PAD.decode(sealed).map_err(|_| SealError::Invalid)?;
        self.open_row(purpose, &[], sealed).map(|plaintext| plaintext.to_vec())
    }

    /// Opens what [`Sealer::seal_row`] made for the same purpose and place.
    ///
    /// # Errors
    /// [`SealError::Invalid`], whatever the fault.
    pub fn open_row(&self, purpose: Purpose, place: &[u8], sealed: Vec<u8>) -> Result<Zeroizing<Vec<u8>>, SealError> {
        // It is opened where it lies, and what lies there is wiped.
        let mut sealed = Zeroizing::new(sealed);
        if sealed.len() < HEAD_LEN + TAG_LEN || sealed[0] != VERSION {
            return Err(SealError::Invalid);
        }
        let (head, body) = sealed.split_at_mut(HEAD_LEN);
        let (id, nonce) = head[1..].split_at(KEY_ID_LEN);
        // An unknown key id costs what a forged text costs: the first key tries, with an id it wasn't made for.
        let id: [u8; KEY_ID_LEN] = id.try_into().expect("split at its length");
        let keys = self.keys.iter().find(|keys| keys.id == id).unwrap_or(&self.keys[0]);
        let nonce = Nonce::try_assume_unique_for_key(nonce).expect("the rest of the head is the nonce");
        keys.ciphers[purpose as usize]
            .open_in_place(nonce, Aad::from(associated(&id, purpose, place)), body)
            .map(|plaintext| Zeroizing::new(plaintext.to_vec()))
            .map_err(|_| SealError::Invalid)
    }

    /// The id of the key that sealed a row; empty when it is none.
    pub fn key_of(sealed: &[u8]) -> &[u8] {
        sealed.get(1..=KEY_ID_LEN).unwrap_or_default()
    }

    /// The ids of all keys; the first seals. They tell nothing of the keys.
    pub fn key_ids(&self) -> impl Iterator<Item = &[u8]> {
        self.keys.iter().map(|keys| keys.id.as_slice())
    }

    /// What `make` builds of HMACs under the purpose's subkey, of each key in order: keys of another kind, say.
    pub fn derived<T>(&self, purpose: Purpose, make: impl Fn(&dyn Fn(&[u8]) -> Zeroizing<[u8; 32]>) -> T) -> Vec<T> {
        let macs = self.keys.iter().map(|keys| &keys.macs[purpose as usize]);
        let made = macs.map(|mac| make(&|bytes| Zeroizing::new(tag(mac, bytes))));
        made.collect()
    }

    /// HMAC-SHA256 under the purpose's subkey of the first key: equal inputs can be recognised, and nothing be read.
    pub fn hmac(&self, purpose: Purpose, bytes: &[u8]) -> [u8; 32] {
        tag(&self.keys[0].macs[purpose as usize], bytes)
    }
}

fn tag(mac: &hmac::Key, bytes: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(mac, bytes);
    tag.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
}

impl Keys {
    fn derive(key: &SealKey) -> Self {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"portcullis seal v1");
        let root = salt.extract(key.0.as_slice());
        let mut id = [0; KEY_ID_LEN];
        id.copy_from_slice(&expand(&root, &[b"key-id"])[..KEY_ID_LEN]);
        let cipher = |purpose: Purpose| {
            RandomizedNonceKey::new(&AES_256_GCM_SIV, expand(&root, &[b"seal/", purpose.label()]).as_slice())
                .expect("a subkey has the cipher's length")
        };
        let mac = |purpose: Purpose| {
            hmac::Key::new(
                hmac::HMAC_SHA256,
                expand(&root, &[b"hmac/", purpose.label()]).as_slice(),
            )
        };
        Self {
            id,
            ciphers: Purpose::ALL.map(cipher),
            macs: Purpose::ALL.map(mac),
        }
    }
}

fn expand(root: &hkdf::Prk, info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut subkey = Zeroizing::new([0; 32]);
    root.expand(info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(subkey.as_mut_slice()))
        .expect("HKDF gives up to 255 blocks");
    subkey
}

/// What is authenticated and not encrypted. Purpose and place vary in length; as each purpose has a key of its own, no
/// other pair can read the same.
fn associated(id: &[u8; KEY_ID_LEN], purpose: Purpose, place: &[u8]) -> Vec<u8> {
    [&[VERSION], id.as_slice(), purpose.label(), place].concat()
}

/// A key from the system's generator.
pub(super) fn random_key() -> SealKey {
    let mut key = Zeroizing::new([0; 32]);
    rand::fill(key.as_mut_slice()).expect("the system's random generator works");
    SealKey(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealer(bytes: &[u8]) -> Sealer {
        let keys: Vec<_> = bytes.iter().map(|byte| SealKey(Zeroizing::new([*byte; 32]))).collect();
        Sealer::new(&keys)
    }

    #[test]
    fn purposes_are_indexed_in_order() {
        for (index, purpose) in Purpose::ALL.into_iter().enumerate() {
            assert_eq!(purpose as usize, index);
        }
    }

    #[test]
    fn two_seals_of_one_text_differ_and_both_open() {
        let sealer = sealer(&[1]);
        let one = sealer.seal(Purpose::Session, b"same").unwrap();
        let two = sealer.seal(Purpose::Session, b"same").unwrap();
        assert_ne!(one, two);
        assert_eq!(sealer.open(Purpose::Session, &one).unwrap(), b"same");
        assert_eq!(sealer.open(Purpose::Session, &two).unwrap(), b"same");
    }

    #[test]
    fn a_wrong_purpose_never_opens() {
        let sealer = sealer(&[1]);
        for made in Purpose::ALL {
            let sealed = sealer.seal(made, b"text").unwrap();
            for asked in Purpose::ALL {
                assert_eq!(
                    sealer.open(asked, &sealed).is_ok(),
                    made == asked,
                    "{made:?} as {asked:?}"
                );
            }
        }
    }

    #[test]
    fn rotated_keys_open_and_removed_ones_do_not() {
        let old = sealer(&[1]).seal(Purpose::Session, b"text").unwrap();
        let rotated = sealer(&[2, 1]);
        assert_eq!(rotated.open(Purpose::Session, &old).unwrap(), b"text");
        let new = rotated.seal(Purpose::Session, b"text").unwrap();
        assert_eq!(sealer(&[1]).open(Purpose::Session, &new), Err(SealError::Invalid));
        assert_eq!(sealer(&[2]).open(Purpose::Session, &new).unwrap(), b"text");
        assert_eq!(sealer(&[2]).open(Purpose::Session, &old), Err(SealError::Invalid));
    }

    #[test]
    fn without_keys_each_sealer_is_its_own() {
        let sealed = Sealer::new(&[]).seal(Purpose::Session, b"text").unwrap();
        assert_eq!(
            Sealer::new(&[]).open(Purpose::Session, &sealed),
            Err(SealError::Invalid)
        );
    }

    #[test]
    fn the_longest_text_fits_and_one_more_byte_does_not() {
        let sealer = sealer(&[1]);
        let sealed = sealer.seal(Purpose::Session, &[7; MAX_PLAINTEXT]).unwrap();
        assert!(sealed.len() <= MAX_SEALED);
        assert_eq!(sealer.open(Purpose::Session, &sealed).unwrap(), [7; MAX_PLAINTEXT]);
        assert_eq!(
            sealer.seal(Purpose::Session, &[7; MAX_PLAINTEXT + 1]),
            Err(SealError::TooLong)
        );
    }

    #[test]
    fn texts_that_were_never_seals_are_refused() {
        let sealer = sealer(&[1]);
        let good = sealer.seal(Purpose::Session, b"text").unwrap();
        let texts = [
            String::new(),
            "AQ".to_owned(),
            "not base64 !".to_owned(),
            format!("{good}="),
            format!("{good} "),
            good[..good.len() - 4].to_owned(),
            format!("{good}AAAA"),
            "A".repeat(MAX_SEALED + 4),
            "A".repeat(MAX_SEALED),
        ];
        for text in texts {
            assert_eq!(
                sealer.open(Purpose::Session, &text),
                Err(SealError::Invalid),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_digest_depends_on_key_purpose_and_bytes() {
        let one = sealer(&[1]);
        let digest = one.hmac(Purpose::AuditArguments, b"{}");
        assert_eq!(digest, one.hmac(Purpose::AuditArguments, b"{}"));
        assert_ne!(digest, one.hmac(Purpose::AuditArguments, b"{ }"));
        assert_ne!(digest, one.hmac(Purpose::Session, b"{}"));
        assert_ne!(digest, sealer(&[2]).hmac(Purpose::AuditArguments, b"{}"));
    }

    proptest! {
        #[test]
        fn open_after_seal(text in proptest::collection::vec(any::<u8>(), 0..=MAX_PLAINTEXT)) {
            let sealer = sealer(&[3, 4]);
            let sealed = sealer.seal(Purpose::Task, &text).unwrap();
            prop_assert!(sealed.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
            prop_assert_eq!(sealer.open(Purpose::Task, &sealed).unwrap(), text);
        }

        #[test]
        fn any_flipped_bit_fails(
            text in proptest::collection::vec(any::<u8>(), 0..64),
            place in any::<proptest::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let sealer = sealer(&[3, 4]);
            let sealed = sealer.seal(Purpose::Session, &text).unwrap();
            let mut bytes = URL_SAFE_NO_PAD.decode(&sealed).unwrap();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            let forged = URL_SAFE_NO_PAD.encode(bytes);
            prop_assert_eq!(sealer.open(Purpose::Session, &forged), Err(SealError::Invalid));
        }

        #[test]
        fn any_changed_character_fails(
            text in proptest::collection::vec(any::<u8>(), 0..64),
            place in any::<proptest::sample::Index>(),
            with in "[A-Za-z0-9_-]",
        ) {
            let sealer = sealer(&[3]);
            let sealed = sealer.seal(Purpose::Session, &text).unwrap();
            let place = place.index(sealed.len());
            let mut forged = sealed.clone();
            forged.replace_range(place..=place, &with);
            prop_assume!(forged != sealed);
            prop_assert_eq!(sealer.open(Purpose::Session, &forged), Err(SealError::Invalid));
        }
    }
}
